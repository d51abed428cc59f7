// SPDX-License-Identifier: Apache-2.0
// Random problems, most of them with something wrong, on arrays of exactly their size. Built with the address and the
// undefined-behaviour sanitizer by test_sources.py: a read or write outside an array ends the program.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../kernels/cpu/ctc.h"
#include "../kernels/cpu/dispatch.h"

namespace {

using namespace jax_ctc;

class Threads final : public Executor {
 public:
  int64_t threads() const override { return 3; }
  void schedule(std::function<void()> work) override { started_.emplace_back(std::move(work)); }
  ~Threads() override {
    for (std::thread& t : started_) t.join();
  }

 private:
  std::vector<std::thread> started_;
};

// On the heap, each alone, so that the sanitizer sees its ends.
template <class T> struct Array {
  explicit Array(int64_t n) : data(new T[n]), size(n) {}
  std::unique_ptr<T[]> data;
  int64_t size;
};

std::mt19937 generator;
int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(generator); }
bool sometimes(int one_in) { return below(one_in) == 0; }

double logit() {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  switch (below(400)) {
    case 0: return -infinity;
    case 1: return sometimes(4) ? infinity : 3e4;
    case 2: return sometimes(4) ? std::nan("") : -2e6;
    default: return std::normal_distribution<double>(0, sometimes(9) ? 50 : 2)(generator);
  }
}

int32_t label(int64_t V) {
  constexpr int32_t extremes[] = {-1, -7, INT32_MIN, INT32_MAX, 0};
  if (sometimes(60)) return sometimes(2) ? int32_t(V) : extremes[below(5)];
  return sometimes(12) || V == 1 ? -1 : int32_t(1 + below(V - 1));
}

// F: what is computed in. Half-precision acts are 16 random bits, NaN patterns among them.
template <class F> void one(Dtype dtype) {
  const int64_t sizes[] = {0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 40, 65};
  const Shape s = {1 + below(3), sizes[below(12)], 1 + below(4), 1 + sizes[below(12)], sizes[below(12)]};
  const bool half = dtype == Dtype::kBF16 || dtype == Dtype::kF16;
  Array<F> wide(half ? 0 : s.rows() * s.V), wide_directions(half ? 0 : s.rows() * s.V);
  Array<uint16_t> narrow(half ? s.rows() * s.V : 0), narrow_directions(half ? s.rows() * s.V : 0);
  for (int64_t i = 0; i < wide.size; ++i) wide.data[i] = F(logit()), wide_directions.data[i] = F(logit());
  for (int64_t i = 0; i < narrow.size; ++i)
    narrow.data[i] = uint16_t(below(sometimes(200) ? 65536 : 0x4000)), narrow_directions.data[i] = narrow.data[i];
  Array<int32_t> labels(s.sequences() * s.L), lengths(s.sequences());
  for (int64_t i = 0; i < labels.size; ++i) labels.data[i] = label(s.V);
  for (int64_t i = 0; i < lengths.size; ++i)
    lengths.data[i] = sometimes(9) ? (sometimes(2) ? INT32_MAX : -1) : int32_t(below(s.T + (sometimes(9) ? 3 : 1)));

  void* acts = half ? static_cast<void*>(narrow.data.get()) : wide.data.get();
  void* directions = half ? static_cast<void*>(narrow_directions.data.get()) : wide_directions.data.get();
  const Problem p = {dtype, s, acts, labels.data.get(), lengths.data.get(), 0, sometimes(2) ? 1 : 99};
  Array<F> alone(s.sequences()), cost(s.sequences()), cotangents(s.sequences()), tangents(s.sequences());
  Array<F> rows(s.dense() ? 0 : s.rows() * 2), columns(s.rows() * s.columns());
  for (int64_t i = 0; i < cotangents.size; ++i) cotangents.data[i] = F(sometimes(3) ? 0 : logit());
  const Kept kept = {rows.data.get(), columns.data.get()};
  Threads threads;
  loss(p, alone.data.get(), threads);
  forward(p, cost.data.get(), kept, threads);
  for (int64_t i = 0; i < cost.size; ++i) {
    const F a = alone.data[i], b = cost.data[i];
    const bool bad_length = lengths.data[i] < 0 || lengths.data[i] > s.T;
    if ((a != b && (a == a || b == b)) || a < 0 || (bad_length && a == a)) {
      std::printf("sequence %d of N %d T %d B %d V %d L %d: %g alone, %g with residuals\n", int(i), int(s.N), int(s.T),
                  int(s.B), int(s.V), int(s.L), double(a), double(b));
      std::exit(1);
    }
  }
  tangent(p, kept, directions, tangents.data.get(), threads);
  cotangent(p, kept, cotangents.data.get(), acts, threads);  // in the place of acts
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  for (int seed = 0; seed < rounds; ++seed) {
    generator.seed(seed);
    one<float>(Dtype::kF32);
    one<double>(Dtype::kF64);
    one<float>(Dtype::kBF16);
    one<float>(Dtype::kF16);
  }
  std::printf("%d rounds on %s\n", rounds, instruction_set().name);
}

// SPDX-License-Identifier: Apache-2.0
// Built with the address and the undefined-behaviour sanitizer by test_sources.py: a read or write of the CPU kernels
// outside an array ends the program.
#include <thread>
#include <vector>

#include "../kernels/cpu/ctc.h"
#include "../kernels/cpu/dispatch.h"
#include "random_problem.h"

namespace {

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

// Symbols are classes or below 0: Python sees to that.
template <class F> void sums_and_back(Problem p, RandomProblem<F>& random, Executor& threads) {
  const int64_t rows = p.shape.rows(), n = p.shape.sequences() * p.shape.L;
  std::vector<int32_t> symbols(p.labels, p.labels + n);
  for (int32_t& symbol : symbols) symbol = symbol >= p.shape.V ? -1 : symbol;
  p.labels = symbols.data();
  Array<F> top(rows), count(rows), tail(rows), scores(rows * p.shape.L);
  sums(p, {top.data.get(), count.data.get(), tail.data.get(), scores.data.get()}, threads);
  Array<char> out(rows * p.shape.V * sizeof(F));
  sums_cotangent(p, top.data.get(), tail.data.get(), scores.data.get(), out.data.get(), threads);
}

template <class F> void one(Dtype dtype) {
  RandomProblem<F> random(dtype);
  const Problem p = {random.batch(), sometimes(2) ? 1 : 99};
  const int64_t n = p.shape.sequences();
  Array<F> alone(n), cost(n), tangents(n), rows(random.kept_rows()), columns(random.kept_columns());
  const Kept kept = {rows.data.get(), columns.data.get()};
  Threads threads;
  loss(p, alone.data.get(), threads);
  forward(p, cost.data.get(), kept, threads);
  for (int64_t i = 0; i < n; ++i) {
    const F a = alone.data[i], b = cost.data[i];
    if ((a != b && (a == a || b == b)) || a < 0 || (random.bad_length(i) && a == a))
      random.fail(i, "cost alone, and with residuals", a, b);
  }
  tangent(p, kept, random.directions(), tangents.data.get(), threads);
  Array<char> products(p.shape.rows() * p.shape.V * sizeof(F));
  product(p, kept, random.cotangents.data.get(), random.directions(), products.data.get(), threads);
  sums_and_back(p, random, threads);
  cotangent(p, kept, random.cotangents.data.get(), random.acts(), threads);  // in the place of acts
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

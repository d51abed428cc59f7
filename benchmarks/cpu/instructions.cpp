// SPDX-License-Identifier: Apache-2.0
// Runs one problem on one thread, for instructions.py: `instructions FILE`. The file has T, B, V and L as int64, then
// acts (T, B, V) as float, labels (B, L) and lengths (B,) as int32.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../kernels/cpu/ctc.h"
#include "../../kernels/cpu/dispatch.h"

using namespace jax_ctc;

namespace {

class OneThread final : public Executor {
 public:
  int64_t threads() const override { return 1; }
  void schedule(std::function<void()>) override {}
};

template <class T> std::vector<T> read(std::FILE* file, int64_t n) {
  std::vector<T> values(n);
  if (std::fread(values.data(), sizeof(T), n, file) != size_t(n)) std::exit(1);
  return values;
}

}  // namespace

// What is counted are calls of these.
extern "C" __attribute__((noinline)) void counted_loss(const Problem& p, float* cost) {
  OneThread executor;
  loss(p, cost, executor);
}
extern "C" __attribute__((noinline)) void counted_training(const Problem& p, float* cost, Residuals kept,
                                                           const float* cotangents, float* gradient) {
  OneThread executor;
  forward(p, cost, kept, executor);
  cotangent(p, kept, cotangents, gradient, executor);
}

extern "C" __attribute__((noinline)) void counted_product(const Problem& p, Residuals kept, const float* cotangents,
                                                          const float* direction, float* out) {
  OneThread executor;
  hvp(p, kept, cotangents, direction, false, out, executor);
}

int main(int, char** arguments) {
  std::FILE* file = std::fopen(arguments[1], "rb");
  if (file == nullptr) return 1;
  const std::vector<int64_t> size = read<int64_t>(file, 4);
  const Shape s = {1, size[0], size[1], size[2], size[3]};
  const std::vector<float> acts = read<float>(file, s.rows() * s.V);
  const std::vector<int32_t> labels = read<int32_t>(file, s.B * s.L), lengths = read<int32_t>(file, s.B);
  std::fclose(file);

  Problem p;
  static_cast<Batch&>(p) = {Dtype::kF32, s, acts.data(), labels.data(), lengths.data(), 0, true};
  p.threads = 1;
  std::vector<float> cost(s.B), rows(s.rows() * p.factors()), columns(s.rows() * s.columns());
  std::vector<float> cotangents(s.B, 1), gradient(s.rows() * s.V);
  const Residuals kept = {rows.data(), columns.data()};
  OneThread executor;
  loss(p, cost.data(), executor);  // makes the scratch memory
  counted_loss(p, cost.data());
  counted_training(p, cost.data(), kept, cotangents.data(), gradient.data());
  counted_product(p, kept, cotangents.data(), acts.data(), gradient.data());  // along acts
  std::printf("%s %.6f\n", instruction_set().name, double(cost[0]));
}

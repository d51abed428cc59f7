// SPDX-License-Identifier: Apache-2.0
// Costs and gradients of a few problems, in hexadecimal. Built by test_cross.py for several architectures: the problems
// are the same everywhere, because no library makes their random numbers.
#include <cstdint>
#include <cstdio>
#include <type_traits>
#include <vector>

#include "../../kernels/cpu/ctc.h"
#include "../../kernels/cpu/dispatch.h"

namespace {

using namespace jax_ctc;

class OneThread final : public Executor {
 public:
  int64_t threads() const override { return 1; }
  void schedule(std::function<void()> work) override { work(); }
};

uint64_t state = 1;
uint32_t random_bits() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(state >> 33);
}

template <class F> void solve(const char* name, int64_t T, int64_t B, int64_t V, int64_t L) {
  Shape s;
  s.N = 1, s.T = T, s.B = B, s.V = V, s.L = L;
  std::vector<F> acts(s.rows() * V), gradient(acts.size()), cost(B), alone(B), cotangents(B, F(1));
  std::vector<F> rows(s.dense() ? 0 : s.rows() * 2), columns(s.rows() * s.columns());
  std::vector<int32_t> labels(B * L), lengths(B);
  for (F& x : acts) x = F(int32_t(random_bits() >> 8) - (1 << 22)) / F(1 << 20);
  for (int32_t& x : labels) x = 1 + int32_t(random_bits() % uint32_t(V - 1));
  for (int64_t b = 0; b < B; ++b) lengths[b] = int32_t(T - b);

  OneThread executor;
  const Dtype dtype = std::is_same_v<F, float> ? Dtype::kF32 : Dtype::kF64;
  Problem p{};
  static_cast<Batch&>(p) = {dtype, s, acts.data(), labels.data(), lengths.data(), 0};
  p.threads = 1;
  const Residuals residuals = {rows.data(), columns.data()};
  loss(p, alone.data(), executor);
  forward(p, cost.data(), residuals, executor);
  cotangent(p, residuals, cotangents.data(), gradient.data(), executor);
  for (F x : alone) std::printf("%s loss %a\n", name, double(x));
  for (F x : cost) std::printf("%s cost %a\n", name, double(x));
  for (F x : gradient) std::printf("%s gradient %a\n", name, double(x));
}

}  // namespace

int main() {
  std::printf("%s\n", instruction_set().name);
  for (int64_t V : {5, 29, 300}) {
    solve<float>("f32", 60, 3, V, 12);
    solve<double>("f64", 60, 3, V, 12);
  }
}

// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels over the emulator against the CPU kernels, on random problems. Built with the address and the
// undefined-behaviour sanitizer by test_emulated.py: an access outside an array ends the program, shared memory too.
#include "../kernels/cpu/ctc.h"
#include "emulated.cpp"
#include "random_problem.h"

namespace {

class Alone final : public Executor {
 public:
  int64_t threads() const override { return 1; }
  void schedule(std::function<void()>) override {}
};

// Both NaN, both infinite, or as close as both promise together.
template <class F> bool close(F a, F b, double scale) {
  if (a != a || b != b) return a != a && b != b;
  const double tolerance = (sizeof(F) == 4 ? 2e-6 : 2e-11) * (1 + scale);
  return a == b || std::fabs(double(a) - double(b)) <= tolerance;
}

template <class F> void one(Dtype dtype, int seed) {
  RandomProblem<F> random(dtype);
  const Batch batch = random.batch();
  const int64_t n = batch.shape.sequences(), elements = batch.shape.rows() * batch.shape.V;
  emulator::seed(seed);
  emulator::shared_memory_limit() = sometimes(4) ? 40 << 10 : 227 << 10;  // strips

  Array<F> alone(n), cost(n), tangents(n), rows(random.kept_rows()), columns(random.kept_columns());
  const auto scratch = [&](cuda::Operation operation) {
    return Array<__int128>(n * cuda::scratch_stride(operation, dtype, batch.shape.T, batch.shape.L) / 16);
  };
  auto loss_scratch = scratch(cuda::Operation::kLoss), forward_scratch = scratch(cuda::Operation::kForward),
       tangent_scratch = scratch(cuda::Operation::kTangent), product_scratch = scratch(cuda::Operation::kProduct);
  const cuda::Problem p = {batch, nullptr};
  const Kept kept = {rows.data.get(), columns.data.get()};
  cuda::loss(p, alone.data.get(), loss_scratch.data.get());
  cuda::forward(p, cost.data.get(), kept, forward_scratch.data.get());
  cuda::tangent(p, kept, random.directions(), tangents.data.get(), tangent_scratch.data.get());

  Array<F> cpu_cost(n), cpu_tangents(n), cpu_rows(random.kept_rows()), cpu_columns(random.kept_columns());
  const Kept cpu_kept = {cpu_rows.data.get(), cpu_columns.data.get()};
  const Problem q = {batch, 1};
  Alone executor;
  forward(q, cpu_cost.data.get(), cpu_kept, executor);
  for (int64_t i = 0; i < n; ++i) {
    const F a = alone.data[i], b = cost.data[i], c = cpu_cost.data[i];
    if (a != b && (a == a || b == b)) random.fail(i, "cost alone, and with residuals", a, b);
    if (!close(b, c, std::fabs(double(c)))) random.fail(i, "cost, and the CPU kernel's", b, c);
  }
  for (int64_t i = 0; i < columns.size; ++i)
    if (!close(columns.data[i], cpu_columns.data[i], 0))
      random.fail(i, "element of columns, and the CPU kernel's", columns.data[i], cpu_columns.data[i]);
  for (int64_t i = 0; i < rows.size; ++i)
    if (!close(rows.data[i], cpu_rows.data[i], std::fabs(double(cpu_rows.data[i]))))
      random.fail(i, "element of rows, and the CPU kernel's", rows.data[i], cpu_rows.data[i]);

  // From the same residuals: products, and the gradient in the place of acts.
  const int64_t bytes = elements * (dtype == Dtype::kF64 ? 8 : dtype == Dtype::kF32 ? 4 : 2);
  Array<char> out(bytes), cpu_out(bytes), gradient(bytes);
  const F* const cotangents = random.cotangents.data.get();
  cuda::product(p, kept, cotangents, random.directions(), out.data.get(), product_scratch.data.get());
  product(q, kept, cotangents, random.directions(), cpu_out.data.get(), executor);
  const double largest = random.largest_direction();
  for (int64_t i = 0; i < elements && !random.half() && largest < 1e30; ++i) {
    F a, b;
    std::memcpy(&a, out.data.get() + i * sizeof(F), sizeof a);
    std::memcpy(&b, cpu_out.data.get() + i * sizeof(F), sizeof b);
    const F cotangent = cotangents[batch.shape.sequence_of_row(i / batch.shape.V)];
    if (std::isfinite(cotangent) && !close(a, b, 5 * largest * std::fabs(double(cotangent))))
      random.fail(i, "element of a product, and the CPU kernel's", a, b);
  }
  cotangent(q, kept, cotangents, gradient.data.get(), executor);
  cuda::cotangent(p, kept, cotangents, random.acts());
  if (random.half()) return;
  for (int64_t i = 0; i < elements; ++i) {
    F a;
    std::memcpy(&a, gradient.data.get() + i * sizeof(F), sizeof a);
    const F cotangent = cotangents[batch.shape.sequence_of_row(i / batch.shape.V)];
    if (!std::isfinite(cotangent)) continue;
    if (!close(random.wide.data[i], a, std::fabs(double(cotangent))))
      random.fail(i, "element of the gradient, and the CPU kernel's", random.wide.data[i], a);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  for (int seed = 0; seed < rounds; ++seed) {
    generator.seed(seed);
    one<float>(Dtype::kF32, seed);
    one<double>(Dtype::kF64, seed);
    one<float>(Dtype::kBF16, seed);
    one<float>(Dtype::kF16, seed);
  }
  std::printf("%d rounds\n", rounds);
}

// SPDX-License-Identifier: Apache-2.0
// What tests/support/emulated.py calls: the CUDA kernels, compiled as C++ over the emulator.
#include "../../kernels/cuda/ctc.h"
#include "emulator.h"

using namespace jax_ctc;

extern "C" {

void set_seed(unsigned seed) { emulator::seed(seed); }
void set_shared_memory_limit(int bytes) { emulator::shared_memory_limit() = bytes; }
void set_multiprocessors(int count) { emulator::multiprocessors() = count; }
void set_refusals(int refuses) { emulator::refuses_attributes() = refuses != 0; }

int64_t launches() { return emulator::machine().launches; }
// Of each of the last six: blocks, threads of a block, bytes of shared memory.
void last_launches(int64_t* out) {
  for (const auto& launch : emulator::machine().last_launches) out = std::copy(launch.begin(), launch.end(), out);
}

int64_t scratch_bytes(int operation, int dtype, int64_t T, int64_t L) {
  Batch batch = {};
  batch.dtype = static_cast<Dtype>(dtype), batch.shape.T = T, batch.shape.L = L;
  return cuda::scratch_stride(static_cast<cuda::Operation>(operation), batch);
}

static cuda::Problem problem(int dtype, const int64_t* shape, const void* acts, const int32_t* labels,
                             const int32_t* lengths, int32_t blank) {
  return {{static_cast<Dtype>(dtype), {shape[0], shape[1], shape[2], shape[3], shape[4]}, acts, labels, lengths, blank},
          nullptr};
}

static int outcome(const char* wrong) {
  if (wrong != nullptr) std::fprintf(stderr, "%s\n", wrong);
  return wrong != nullptr;
}

// Any of the results may be null, and then is not asked for; rows and columns belong together. Returns 0, or 1.
int solve(int dtype, const int64_t* shape, const void* acts, const int32_t* labels, const int32_t* lengths,
          int32_t blank, void* cost, void* rows, void* columns, void* scratch, const void* cotangents, void* gradient,
          const void* directions, void* tangents, void* tangent_scratch) {
  const cuda::Problem p = problem(dtype, shape, acts, labels, lengths, blank);
  const char* wrong =
      columns != nullptr ? cuda::forward(p, cost, {rows, columns}, scratch) : cuda::loss(p, cost, scratch);
  if (wrong == nullptr && tangents != nullptr)
    wrong = cuda::tangent(p, {rows, columns}, directions, tangents, tangent_scratch);
  if (wrong == nullptr && gradient != nullptr) wrong = cuda::cotangent(p, {rows, columns}, cotangents, gradient);
  return outcome(wrong);
}

// The gradient times cotangents, and the tangents of directions, from any residuals. Each returns 0, or 1.
int cotangent(int dtype, const int64_t* shape, const void* acts, const int32_t* labels, const int32_t* lengths,
              int32_t blank, void* rows, void* columns, const void* cotangents, void* gradient) {
  const cuda::Problem p = problem(dtype, shape, acts, labels, lengths, blank);
  return outcome(cuda::cotangent(p, {rows, columns}, cotangents, gradient));
}
int tangent(int dtype, const int64_t* shape, const void* acts, const int32_t* labels, const int32_t* lengths,
            int32_t blank, void* rows, void* columns, const void* directions, void* tangents, void* scratch) {
  const cuda::Problem p = problem(dtype, shape, acts, labels, lengths, blank);
  return outcome(cuda::tangent(p, {rows, columns}, directions, tangents, scratch));
}

// A Hessian-vector product, from what `solve` kept. Returns 0, or 1.
int hvp(int dtype, const int64_t* shape, const void* acts, const int32_t* labels, const int32_t* lengths, int32_t blank,
        void* rows, void* columns, const void* cotangents, const void* directions, void* out, void* scratch) {
  const cuda::Problem p = problem(dtype, shape, acts, labels, lengths, blank);
  return outcome(cuda::hvp(p, {rows, columns}, cotangents, directions, out, scratch));
}

// The best path. Returns 0, or 1.
int align(int dtype, const int64_t* shape, const void* acts, const int32_t* labels, const int32_t* lengths,
          int32_t blank, int softmax, int star, int32_t* path, int32_t* label_index, void* score, void* scratch) {
  cuda::Problem p = problem(dtype, shape, acts, labels, lengths, blank);
  p.softmax = softmax;
  return outcome(cuda::align(p, star != 0, {path, label_index, score}, scratch));
}

}  // extern "C"

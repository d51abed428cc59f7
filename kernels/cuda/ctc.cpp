// SPDX-License-Identifier: Apache-2.0
#include "ctc.h"

#include "align_workspace.h"
#include "launchers.h"
#include "workspace.h"

namespace jax_ctc {
namespace cuda {

int64_t scratch_bytes(Operation operation, Dtype dtype, int64_t T, int64_t L) {
  if (operation == Operation::kTangent) return T * int64_t(sizeof(double)) + JAX_CTC_GAP;
  char nowhere[64];  // only measured
  const auto measure = [&](auto type) {
    using F = decltype(type);
    if (operation == Operation::kAlign) return AlignWorkspace<F>(nowhere, T, L).bytes;
    if (operation == Operation::kHvp) return Workspace<Dual<F>>(nowhere, T, L, true).bytes;
    return Workspace<Scaled<F>>(nowhere, T, L, operation == Operation::kForward).bytes;
  };
  return dtype == Dtype::kF64 ? measure(double()) : measure(float());
}
int64_t scratch_stride(Operation operation, const Batch& p) {
  return (scratch_bytes(operation, p.dtype, p.shape.T, p.shape.L) + 15) / 16 * 16;
}

const char* loss(const Problem& p, void* cost, void* scratch) { return forward(p, cost, {nullptr, nullptr}, scratch); }

const char* forward(const Problem& p, void* cost, Residuals residuals, void* scratch) {
  const bool training = residuals.columns != nullptr;
  const char* wrong = launch_rows(p, residuals, scratch);
  if (wrong == nullptr) wrong = launch_lattice(p, training, cost, scratch);
  return wrong != nullptr || !training ? wrong : launch_occupancies(p, residuals, scratch);
}

const char* tangent(const Problem& p, Residuals residuals, const void* directions, void* tangents, void* scratch) {
  const char* wrong = launch_tangent_rows(p, residuals, directions, scratch);
  return wrong != nullptr ? wrong : launch_tangent_sums(p, tangents, scratch);
}

const char* cotangent(const Problem& p, Residuals residuals, const void* cotangents, void* gradient) {
  return launch_gradient(p, residuals, cotangents, gradient);
}

const char* hvp(const Problem& p, Residuals residuals, const void* cotangents, const void* directions, void* out,
                void* scratch) {
  const char* wrong = launch_hvp_rows(p, residuals, directions, scratch);
  if (wrong == nullptr) wrong = launch_hvp_lattice(p, scratch);
  if (wrong == nullptr) wrong = launch_hvp_occupancies(p, scratch);
  return wrong != nullptr ? wrong : launch_hvp(p, cotangents, directions, out, scratch);
}

const char* align(const Problem& p, bool star, Alignment out, void* scratch) {
  const char* wrong = launch_align_rows(p, star, scratch);
  return wrong != nullptr ? wrong : launch_align(p, out, scratch);
}

}  // namespace cuda
}  // namespace jax_ctc

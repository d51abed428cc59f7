// SPDX-License-Identifier: Apache-2.0
// XLA's calls -> ctc.h, into the stream they come with. The only CUDA file that knows XLA's types.
//
// All handlers may become part of a CUDA graph: they launch the same kernels on every call, wait for nothing and
// allocate nothing. Memory that kernels pass on to each other is the last result of the call.
#include <cuda_runtime_api.h>

#include "../common/ffi_targets.h"
#include "../common/handlers.h"
#include "ctc.h"

namespace jax_ctc {
namespace {

#define CTC_DECODE                                                                                          \
  const ffi::ErrorOr<Batch> batch = decode(acts, labels, lengths, {time_axis, time_moved, blank, threads}); \
  if (!batch.has_value()) return batch.error();                                                             \
  const cuda::Problem p = {*batch, stream}

bool is_scratch(const Batch& p, cuda::Operation operation, Buffer array) {
  const int64_t bytes = p.shape.sequences() * cuda::scratch_stride(operation, p.dtype, p.shape.T, p.shape.L);
  return array.element_type() == ffi::U8 && int64_t(array.element_count()) >= bytes;
}

ffi::Error outcome(const char* wrong) {
  return wrong == nullptr ? ffi::Error::Success() : ffi::Error::Internal(std::string("jax_ctc on CUDA: ") + wrong);
}

ffi::Error loss_handler(cudaStream_t stream, CTC_OPERANDS, Result cost, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!LossTarget::fits(p, *cost) || !is_scratch(p, cuda::Operation::kLoss, *scratch))
    return mismatch(LossTarget::name);
  return outcome(cuda::loss(p, cost->untyped_data(), scratch->untyped_data()));
}

ffi::Error forward_handler(cudaStream_t stream, CTC_OPERANDS, Result cost, Result rows, Result columns, Result scratch,
                           CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!ForwardTarget::fits(p, *cost, *rows, *columns) || !is_scratch(p, cuda::Operation::kForward, *scratch))
    return mismatch(ForwardTarget::name);
  return outcome(
      cuda::forward(p, cost->untyped_data(), {rows->untyped_data(), columns->untyped_data()}, scratch->untyped_data()));
}

ffi::Error tangent_handler(cudaStream_t stream, CTC_OPERANDS, Buffer rows, Buffer columns, Buffer direction,
                           Result tangents, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!TangentTarget::fits(p, rows, columns, direction, *tangents) ||
      !is_scratch(p, cuda::Operation::kTangent, *scratch))
    return mismatch(TangentTarget::name);
  return outcome(cuda::tangent(p, {rows.untyped_data(), columns.untyped_data()}, direction.untyped_data(),
                               tangents->untyped_data(), scratch->untyped_data()));
}

ffi::Error cotangent_handler(cudaStream_t stream, CTC_OPERANDS, Buffer rows, Buffer columns, Buffer cotangents,
                             Result gradient, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!CotangentTarget::fits(p, rows, columns, cotangents, *gradient)) return mismatch(CotangentTarget::name);
  return outcome(cuda::cotangent(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(),
                                 gradient->untyped_data()));
}

ffi::Error hvp_handler(cudaStream_t stream, CTC_OPERANDS, Buffer rows, Buffer columns, Buffer cotangents,
                       Buffer direction, Result out, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!HvpTarget::fits(p, rows, columns, cotangents, direction, *out) ||
      !is_scratch(p, cuda::Operation::kHvp, *scratch))
    return mismatch(HvpTarget::name);
  return outcome(cuda::hvp(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(),
                           direction.untyped_data(), out->untyped_data(), scratch->untyped_data()));
}

template <class Target> auto bind() {
  return Target::bind(with_operands(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()));
}
template <class Target> auto binding() { return with_attributes(bind<Target>()); }
template <class Target> auto binding_with_scratch() { return with_attributes(bind<Target>().template Ret<Buffer>()); }

XLA_FFI_DEFINE_HANDLER(kLoss, loss_handler, binding_with_scratch<LossTarget>(), {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kForward, forward_handler, binding_with_scratch<ForwardTarget>(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kTangent, tangent_handler, binding_with_scratch<TangentTarget>(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kCotangent, cotangent_handler, binding<CotangentTarget>(), {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kHvp, hvp_handler, binding_with_scratch<HvpTarget>(), {ffi::Traits::kCmdBufferCompatible});

}  // namespace

std::vector<std::pair<const char*, Handler*>> handlers() {
  return {{LossTarget::name, kLoss},
          {ForwardTarget::name, kForward},
          {TangentTarget::name, kTangent},
          {CotangentTarget::name, kCotangent},
          {HvpTarget::name, kHvp}};
}

std::pair<int, int> ffi_api_version() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

}  // namespace jax_ctc

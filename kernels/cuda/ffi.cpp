// SPDX-License-Identifier: Apache-2.0
// XLA's calls -> ctc.h, into the stream they come with. The only CUDA file that knows XLA's types.
//
// All handlers may become part of a CUDA graph: they launch the same kernels on every call, wait for nothing and
// allocate nothing. Memory that kernels pass on to each other is the last result of the call.
#include "ffi.h"

#include <cuda_runtime_api.h>

#include "../common/ffi_decode.h"
#include "ctc.h"

namespace jax_ctc {
namespace {

#define CTC_OPERANDS cudaStream_t stream, Buffer acts, Ints labels, Ints lengths
#define CTC_ATTRIBUTES int64_t time_axis, bool time_moved, int64_t blank, int64_t threads
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

ffi::Error loss_handler(CTC_OPERANDS, Result cost, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!computed(p, *cost, p.shape.sequences()) || !is_scratch(p, cuda::Operation::kLoss, *scratch))
    return mismatch("jax_ctc_loss");
  return outcome(cuda::loss(p, cost->untyped_data(), scratch->untyped_data()));
}

ffi::Error forward_handler(CTC_OPERANDS, Result cost, Result rows, Result columns, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!computed(p, *cost, p.shape.sequences()) || !residuals(p, *rows, *columns) ||
      !is_scratch(p, cuda::Operation::kForward, *scratch))
    return mismatch("jax_ctc_forward");
  return outcome(
      cuda::forward(p, cost->untyped_data(), {rows->untyped_data(), columns->untyped_data()}, scratch->untyped_data()));
}

ffi::Error tangent_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer directions, Result tangents,
                           Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !like_acts(p, acts, directions) || !computed(p, *tangents, p.shape.sequences()) ||
      !is_scratch(p, cuda::Operation::kTangent, *scratch))
    return mismatch("jax_ctc_tangent");
  return outcome(cuda::tangent(p, {rows.untyped_data(), columns.untyped_data()}, directions.untyped_data(),
                               tangents->untyped_data(), scratch->untyped_data()));
}

ffi::Error cotangent_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer cotangents, Result gradient,
                             CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !computed(p, cotangents, p.shape.sequences()) || !like_acts(p, acts, *gradient))
    return mismatch("jax_ctc_cotangent");
  return outcome(cuda::cotangent(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(),
                                 gradient->untyped_data()));
}

ffi::Error hvp_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer cotangents, Buffer directions, Result products,
                       Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !computed(p, cotangents, p.shape.sequences()) ||
      !like_acts(p, acts, directions) || !like_acts(p, acts, *products) ||
      !is_scratch(p, cuda::Operation::kProduct, *scratch))
    return mismatch("jax_ctc_hvp");
  return outcome(cuda::product(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(),
                               directions.untyped_data(), products->untyped_data(), scratch->untyped_data()));
}

// acts, labels, lengths; then per target.
auto operands() {
  return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>().Arg<Buffer>().Arg<Ints>().Arg<Ints>();
}

XLA_FFI_DEFINE_HANDLER(kLoss, loss_handler, with_attributes(operands().Ret<Buffer>().Ret<Buffer>()),  // cost, scratch
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kForward, forward_handler,
                       with_attributes(operands()
                                           .Ret<Buffer>()    // cost
                                           .Ret<Buffer>()    // rows
                                           .Ret<Buffer>()    // columns
                                           .Ret<Buffer>()),  // scratch
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kTangent, tangent_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()    // rows
                                           .Arg<Buffer>()    // columns
                                           .Arg<Buffer>()    // directions
                                           .Ret<Buffer>()    // tangents
                                           .Ret<Buffer>()),  // scratch
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kCotangent, cotangent_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()    // rows
                                           .Arg<Buffer>()    // columns
                                           .Arg<Buffer>()    // cotangents
                                           .Ret<Buffer>()),  // gradient
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kHvp, hvp_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()    // rows
                                           .Arg<Buffer>()    // columns
                                           .Arg<Buffer>()    // cotangents
                                           .Arg<Buffer>()    // directions
                                           .Ret<Buffer>()    // products
                                           .Ret<Buffer>()),  // scratch
                       {ffi::Traits::kCmdBufferCompatible});

}  // namespace

std::vector<std::pair<const char*, Handler*>> cuda_handlers() {
  return {{"jax_ctc_loss_v1", kLoss},
          {"jax_ctc_forward_v1", kForward},
          {"jax_ctc_tangent_v1", kTangent},
          {"jax_ctc_cotangent_v1", kCotangent},
          {"jax_ctc_hvp_v1", kHvp}};
}

std::pair<int, int> ffi_api_version() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

}  // namespace jax_ctc

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

#define CTC_DECODE                                                                                                   \
  const ffi::ErrorOr<Batch> batch = decode(acts, labels, lengths, {time_axis, time_moved, blank, threads, softmax}); \
  if (!batch.has_value()) return batch.error();                                                                      \
  const cuda::Problem p = {*batch, stream}

bool is_scratch(const Batch& p, cuda::Operation operation, Buffer array) {
  const int64_t bytes = p.shape.sequences() * cuda::scratch_stride(operation, p);
  return array.element_type() == ffi::U8 && int64_t(array.element_count()) >= bytes;
}

ffi::Error outcome(const char* wrong) {
  return wrong == nullptr ? ffi::Error::Success() : ffi::Error::Internal(std::string("jax_ctc on CUDA: ") + wrong);
}

template <bool softmax>
ffi::Error loss_handler(cudaStream_t stream, CTC_OPERANDS, Result cost, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!LossTarget::fits(p, *cost) || !is_scratch(p, cuda::Operation::kLoss, *scratch))
    return mismatch(name_of<LossTarget>(softmax));
  return outcome(cuda::loss(p, cost->untyped_data(), scratch->untyped_data()));
}

template <bool softmax> ffi::Error forward_handler(cudaStream_t stream, CTC_OPERANDS, Result cost, Result rows,
                                                   Result columns, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!ForwardTarget::fits(p, *cost, *rows, *columns) || !is_scratch(p, cuda::Operation::kForward, *scratch))
    return mismatch(name_of<ForwardTarget>(softmax));
  return outcome(
      cuda::forward(p, cost->untyped_data(), {rows->untyped_data(), columns->untyped_data()}, scratch->untyped_data()));
}

template <bool softmax> ffi::Error tangent_handler(cudaStream_t stream, CTC_OPERANDS, Buffer rows, Buffer columns,
                                                   Buffer direction, Result tangents, Result scratch, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!TangentTarget::fits(p, rows, columns, direction, *tangents) ||
      !is_scratch(p, cuda::Operation::kTangent, *scratch))
    return mismatch(name_of<TangentTarget>(softmax));
  return outcome(cuda::tangent(p, {rows.untyped_data(), columns.untyped_data()}, direction.untyped_data(),
                               tangents->untyped_data(), scratch->untyped_data()));
}

template <bool softmax> ffi::Error cotangent_handler(cudaStream_t stream, CTC_OPERANDS, Buffer rows, Buffer columns,
                                                     Buffer cotangents, Result gradient, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!CotangentTarget::fits(p, rows, columns, cotangents, *gradient))
    return mismatch(name_of<CotangentTarget>(softmax));
  return outcome(cuda::cotangent(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(),
                                 gradient->untyped_data()));
}

template <bool softmax> ffi::Error hvp_handler(cudaStream_t stream, CTC_OPERANDS, Buffer rows, Buffer columns,
                                               Buffer cotangents, Buffer direction, Result out, Result scratch,
                                               CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!HvpTarget::fits(p, rows, columns, cotangents, direction, *out) ||
      !is_scratch(p, cuda::Operation::kHvp, *scratch))
    return mismatch(name_of<HvpTarget>(softmax));
  return outcome(cuda::hvp(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(),
                           direction.untyped_data(), out->untyped_data(), scratch->untyped_data()));
}

ffi::Error align_handler(cudaStream_t stream, CTC_OPERANDS, IntsResult path, IntsResult label_index, Result score,
                         Result scratch, CTC_ATTRIBUTES, bool softmax, bool star) {
  CTC_DECODE;
  if (!AlignTarget::fits(p, *path, *label_index, *score) || !is_scratch(p, cuda::Operation::kAlign, *scratch))
    return mismatch(AlignTarget::name);
  const Alignment out = {path->typed_data(), label_index->typed_data(), score->untyped_data()};
  return outcome(cuda::align(p, star, out, scratch->untyped_data()));
}

template <class Target> auto bind() {
  return Target::bind(with_operands(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>()));
}
template <class Target> auto binding() { return with_attributes(bind<Target>()); }
template <class Target> auto binding_with_scratch() { return with_attributes(bind<Target>().template Ret<Buffer>()); }

#define CTC_HANDLER(name, handler, binding) \
  XLA_FFI_DEFINE_HANDLER(name, handler, binding, {ffi::Traits::kCmdBufferCompatible})
CTC_HANDLER(kLoss, loss_handler<true>, binding_with_scratch<LossTarget>());
CTC_HANDLER(kLossOfScores, loss_handler<false>, binding_with_scratch<LossTarget>());
CTC_HANDLER(kForward, forward_handler<true>, binding_with_scratch<ForwardTarget>());
CTC_HANDLER(kForwardOfScores, forward_handler<false>, binding_with_scratch<ForwardTarget>());
CTC_HANDLER(kTangent, tangent_handler<true>, binding_with_scratch<TangentTarget>());
CTC_HANDLER(kTangentOfScores, tangent_handler<false>, binding_with_scratch<TangentTarget>());
CTC_HANDLER(kCotangent, cotangent_handler<true>, binding<CotangentTarget>());
CTC_HANDLER(kCotangentOfScores, cotangent_handler<false>, binding<CotangentTarget>());
CTC_HANDLER(kHvp, hvp_handler<true>, binding_with_scratch<HvpTarget>());
CTC_HANDLER(kHvpOfScores, hvp_handler<false>, binding_with_scratch<HvpTarget>());
CTC_HANDLER(kAlign, align_handler, AlignTarget::with_options(binding_with_scratch<AlignTarget>()));

}  // namespace

std::vector<std::pair<const char*, Handler*>> handlers() {
  return {{LossTarget::name, kLoss},
          {LossTarget::of_scores, kLossOfScores},
          {ForwardTarget::name, kForward},
          {ForwardTarget::of_scores, kForwardOfScores},
          {TangentTarget::name, kTangent},
          {TangentTarget::of_scores, kTangentOfScores},
          {CotangentTarget::name, kCotangent},
          {CotangentTarget::of_scores, kCotangentOfScores},
          {HvpTarget::name, kHvp},
          {HvpTarget::of_scores, kHvpOfScores},
          {AlignTarget::name, kAlign}};
}

std::pair<int, int> ffi_api_version() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

}  // namespace jax_ctc

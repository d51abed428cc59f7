// SPDX-License-Identifier: Apache-2.0
// Decodes and checks XLA's buffers and calls ctc.h. The only CPU file that knows XLA's types.
//
// Python has checked the caller before it ever gets here; the checks below are for programs that bypass it.
#include "ffi.h"

#include <limits>
#include <optional>
#include <string>

#include "ctc.h"
#include "xla/ffi/api/ffi.h"

namespace jax_ctc {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;
using Ints = ffi::Buffer<ffi::S32>;

class PoolExecutor final : public Executor {
 public:
  explicit PoolExecutor(ffi::ThreadPool pool) : pool_(pool) {}
  int64_t threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> work) override { pool_.Schedule(std::move(work)); }

 private:
  ffi::ThreadPool pool_;
};

std::optional<Dtype> dtype_of(ffi::DataType type) {
  switch (type) {
    case ffi::F32: return Dtype::kF32;
    case ffi::F64: return Dtype::kF64;
    case ffi::BF16: return Dtype::kBF16;
    case ffi::F16: return Dtype::kF16;
    default: return std::nullopt;
  }
}

// acts are row-major with T at time_axis among the axes before V. `time_moved`: the logical shape has T next to V, as
// the partitioner wants it, and only the layout keeps it at time_axis.
ffi::ErrorOr<Shape> shape_of(Buffer acts, Ints labels, int64_t time_axis, bool time_moved) {
  const auto dims = acts.dimensions();
  const auto label_dims = labels.dimensions();
  const int64_t rank = dims.size();
  if (rank < 2 || time_axis < 0 || time_axis > rank - 2 || int64_t(label_dims.size()) != rank - 1)
    return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: acts of rank " + std::to_string(rank) +
                                                       " do not go with time_axis " + std::to_string(time_axis) +
                                                       " and labels of rank " + std::to_string(label_dims.size())));
  Shape s = {1, dims[time_moved ? rank - 2 : time_axis], 1, dims[rank - 1], label_dims[rank - 2]};
  int64_t axis = 0;  // of the batch
  for (int64_t k = 0; k < rank - 1; ++k) {
    if (k == (time_moved ? rank - 2 : time_axis)) continue;
    (axis++ < time_axis ? s.N : s.B) *= dims[k];
  }
  return s;
}

struct Attributes {
  int64_t time_axis;
  bool time_moved;
  int64_t blank;
  int64_t threads;  // 0: as many as there are
};

ffi::ErrorOr<Problem> decode(Buffer acts, Ints labels, Ints lengths, const Attributes& attributes) {
  const std::optional<Dtype> dtype = dtype_of(acts.element_type());
  if (!dtype) return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: acts must be f32, f64, bf16 or f16"));
  ffi::ErrorOr<Shape> s = shape_of(acts, labels, attributes.time_axis, attributes.time_moved);
  if (!s.has_value()) return ffi::Unexpected(s.error());
  if (int64_t(lengths.element_count()) != s->sequences() || int64_t(labels.element_count()) != s->sequences() * s->L)
    return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: acts, labels and lengths disagree on the batch"));
  if (attributes.blank < 0 || attributes.blank >= s->V || s->V > std::numeric_limits<int32_t>::max())
    return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: blank must be a class of acts, and V fit an int32"));
  return Problem{*dtype,
                 *s,
                 acts.untyped_data(),
                 labels.typed_data(),
                 lengths.typed_data(),
                 int32_t(attributes.blank),
                 attributes.threads > 0 ? attributes.threads : std::numeric_limits<int64_t>::max()};
}

// An array of `count` elements of acts' dtype, or of the one that results have.
bool like_acts(const Problem& p, Buffer acts, Buffer array) {
  return array.element_type() == acts.element_type() && int64_t(array.element_count()) == p.shape.rows() * p.shape.V;
}
bool computed(const Problem& p, Buffer array, int64_t count) {
  return array.element_type() == (p.dtype == Dtype::kF64 ? ffi::F64 : ffi::F32) &&
         int64_t(array.element_count()) == count;
}
bool residuals(const Problem& p, Buffer rows, Buffer columns) {
  return computed(p, rows, p.shape.dense() ? 0 : p.shape.rows() * 2) &&
         computed(p, columns, p.shape.rows() * p.shape.columns());
}
ffi::Error mismatch(const char* target) {
  return ffi::Error::InvalidArgument(std::string("jax_ctc: an operand or result of ") + target +
                                     " has a shape or dtype that does not go with acts");
}

#define CTC_OPERANDS ffi::ThreadPool pool, Buffer acts, Ints labels, Ints lengths
#define CTC_ATTRIBUTES int64_t time_axis, bool time_moved, int64_t blank, int64_t threads
#define CTC_DECODE                                                                                              \
  const ffi::ErrorOr<Problem> problem = decode(acts, labels, lengths, {time_axis, time_moved, blank, threads}); \
  if (!problem.has_value()) return problem.error();                                                             \
  const Problem& p = *problem;                                                                                  \
  PoolExecutor executor(pool)

ffi::Error loss_handler(CTC_OPERANDS, Result cost, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!computed(p, *cost, p.shape.sequences())) return mismatch("jax_ctc_loss");
  loss(p, cost->untyped_data(), executor);
  return ffi::Error::Success();
}

ffi::Error forward_handler(CTC_OPERANDS, Result cost, Result rows, Result columns, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!computed(p, *cost, p.shape.sequences()) || !residuals(p, *rows, *columns)) return mismatch("jax_ctc_forward");
  forward(p, cost->untyped_data(), {rows->untyped_data(), columns->untyped_data()}, executor);
  return ffi::Error::Success();
}

ffi::Error tangent_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer directions, Result tangents,
                           CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !like_acts(p, acts, directions) || !computed(p, *tangents, p.shape.sequences()))
    return mismatch("jax_ctc_tangent");
  tangent(p, {rows.untyped_data(), columns.untyped_data()}, directions.untyped_data(), tangents->untyped_data(),
          executor);
  return ffi::Error::Success();
}

ffi::Error cotangent_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer cotangents, Result gradient,
                             CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !computed(p, cotangents, p.shape.sequences()) || !like_acts(p, acts, *gradient))
    return mismatch("jax_ctc_cotangent");
  cotangent(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(), gradient->untyped_data(),
            executor);
  return ffi::Error::Success();
}

// acts, labels, lengths; then per target.
auto operands() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Buffer>().Arg<Ints>().Arg<Ints>(); }
template <class Binding> auto with_attributes(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("time_axis")
      .template Attr<bool>("time_moved")
      .template Attr<int64_t>("blank")
      .template Attr<int64_t>("threads");
}

XLA_FFI_DEFINE_HANDLER(kLoss, loss_handler, with_attributes(operands().Ret<Buffer>()));  // cost
XLA_FFI_DEFINE_HANDLER(kForward, forward_handler,
                       with_attributes(operands().Ret<Buffer>().Ret<Buffer>().Ret<Buffer>()));  // cost, rows, columns
XLA_FFI_DEFINE_HANDLER(kTangent, tangent_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()     // rows
                                           .Arg<Buffer>()     // columns
                                           .Arg<Buffer>()     // directions
                                           .Ret<Buffer>()));  // tangents
XLA_FFI_DEFINE_HANDLER(kCotangent, cotangent_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()     // rows
                                           .Arg<Buffer>()     // columns
                                           .Arg<Buffer>()     // cotangents
                                           .Ret<Buffer>()));  // gradient

}  // namespace

std::vector<std::pair<const char*, Handler*>> cpu_handlers() {
  return {{"jax_ctc_loss_v1", kLoss},
          {"jax_ctc_forward_v1", kForward},
          {"jax_ctc_tangent_v1", kTangent},
          {"jax_ctc_cotangent_v1", kCotangent}};
}

std::pair<int, int> ffi_api_version() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

}  // namespace jax_ctc

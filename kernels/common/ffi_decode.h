// SPDX-License-Identifier: Apache-2.0
// XLA's buffers and attributes -> a batch. Only the ffi.cpp of each backend includes this, because no other file knows
// XLA's types.
//
// Python has checked its caller before. The checks below are for programs that bypass Python.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "batch.h"
#include "xla/ffi/api/ffi.h"

namespace jax_ctc {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;
using Ints = ffi::Buffer<ffi::S32>;
using IntsResult = ffi::Result<Ints>;

inline std::optional<Dtype> dtype_of(ffi::DataType type) {
  switch (type) {
    case ffi::F32: return Dtype::kF32;
    case ffi::F64: return Dtype::kF64;
    case ffi::BF16: return Dtype::kBF16;
    case ffi::F16: return Dtype::kF16;
    default: return std::nullopt;
  }
}

// Whether every product of these sizes, in bytes or in elements, fits an int64. An empty array may have huge sides. A
// Hessian-vector product of doubles has the largest scratch memory: below 1024 bytes a frame and column for any sizes.
inline bool is_countable(const Shape& s) {
  int64_t n = 1024;
  for (const int64_t size : {s.N, s.T, s.B, std::max(s.V, s.L + 1)})
    if (__builtin_mul_overflow(n, std::max<int64_t>(size, 1), &n)) return false;
  return true;
}

// In memory acts are row-major, with T at `time_axis` among the axes before V. If `time_moved`, the logical shape has T
// next to V, because XLA's partitioner needs that, and only the layout keeps T at `time_axis`.
inline ffi::ErrorOr<Shape> shape_of(Buffer acts, Ints labels, int64_t time_axis, bool time_moved) {
  const auto dims = acts.dimensions();
  const auto label_dims = labels.dimensions();
  const int64_t rank = dims.size();
  if (rank < 2 || time_axis < 0 || time_axis > rank - 2 || int64_t(label_dims.size()) != rank - 1)
    return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: acts of rank " + std::to_string(rank) +
                                                       " do not go with time_axis " + std::to_string(time_axis) +
                                                       " and labels of rank " + std::to_string(label_dims.size())));
  Shape s = {1, dims[time_moved ? rank - 2 : time_axis], 1, dims[rank - 1], label_dims[rank - 2]};
  if (s.T < 0 || s.V < 0 || s.L < 0 || s.V > std::numeric_limits<int32_t>::max() || std::max(s.T, s.L) > kMostSteps)
    return ffi::Unexpected(ffi::Error::InvalidArgument(
        "jax_ctc: T, V and L must not be negative, and V, T + 1024 and L + 1024 fit an int32"));
  int64_t axis = 0;  // number of the batch axis
  bool counted = true;
  for (int64_t k = 0; k < rank - 1; ++k) {
    if (k == (time_moved ? rank - 2 : time_axis)) continue;
    int64_t& size = axis++ < time_axis ? s.N : s.B;
    counted = counted && dims[k] >= 0 && !__builtin_mul_overflow(size, dims[k], &size);
  }
  if (!counted || !is_countable(s))
    return ffi::Unexpected(
        ffi::Error::InvalidArgument("jax_ctc: acts and labels have more elements than an int64 counts"));
  return s;
}

struct Attributes {
  int64_t time_axis;
  bool time_moved;
  int64_t blank;
  int64_t threads;  // the most that a CPU kernel may use, or 0 for no limit
  bool softmax;     // of Batch; an attribute of some targets, and part of the name of others
};

inline ffi::ErrorOr<Batch> decode(Buffer acts, Ints labels, Ints lengths, const Attributes& attributes) {
  const std::optional<Dtype> dtype = dtype_of(acts.element_type());
  if (!dtype) return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: acts must be f32, f64, bf16 or f16"));
  ffi::ErrorOr<Shape> s = shape_of(acts, labels, attributes.time_axis, attributes.time_moved);
  if (!s.has_value()) return ffi::Unexpected(s.error());
  if (int64_t(lengths.element_count()) != s->sequences() || int64_t(labels.element_count()) != s->sequences() * s->L)
    return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: acts, labels and lengths disagree on the batch"));
  if (attributes.blank < 0 || attributes.blank >= s->V)
    return ffi::Unexpected(ffi::Error::InvalidArgument("jax_ctc: blank must be a class of acts"));
  return Batch{*dtype,
               *s,
               acts.untyped_data(),
               labels.typed_data(),
               lengths.typed_data(),
               int32_t(attributes.blank),
               attributes.softmax};
}

// Whether an array has the dtype and the number of elements of acts.
inline bool is_like_acts(const Batch& p, Buffer array) {
  return dtype_of(array.element_type()) == p.dtype && int64_t(array.element_count()) == p.shape.rows() * p.shape.V;
}

// Whether an array has the dtype of costs and residuals, and this many elements.
inline bool has_elements(const Batch& p, Buffer array, int64_t elements) {
  return array.element_type() == (p.dtype == Dtype::kF64 ? ffi::F64 : ffi::F32) &&
         int64_t(array.element_count()) == elements;
}
inline bool is_per_sequence(const Batch& p, Buffer array) { return has_elements(p, array, p.shape.sequences()); }
inline bool is_per_row(const Batch& p, Buffer array, int64_t width) {
  return has_elements(p, array, p.shape.rows() * width);
}
inline bool are_residuals(const Batch& p, Buffer rows, Buffer columns) {
  return is_per_row(p, rows, p.factors()) && is_per_row(p, columns, p.shape.columns());
}

}  // namespace
}  // namespace jax_ctc

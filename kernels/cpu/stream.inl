// SPDX-License-Identifier: Apache-2.0
// The backward pass and forward mode, a row at a time, from what the forward pass kept (docs/ctc.md, eq. 9 and 10).
#pragma once

#include "convert.inl"
#include "rows.inl"

namespace jax_ctc {
namespace {

// Where half-precision rows are worked on, a vector-sized piece behind the other.
template <class F> F* row_buffer(Dtype dtype, int64_t V, int64_t rows, Scratch& scratch) {
  return is_half(dtype) ? reinterpret_cast<F*>(scratch.reserve(rows * V * sizeof(F))) : nullptr;
}

template <class F> void gradient_row(const Row<F>& r, F cotangent, void* out) {
  F* buffer = row_buffer<F>(r.dtype, r.V, 1, *r.scratch);
  F* y = buffer ? buffer : static_cast<F*>(out);
  scaled_softmax(widened(r.dtype, r.acts, r.V, buffer), r.V, r.shift, r.scale * cotangent, y);
  y[r.blank] -= cotangent * r.occupancy[0];
  for (int64_t i = 0; i < r.L; ++i)  // in label order: the same bits on every call
    if (!is_padding(r.labels[i])) y[r.labels[i]] -= cotangent * r.occupancy[1 + i];
  if constexpr (sizeof(F) == 4)
    if (buffer) narrow(r.dtype, y, r.V, static_cast<uint16_t*>(out));
}

template <class F> double tangent_row(const Row<F>& r, const void* direction) {
  F* buffer = row_buffer<F>(r.dtype, r.V, 2, *r.scratch);
  const F* x = widened(r.dtype, r.acts, r.V, buffer);
  const F* d = widened(r.dtype, direction, r.V, buffer + (buffer ? r.V : 0));
  double sum = softmax_dot(x, r.V, r.shift, r.scale, d, F(0)) - double(r.occupancy[0]) * d[r.blank];
  for (int64_t i = 0; i < r.L; ++i)
    if (!is_padding(r.labels[i])) sum -= double(r.occupancy[1 + i]) * d[r.labels[i]];
  return sum;
}

template <class F> void slice_sums(const Slice<F>& r, const void* next, F* top, F* count, F* tail, F* scores) {
  F* buffer = row_buffer<F>(r.dtype, r.V, 1, *r.scratch);
  const F* x = widened(r.dtype, r.acts, r.V, buffer);
  const RowSums<F> sums = sum_row(x, r.V, buffer ? buffer : static_cast<const F*>(next));
  // A NaN or +inf is said by the count, which is multiplied with nothing.
  const bool bad = sums.count + sums.tail != sums.count + sums.tail;
  *top = bad ? -F(__builtin_inf()) : sums.top;
  *count = bad ? F(__builtin_nan("")) : F(sums.count), *tail = bad ? F(0) : F(sums.tail);
  for (int64_t i = 0; i < r.D; ++i) scores[i] = r.symbols[i] < 0 ? F(0) : x[r.symbols[i]];
}

template <class F> void slice_cotangent(const Slice<F>& r, F top, F ct_tail, const F* ct_scores, void* out) {
  F* buffer = row_buffer<F>(r.dtype, r.V, 1, *r.scratch);
  F* y = buffer ? buffer : static_cast<F*>(out);
  if (ct_tail == 0 || top == -F(__builtin_inf()))
    for (int64_t v = 0; v < r.V; ++v) y[v] = ct_tail * F(0);  // NaN stays NaN
  else
    scaled_softmax(widened(r.dtype, r.acts, r.V, buffer), r.V, top, ct_tail, y);
  for (int64_t i = 0; i < r.D; ++i)
    if (r.symbols[i] >= 0) y[r.symbols[i]] += ct_scores[i];
  if constexpr (sizeof(F) == 4)
    if (buffer) narrow(r.dtype, y, r.V, static_cast<uint16_t*>(out));
}

template <class F> void scale_row(const F* unit, int64_t V, F cotangent, Dtype dtype, void* out) {
  if constexpr (sizeof(F) == 4) {
    if (is_half(dtype)) {
      F piece[256];
      for (int64_t v = 0; v < V; v += 256) {
        const int64_t n = min_of<int64_t>(256, V - v);
        for (int64_t k = 0; k < n; ++k) piece[k] = unit[v + k] * cotangent;
        narrow(dtype, piece, n, static_cast<uint16_t*>(out) + v);
      }
      return;
    }
  }
  F* to = static_cast<F*>(out);
  for (int64_t v = 0; v < V; ++v) to[v] = unit[v] * cotangent;
}

template <class F> double dot_row(const F* unit, int64_t V, Dtype dtype, const void* direction, Scratch* scratch) {
  const F* d = widened(dtype, direction, V, row_buffer<F>(dtype, V, 1, *scratch));
  double sum = 0;
  for (int64_t v = 0; v < V; ++v)
    sum += unit[v] == 0 ? 0 : double(unit[v]) * double(d[v]);  // no gradient: d may be inf
  return sum;
}

}  // namespace
}  // namespace jax_ctc

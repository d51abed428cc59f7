// SPDX-License-Identifier: Apache-2.0
// The sums over one row of a slice of V classes, and their cotangents (docs/ctc.md, section 6).
#pragma once

#include "arena.h"
#include "half.h"
#include "rows.h"

namespace jax_ctc {
namespace {

template <class F> void read_scores(const Slice<F>& r, F* scores) {
  for (int64_t i = 0; i < r.D; ++i) scores[i] = r.symbols[i] < 0 ? F(0) : entry<F>(r.dtype, r.acts, r.symbols[i]);
}

template <class F> Normaliser<F> read_row(const Slice<F>& r, const void* next, F* scores) {
  const Normaliser<F> n = normalise<F>(r.dtype, r.acts, r.V, next);
  read_scores(r, scores);  // while the row is in cache
  return n;
}

template <class F> void slice_sums(const Slice<F>& r, const void* next, F* top, F* ties, F* tail, F* scores) {
  const RowSums<F> sums = sum_row<F>(r.dtype, r.acts, r.V, next);
  // `ties` alone marks a row with a NaN or a +inf, because nothing is ever multiplied with it.
  const bool bad = sums.ties + sums.tail != sums.ties + sums.tail;
  *top = bad ? -F(__builtin_inf()) : sums.top;
  *ties = bad ? F(__builtin_nan("")) : F(sums.ties), *tail = bad ? F(0) : F(sums.tail);
  read_scores(r, scores);
}

template <class F> void slice_cotangent(const Slice<F>& r, F top, F ct_tail, const F* ct_scores, void* out) {
  F* buffer = row_buffer<F>(r.dtype, r.V, 1, *r.scratch);
  F* y = buffer ? buffer : static_cast<F*>(out);
  const bool is_nan = ct_tail != ct_tail, is_infinite = !is_nan && !is_finite(ct_tail);
  if (ct_tail == 0 || top == -F(__builtin_inf()))
    for (int64_t v = 0; v < r.V; ++v) y[v] = is_infinite ? F(0) : ct_tail * F(0);  // NaN stays NaN
  else
    scaled_softmax(widened(r.dtype, r.acts, r.V, buffer), r.V, top, is_infinite ? F(1) : ct_tail, y);
  if (is_infinite) multiply(y, r.V, ct_tail, y);
  for (int64_t i = 0; i < r.D; ++i)
    if (r.symbols[i] >= 0) y[r.symbols[i]] += ct_scores[i];
  if constexpr (sizeof(F) == 4)
    if (buffer) narrow(r.dtype, y, r.V, static_cast<uint16_t*>(out));
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// One row of the gradient, or of its product with a direction, from residuals (docs/ctc.md, eq. 9 and 10).
#pragma once

#include "arena.h"
#include "half.h"
#include "rows.h"

namespace jax_ctc {
namespace {

template <class F> void subtract_occupancy(const Row<F>& r, F cotangent, F* y) {
  for (const Correction& c : r.corrections) y[c.symbol] -= cotangent * r.occupancy[c.column];
}

// y = cotangent * (softmax(x) - occupancy). y may be x.
template <class F> void softmax_less_occupancy(const Row<F>& r, const F* x, F cotangent, F* y) {
  scaled_softmax(x, r.V, r.shift, r.scale * cotangent, y);
  subtract_occupancy(r, cotangent, y);
}

// The same of a wide row of halves. A row of floats would not stay in the first-level cache between the passes, so
// halves are converted, and become the softmax, in pieces. The blank and labels are computed apart, in floats, and
// rounded once. `out` may be the row itself.
inline void gradient_of_halves(const Row<float>& r, float cotangent, uint16_t* out) {
  constexpr int64_t kPiece = 128, kLine = 64 / sizeof(uint16_t);
  const uint16_t* const x = static_cast<const uint16_t*>(r.acts);
  const int64_t count = r.corrections.count;
  const Correction* const corrections = r.corrections.list;
  float *own, *sums, piece[kPiece];
  take_from(*r.scratch, [&](Arena& arena) { arena.take(own, count), arena.take(sums, r.V); });
  for (int64_t i = 0; i < count; ++i) own[i] = entry<float>(r.dtype, x, corrections[i].symbol);
  scaled_softmax(own, count, r.shift, r.scale * cotangent, own);
  for (int64_t i = 0; i < count; ++i) sums[corrections[i].symbol] = own[i];
  subtract_occupancy(r, cotangent, sums);
  for (int64_t v = 0; v < r.V; v += kPiece) {
    const int64_t n = min_of(kPiece, r.V - v);
    for (int64_t line = 0; line < kPiece; line += kLine) prefetch_ahead(x + v + line, out + v + line);
    widen(r.dtype, x + v, n, piece);
    scaled_softmax(piece, n, r.shift, r.scale * cotangent, piece);
    narrow(r.dtype, piece, n, out + v);
  }
  for (const Correction& c : r.corrections) set_entry<float>(r.dtype, out, c.symbol, sums[c.symbol]);
}

// Whether a row of halves is wide enough, and has so few different labels that it costs little to compute them apart.
inline bool worth_pieces(int64_t V, int64_t labels) {
#if defined(JAX_CTC_TEST)
  if (tested::pieces_of_halves) return true;
#endif
  return V >= 2048 && V >= 64 * labels;
}

template <class F> void gradient_row(const Row<F>& r, F cotangent, void* out) {
  if constexpr (sizeof(F) == 4)
    if (is_half(r.dtype) && worth_pieces(r.V, r.corrections.count - 1) && is_finite(cotangent))
      return gradient_of_halves(r, cotangent, static_cast<uint16_t*>(out));
  F* buffer = row_buffer<F>(r.dtype, r.V, 1, *r.scratch);
  F* y = buffer ? buffer : static_cast<F*>(out);
  const F* x = widened(r.dtype, r.acts, r.V, buffer);
  if (is_finite(cotangent)) {
    softmax_less_occupancy(r, x, cotangent, y);
  } else {
    softmax_less_occupancy(r, x, F(1), y);
    multiply(y, r.V, cotangent, y);
  }
  if constexpr (sizeof(F) == 4)
    if (buffer) narrow(r.dtype, y, r.V, static_cast<uint16_t*>(out));
}

// The result of tangent_row, from the gradient itself. Only entries where the gradient is not 0 count.
template <class F> double tangent_of_nonzero(const Row<F>& r, const void* direction) {
  F *wide_acts, *wide_direction, *gradient;
  const int64_t wide = is_half(r.dtype) ? r.V : 0;
  take_from(*r.scratch, [&](Arena& arena) {
    arena.take(wide_acts, wide), arena.take(wide_direction, wide), arena.take(gradient, r.V);
  });
  softmax_less_occupancy(r, widened(r.dtype, r.acts, r.V, wide_acts), F(1), gradient);
  return dot_of_nonzero(gradient, r.V, widened(r.dtype, direction, r.V, wide_direction));
}

template <class F> double tangent_row(const Row<F>& r, const void* direction) {
  F* buffer = row_buffer<F>(r.dtype, r.V, 2, *r.scratch);
  const F* x = widened(r.dtype, r.acts, r.V, buffer);
  const F* u = widened(r.dtype, direction, r.V, buffer + (buffer ? r.V : 0));
  double sum = softmax_dot(x, r.V, r.shift, r.scale, u, F(0));
  for (const Correction& c : r.corrections) sum -= double(r.occupancy[c.column]) * u[c.symbol];
  // If the sum is not finite, the direction may have an inf or a NaN where the gradient is 0. Or the residuals are NaN.
  return is_finite(sum) || r.scale != r.scale ? sum : tangent_of_nonzero(r, direction);
}

template <class F> void dense_gradient_row(const F* gradient, int64_t V, F cotangent, Dtype dtype, void* out) {
  if constexpr (sizeof(F) == 4) {
    if (is_half(dtype)) {
      F piece[256];
      for (int64_t v = 0; v < V; v += 256) {
        const int64_t n = min_of<int64_t>(256, V - v);
        multiply(gradient + v, n, cotangent, piece);
        narrow(dtype, piece, n, static_cast<uint16_t*>(out) + v);
      }
      return;
    }
  }
  multiply(gradient, V, cotangent, static_cast<F*>(out));
}

template <class F>
double dense_tangent_row(const F* gradient, int64_t V, Dtype dtype, const void* direction, Scratch* scratch) {
  return dot_of_nonzero(gradient, V, widened(dtype, direction, V, row_buffer<F>(dtype, V, 1, *scratch)));
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Rows of a Hessian-vector product: softmax * (u - softmax . u), minus the derivative of the occupancies along u
// (docs/ctc.md, eq. 11). Of log-scores there is no softmax, and the first term is 0.
#pragma once

#include "sequence_rows.h"

namespace jax_ctc {
namespace {

template <class F> class HvpWriter {
 public:
  HvpWriter(const Sequence<F>& in, const HvpArguments<F>& arguments, const SequenceRows<F>& rows)
      : in(in), arguments(arguments), rows(rows) {}

  void lay_out(Arena& arena) { arena.take(buffer, is_half(in.dtype) ? kFrames * in.V : 0); }

  char* out_at(int64_t t) const { return static_cast<char*>(arguments.out) + t * rows.frame_step; }

  // Where row t is to be written, to be followed by finish(t). Rows of a group may be written together.
  F* begin(int64_t t) const {
    return is_half(in.dtype) ? buffer + t % kFrames * in.V : reinterpret_cast<F*>(out_at(t));
  }
  void finish(int64_t t) const {
    if constexpr (sizeof(F) == 4)
      if (is_half(in.dtype)) narrow(in.dtype, begin(t), in.V, reinterpret_cast<uint16_t*>(out_at(t)));
  }

  // y = factor * (softmax * (u - centre - mean) - changes of the occupancies). These are `by_class`, or if it is null
  // `of_labels` and `of_blank`.
  void write(int64_t t, const F* u, F centre, F mean, F factor, const F* by_class, const F* of_labels, F of_blank, F* y,
             const NextRows& next = {}) const {
    if (in.softmax)
      softmax_change(rows.row(t), in.V, rows.shift[t], rows.scale[t], u, centre, mean, factor, by_class, y, next);
    else if (by_class != nullptr)
      minus(by_class, in.V, factor, y);
    else
      for (int64_t v = 0; v < in.V; ++v) y[v] = 0;
    if (by_class != nullptr) return;
    for (int64_t i = 0; i < in.L; ++i) y[in.labels[i]] -= factor * of_labels[i];
    y[in.blank] -= factor * of_blank;
  }

 private:
  const Sequence<F>& in;
  const HvpArguments<F>& arguments;
  const SequenceRows<F>& rows;
  F* buffer;  // rows of the result, for halves
};

}  // namespace
}  // namespace jax_ctc

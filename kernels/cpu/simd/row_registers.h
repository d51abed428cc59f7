// SPDX-License-Identifier: Apache-2.0
// For few classes and vectors of 64 bytes: softmax and ratios of four frames, whose classes stay in registers.
//
// With AVX-512 one instruction takes any lanes of two vectors. So the ratios of 16 labels take one instruction for
// 32 classes. From a table (class_table.h) they take a load for each label, and a transposition.
#pragma once

#include "class_table.h"

namespace jax_ctc {
namespace {

// The classes of a frame, in two or four vectors.
template <class F, int kVectors> struct RowRegisters {
  using Vec = Lanes<F>;
  using Mask = Integer<Vec>;
  static constexpr int N = kLanes<F>;

  Vec x[kVectors];    // logits, -inf beyond V
  Vec y[kVectors];    // ratios
  Vec largest, tail;  // of each lane: of all logits, and the sum of the ratios of those below `top`
  Mask ties;          // how many are `top`

  CTC_INLINE RowRegisters(const F* row, int64_t V) {
    constexpr F kNone = -F(__builtin_inf());
    largest = splat<Vec>(kNone);
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      const int64_t n = V - k * N;
      x[k] = n >= N ? load<Vec>(row + k * N) : n > 0 ? tail_of_row(row, V, n, kNone) : splat<Vec>(kNone);
      largest = max_of(x[k], largest);  // a NaN is passed over here, and makes `tail` NaN
    }
  }

  CTC_INLINE void split(Vec top, const RatioBase<F>& base) {
    tail = Vec{}, ties = Mask{};
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      y[k] = base.ratio(x[k]);
      const Mask at_top = x[k] == top;
      tail += at_top ? Vec{} : y[k], ties -= at_top;
    }
  }

  // The ratios of classes.
  CTC_INLINE Vec of(Mask classes) const {
    const Vec low = permute(y[0], y[1], classes);
    if constexpr (kVectors == 2) return low;
    if constexpr (kVectors == 4) return classes < splat<Mask>(2 * N) ? low : permute(y[2], y[3], classes);
  }
};

// Reads four rows of kLanes to kVectors * kLanes logits, and writes the ratios of `pairs` labels. The normalisers go to
// `table`, and the ratios of all classes, if they are kept. `least` gets the smallest ratio of each lane.
template <int kVectors, class F> RatioBase<F> read_registers(const F* const (&rows)[kFrames], int64_t V,
                                                             const int32_t* places, int64_t pairs, int32_t blank,
                                                             F* const (&to)[kFrames], bool keep_classes,
                                                             Table<F>& table, Lanes<F>& least) {
  using Row = RowRegisters<F, kVectors>;
  using Vec = Lanes<F>;
  using Mask = Integer<Vec>;
  Row a(rows[0], V), b(rows[1], V), c(rows[2], V), d(rows[3], V);
  const Vec top = largest_of_frames<F>(a.largest, b.largest, c.largest, d.largest);
  const Quad<F> blanks = {rows[0][blank], rows[1][blank], rows[2][blank], rows[3][blank]};
  const RatioBase<F> base(tiled<F>(blanks), top);
  a.split(spread<0>(top), base.template of_lane<0>());
  b.split(spread<1>(top), base.template of_lane<1>());
  c.split(spread<2>(top), base.template of_lane<2>());
  d.split(spread<3>(top), base.template of_lane<3>());
  Vec tails[kFrames] = {a.tail, b.tail, c.tail, d.tail};
  Mask ties[kFrames] = {a.ties, b.ties, c.ties, d.ties};
  transpose_groups(tails), transpose_groups(ties);
  table.template set_normalisers<true>(top, ((tails[0] + tails[1]) + (tails[2] + tails[3])) / base.of_top,
                                       (ties[0] + ties[1]) + (ties[2] + ties[3]));
  if (keep_classes)
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      Vec at[kFrames] = {a.y[k], b.y[k], c.y[k], d.y[k]};
      transpose_groups(at);
      if (k * Row::N < V) store_by_group(table.p + k * kFrames * Row::N, at);
    }
  least = splat<Vec>(F(1));
  for (int64_t i = 0; i < pairs; i += Row::N) {
    const Mask classes = load<Mask>(places + i) >> 2;
    const Vec y[kFrames] = {a.of(classes), b.of(classes), c.of(classes), d.of(classes)};
    least = min_of(least, min_of(min_of(y[0], y[1]), min_of(y[2], y[3])));
    store(to[0] + i, y[0]), store(to[1] + i, y[1]), store(to[2] + i, y[2]), store(to[3] + i, y[3]);
  }
  return base;
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// For few classes and vectors of 64 bytes: softmax and emissions of four frames, whose classes stay in registers.
//
// With AVX-512 one instruction takes any lanes of two vectors. So the emissions of 16 labels take one instruction for
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

  Vec x[kVectors];  // logits, -inf beyond V
  Vec p[kVectors];  // emissions p * 2^q
  Mask q[kVectors];
  Vec largest, tail;  // of each lane: of all logits, and the sum of exp(x - top) of those below `top`
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

  CTC_INLINE void split(Vec top, const RowShift<F>& shift, Vec& furthest) {
    tail = Vec{}, ties = Mask{};
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      const Scaled<Vec> y = split_emission<F>(x[k], shift, furthest);
      const Mask at_top = x[k] == top;
      tail += at_top ? Vec{} : y.m * pow2<Vec>(y.e), ties -= at_top;
      p[k] = y.m, q[k] = y.e;
    }
  }

  // Writes the emissions of classes, which are dead where `real` is not set.
  CTC_INLINE void put(Mask classes, Mask real, F* mantissas, Integer<F>* exponents) const {
    store(mantissas, take(p, classes));
    store(exponents, real ? take(q, classes) : splat<Mask>(kDead));
  }

 private:
  template <class V> static CTC_INLINE V take(const V (&from)[kVectors], Mask lanes) {
    const V low = permute(from[0], from[1], lanes);
    if constexpr (kVectors == 2) return low;
    if constexpr (kVectors == 4) return lanes < splat<Mask>(2 * N) ? low : permute(from[2], from[3], lanes);
  }
};

// Reads four rows of kLanes to kVectors * kLanes logits, and writes the emissions of `pairs` labels and of the blank.
// The normalisers go to `table`. Returns false, and writes nothing useful, if some logit is not near: a row through the
// table can do with any.
template <int kVectors, class F> bool read_registers(const F* const (&rows)[kFrames], int64_t V, const int32_t* places,
                                                     int64_t pairs, int32_t blank,
                                                     const Emissions<Scaled<F>> (&y)[kFrames], Table<F>& table) {
  using Row = RowRegisters<F, kVectors>;
  using Vec = Lanes<F>;
  using Mask = Integer<Vec>;
  constexpr F kInfinity = __builtin_inf();
  Row a(rows[0], V), b(rows[1], V), c(rows[2], V), d(rows[3], V);
  const Vec top = largest_of_frames<F>(a.largest, b.largest, c.largest, d.largest);
  const RowShift<F> shift(top);
  Vec furthest = splat<Vec>(-kInfinity);
  a.split(spread<0>(top), shift.template of_lane<0>(), furthest);
  b.split(spread<1>(top), shift.template of_lane<1>(), furthest);
  c.split(spread<2>(top), shift.template of_lane<2>(), furthest);
  d.split(spread<3>(top), shift.template of_lane<3>(), furthest);
  if (max_of_lanes(furthest) > -kInfinity || sum_of_lanes(Mask(is_near<F>(top))) != -Row::N) return false;
  Vec tails[kFrames] = {a.tail, b.tail, c.tail, d.tail};
  Mask ties[kFrames] = {a.ties, b.ties, c.ties, d.ties};
  transpose_groups(tails), transpose_groups(ties);
  table.template set_normalisers<true>(top, (tails[0] + tails[1]) + (tails[2] + tails[3]),
                                       (ties[0] + ties[1]) + (ties[2] + ties[3]));
  const auto put = [&](int64_t i, Mask classes, Mask real) {
    a.put(classes, real, y[0].mantissas() + i, y[0].exponents() + i);
    b.put(classes, real, y[1].mantissas() + i, y[1].exponents() + i);
    c.put(classes, real, y[2].mantissas() + i, y[2].exponents() + i);
    d.put(classes, real, y[3].mantissas() + i, y[3].exponents() + i);
  };
  for (int64_t i = 0; i < pairs; i += Row::N) {
    const Mask place = load<Mask>(places + i);
    put(i, place >> 2, place < splat<Mask>(kFrames * V));
  }
  put(y[0].last, splat<Mask>(blank), splat<Mask>(-1));
  return true;
}

}  // namespace
}  // namespace jax_ctc

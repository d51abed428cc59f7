// SPDX-License-Identifier: Apache-2.0
// Emissions: exp(x) as p * 2^q for any x <= 0, with all digits (docs/ctc.md, section 3). For scalars and vectors.
#pragma once

#include "scaled.h"

namespace jax_ctc {
namespace {

// ln 2 in three parts. The first two have so few digits that q times them is exact for |q| < 2^18, with or without a
// fused multiply-add. So logits that are far apart keep their digits.
template <class F> struct Ln2 {
  static constexpr F high = F(0x1.6p-1), middle = F(0x1.7p-8), low = F(0x1.0bfbe8e7bcd5ep-15);
};

// exp on |r| <= ln 2 / 2 by its Taylor series. The first term left out is at most 5e-9 (float) or 4e-18 (double).
template <class F> struct Taylor {
  static constexpr int terms = sizeof(F) == 4 ? 8 : 14;
  F coefficient[terms] = {};
  constexpr Taylor() {
    double factorial = 1;
    for (int k = 0; k < terms; factorial *= ++k) coefficient[k] = F(1 / factorial);
  }
};
template <class F, class V> CTC_FN V exp_reduced(V r) {
  constexpr Taylor<F> series;
  V p = splat<V>(series.coefficient[Taylor<F>::terms - 1]);
  for (int k = Taylor<F>::terms - 2; k >= 0; --k) p = p * r + series.coefficient[k];
  return p;
}

// x - shift exactly, as the sum of two numbers, so that logits that are far apart keep their digits: the rounded
// difference, and what it lost.
template <class V> struct Difference {
  V d, rest;
};
template <class V> CTC_FN Difference<V> difference(V x, V shift) {
  const V d = x - shift, back = d - x;
  return {d, (x - (d - back)) + (-shift - back)};
}

template <class V> struct Split {
  V p;
  Integer<V> q;
};
// exp(x + rest) = p * 2^q. `rest` is what x lost when it was rounded.
template <class F, class V> CTC_FN Split<V> split_exp(V x, V rest) {
  constexpr F kLog2e = F(1.44269504088896340736);
  constexpr F kRound = F(3) * F(int64_t(1) << (Layout<F>::mantissa - 1));  // adding it rounds to an integer
  const V shifted = x * kLog2e + kRound, n = shifted - kRound;
  const Integer<V> q = bits<Integer<V>>(shifted) - bits<Integer<F>>(kRound);
  const V r = (((x - n * Ln2<F>::high) - n * Ln2<F>::middle) - n * Ln2<F>::low) + rest;
  return {exp_reduced<F>(r), q};
}

// A logit this far below the largest of its row counts as -inf, because a cost of this size cannot be told from that of
// an impossible sequence.
constexpr double kFurthest = 4.2e7;
// Down to this distance the vector code keeps all digits. Beyond it a float has too few digits for q.
template <class F> constexpr double kNear = sizeof(F) == 4 ? 1e5 : kFurthest;

// exp(d) for -kFurthest < d <= -kNear.
template <class F> CTC_FN Scaled<F> far_emission(double d) {
  const double y = d * 1.4426950408889634074, whole = __builtin_floor(y);
  return {F(__builtin_exp2(y - whole)), Integer<F>(whole)};
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Emissions: exp(x) as p * 2^q for any x <= 0, with all digits (docs/ctc.md, section 3). For scalars and vectors.
#pragma once

#include "dither.h"

namespace jax_ctc {
namespace {

// ln 2 in three parts. The first two have so few digits that q times them is exact for |q| < 2^18, with or without a
// fused multiply-add. So logits that are far apart keep their digits.
template <class F> struct Ln2 {
  static constexpr F high = F(0x1.6p-1), middle = F(0x1.7p-8), low = F(0x1.0bfbe8e7bcd5ep-15);
};

// exp on |r| <= ln 2 / 2: the polynomial 1 + r + ... whose largest relative error is smallest, 3.1e-9 (float)
// or 3.7e-18 (double).
template <class F> struct ExpPolynomial;
template <> struct ExpPolynomial<float> {
  static constexpr int terms = 7;
  float coefficient[terms] = {1, 1, 0.499999934f, 0.166665206f, 0.04166839f, 0.00836872f, 0.00138145838f};
};
template <> struct ExpPolynomial<double> {
  static constexpr int terms = 12;
  double coefficient[terms] = {1,
                               1,
                               0.50000000000000106375,
                               0.16666666666666412269,
                               0.041666666666530051014,
                               0.0083333333334945904278,
                               0.0013888888943662572739,
                               0.00019841269506377646404,
                               0.000024801493061586293507,
                               2.7557586481251374744e-6,
                               2.7630262850793720766e-7,
                               2.5000050934278011557e-8};
};
// By Horner's rule.
template <class Series, class V> CTC_FN V polynomial(V x) {
  constexpr Series series;
  V p = splat<V>(series.coefficient[series.terms - 1]);
  for (int k = series.terms - 2; k >= 0; --k) p = p * x + series.coefficient[k];
  return p;
}
template <class F, class V> CTC_FN V exp_reduced(V r) { return polynomial<ExpPolynomial<F>>(r); }

// x - n ln 2, for an integer n. Vectors with a fused multiply-add do it in two operations (lanes.h).
template <class V> struct LessLn2 {
  using F = typename ElementOf<V>::type;
  static CTC_INLINE V times(V n, V x) { return ((x - n * Ln2<F>::high) - n * Ln2<F>::middle) - n * Ln2<F>::low; }
};

// A number as q ln 2 + r, with |r| <= ln 2 / 2.
template <class V> struct Reduced {
  V r;
  Integer<V> q;
};
// x - shift, with all digits: `of` is the shift itself, reduced. The difference of x and shift would lose digits to
// rounding. x == shift gives exactly 0, for |x| and |shift| < kNear.
template <class F, class V> CTC_FN Reduced<V> reduce(V x, Reduced<V> of) {
  constexpr F kLog2e = F(1.44269504088896340736);
  constexpr F kRound = F(3) * F(int64_t(1) << (Layout<F>::mantissa - 1));  // adding it rounds to an integer
  const V shifted = (x - of.r) * kLog2e + kRound, n = shifted - kRound;
  return {LessLn2<V>::times(n, x) - of.r, bits<Integer<V>>(shifted) - (of.q + bits<Integer<F>>(kRound))};
}
template <class F, class V> CTC_FN Reduced<V> reduce(V x) { return reduce<F>(x, Reduced<V>{}); }

// A logit this far below the largest of its row counts as -inf, because a cost of this size cannot be told from that of
// an impossible sequence.
constexpr double kFurthest = 4.2e7;
// Vector code takes logits and shifts of less than this absolute value. Beyond it a float has too few digits for q. Two
// such doubles are less than kFurthest apart.
template <class F> constexpr double kNear = sizeof(F) == 4 ? 1e5 : kFurthest / 2;

template <class F, class V> CTC_FN auto is_near(V x) { return (x > F(-kNear<F>)) & (x < F(kNear<F>)); }

// exp(x - shift) = p * 2^q, for |x| and |shift| < kNear.
template <class F, class V> CTC_FN Scaled<V> near_emission(V x, Reduced<V> shift) {
  const Reduced<V> y = reduce<F>(x, shift);
  return {exp_reduced<F>(y.r), y.q};
}
// The same for any x <= shift, rounded with this dither.
template <class F> CTC_FN Scaled<F> any_emission(F x, F shift, int32_t dither) {
  const double d = double(x) - double(shift);
  if (!(d > -kFurthest)) return {F(1), Integer<F>(kDead)};  // -inf, or NaN
  const Reduced<double> y = reduce<double>(d);
  return {rounded<F>(exp_reduced<double>(y.r), dither), Integer<F>(y.q)};
}

}  // namespace
}  // namespace jax_ctc

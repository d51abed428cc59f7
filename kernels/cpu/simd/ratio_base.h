// SPDX-License-Identifier: Apache-2.0
// Ratios of emissions to that of the blank.
#pragma once

#include "quads.h"

namespace jax_ctc {
namespace {

// The most by which a logit may exceed that of the blank: 2^115.5. The sum of 256 such numbers is a float.
constexpr double kMostNatsAboveBlank = 80;

// What ratios are computed from: the blank's logit of each frame, and the largest logit.
template <class F> struct RatioBase {
  using Vec = Lanes<F>;
  using Mask = Integer<Vec>;
  Reduced<Vec> reduced;  // the blank's logit, with the bias of an exponent taken from q
  Vec lowest;            // a logit so far below the blank's that its ratio, and that of any smaller logit, is 0
  Vec of_top;            // the ratio of the largest logit
  bool fits;             // whether ratios can be computed, and none is too large

  CTC_INLINE RatioBase(Vec base, Vec top) {
    const Mask near = is_near<F>(base) & is_near<F>(top) & (top - base < F(kMostNatsAboveBlank));
    fits = sum_over<1, kFrames>(first_quad<Integer<F>>(near))[0] == -kFrames;  // the other lanes are the same
    const Vec possible = fits ? base : Vec{};
    reduced = reduce<F>(possible);
    reduced.q -= Layout<F>::bias;
    lowest = possible - F(Layout<F>::bias * 0.693147180559945309417);
    of_top = ratio(fits ? top : Vec{});
  }

  // That of the frame in lane k.
  template <int k> CTC_INLINE RatioBase of_lane() const {
    RatioBase base = *this;
    base.reduced = {spread<k>(reduced.r), spread<k>(reduced.q)}, base.lowest = spread<k>(lowest);
    return base;
  }

  // exp(x - base), or 0 if it is less than 2^-126. Of NaN it is NaN.
  CTC_INLINE Vec ratio(Vec x) const {
    const Scaled<Vec> y = near_emission<F>(max_of(lowest, x), reduced);
    return y.m * bits<Vec>(y.e << Layout<F>::mantissa);
  }
};

}  // namespace
}  // namespace jax_ctc

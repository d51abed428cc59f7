// SPDX-License-Identifier: Apache-2.0
// Ratios of frames that are alike, for which the rounding of a ratio is not left to chance.
//
// A ratio is rounded to a float. In frames that differ these errors cancel for the most part. In frames that are alike
// they would be the same, and alignments with many more frames of a label would have as many times the error. So here
// ratios are computed in double, and rounded by turns to the float above and below: over any run of frames the errors
// add up to a few roundings.
#pragma once

#include "ratio_base.h"

namespace jax_ctc {
namespace {

constexpr int kDropped = Layout<double>::mantissa - Layout<float>::mantissa;  // bits that a float does not have

// What is added to a ratio of frame t before these bits are dropped: multiples of the golden ratio, of which any few
// that follow each other are spread evenly over [0, 2^kDropped).
inline int64_t turn_of(int64_t t) {
  const double turns = double(t) * 0.61803398874989484820;
  return int64_t((turns - double(int64_t(turns))) * double(int64_t(1) << kDropped));
}

// p = exp(x - base), of n numbers laid out [class][frame]. n is a multiple of the lanes of a float.
inline void steady_ratios(const float* x, int64_t n, Quad<float> base, Quad<int64_t> turns, float* p) {
  using Z = Integer<DoubleLanes>;
  float bases[16];
  int64_t turn[16];
  for (int k = 0; k < 16; ++k) bases[k] = base[k % kFrames], turn[k] = turns[k % kFrames];
  for (int64_t i = 0; i < n; i += kLanes<double>) {
    const DoubleLanes d = load_widened(x + i) - load_widened(bases + i % kFrames);
    const Reduced<DoubleLanes> r = reduce<double>(max_of(splat<DoubleLanes>(-700.0), d));
    const DoubleLanes y = exp_reduced<double>(r.r) *
                          bits<DoubleLanes>((r.q + splat<Z>(Layout<double>::bias)) << Layout<double>::mantissa);
    const Z sum = bits<Z>(y) + load<Z>(turn + i % kFrames);
    store_narrowed(p + i, bits<DoubleLanes>(sum & splat<Z>(-(int64_t(1) << kDropped))));
  }
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Ratios of frames that are alike, rounded with a dither (dither.h).
#pragma once

#include "ratio_base.h"

namespace jax_ctc {
namespace {

// p = exp(x - base), of n numbers laid out [class][frame]. n is a multiple of the lanes of a float.
inline void dithered_ratios(const float* x, int64_t n, Quad<float> base, Quad<int64_t> dithers, float* p) {
  using Z = Integer<DoubleLanes>;
  float bases[16];
  int64_t dither[16];
  for (int k = 0; k < 16; ++k) bases[k] = base[k % kFrames], dither[k] = dithers[k % kFrames];
  for (int64_t i = 0; i < n; i += kLanes<double>) {
    const DoubleLanes d = load_widened(x + i) - load_widened(bases + i % kFrames);
    const Reduced<DoubleLanes> r = reduce<double>(max_of(splat<DoubleLanes>(-700.0), d));
    const DoubleLanes y = exp_reduced<double>(r.r) *
                          bits<DoubleLanes>((r.q + splat<Z>(Layout<double>::bias)) << Layout<double>::mantissa);
    const Z sum = bits<Z>(y) + load<Z>(dither + i % kFrames);
    store_narrowed(p + i, bits<DoubleLanes>(sum & splat<Z>(-(int64_t(1) << kDropped))));
  }
}
// The same of a vector. The ratio of the largest logit (RatioBase::of_top) is one: in the cost of a sure model it
// cancels the ratio of a label, so it must have the same rounding.
inline FloatLanes dithered_ratio(FloatLanes x, Quad<float> base, Quad<int64_t> dithers) {
  float from[kLanes<float>], to[kLanes<float>];
  store(from, x);
  dithered_ratios(from, kLanes<float>, base, dithers, to);
  return load<FloatLanes>(to);
}

}  // namespace
}  // namespace jax_ctc

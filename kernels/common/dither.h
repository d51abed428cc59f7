// SPDX-License-Identifier: Apache-2.0
// Rounding of a double to a float that is not left to chance, for frames that are alike.
//
// Emissions are rounded to floats. In frames that differ these errors cancel for the most part. In frames that are
// alike they would be the same, and alignments with many more frames of a label would have as many times the error. So
// there emissions are computed in double and rounded with a dither: in some frames to the float above, in others to the
// float below. Over any run of frames the errors add up to a few roundings.
#pragma once

#include "scaled.h"

namespace jax_ctc {
namespace {

constexpr int kDropped = Layout<double>::mantissa - Layout<float>::mantissa;  // bits that a float does not have

// A dither is added before these bits are dropped. Those of frames are multiples of the golden ratio, of which any few
// that follow each other are spread evenly over [0, 2^kDropped).
CTC_FN int32_t dither_of(int64_t t) { return int32_t(uint32_t(t) * 0x9e3779b9u >> (32 - kDropped)); }
constexpr int32_t kNearest = int32_t(1) << (kDropped - 1);  // rounds to the nearest float

// Whether four frames that follow each other may be alike, or each second one, by the logits of the blank in them. One
// pair of equal logits does not say so, because that is common among halves.
template <class LogitAt> CTC_FN bool may_be_alike(LogitAt blank) {
  return blank(0) == blank(2) && blank(1) == blank(3);
}

// x > 0, as an F.
template <class F> CTC_FN F rounded(double x, int32_t dither) {
  if (sizeof(F) == sizeof(double)) return F(x);
  return F(bits<double>((bits<int64_t>(x) + dither) & -(int64_t(1) << kDropped)));
}

}  // namespace
}  // namespace jax_ctc

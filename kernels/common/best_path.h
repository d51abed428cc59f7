// SPDX-License-Identifier: Apache-2.0
// What the sweep of the best path leaves of a pair at a frame, and the way back (docs/ctc.md, eq. 17). Host and device.
#pragma once

#include <cstdint>

#include "platform.h"

namespace jax_ctc {

// What the logits of a frame are taken relative to (docs/ctc.md, section 7): that of the blank. A blank so far below 0
// is none: labels would lose their digits beside a mask of -1e30.
constexpr double kLeastReference = -4.2e7;
CTC_FN double reference_of(double blank) { return blank < kLeastReference ? 0 : blank; }

// What chose the state of a pair. If none is set, the path stayed in its state.
enum Choice { kBlankAfterLabel = 1, kLabelAfterBlank = 2, kLabelAfterLabel = 4 };

// Takes a path, which is in the label or in the blank of `pair`, to the frame before. Only the lowest three bits of
// `choice` are read.
template <class Index> CTC_FN void go_back(uint32_t choice, Index& pair, bool& in_label) {
  if (!in_label)
    in_label = choice & kBlankAfterLabel, pair -= in_label;
  else if (choice & kLabelAfterLabel)
    --pair;
  else
    in_label = !(choice & kLabelAfterBlank);
}

}  // namespace jax_ctc

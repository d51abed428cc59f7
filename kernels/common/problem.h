// SPDX-License-Identifier: Apache-2.0
// What is being summed over: shapes, labels without padding, which skips are allowed. Plain C++17, host and device.
#pragma once

#include <cstdint>

#include "platform.h"

namespace jax_ctc {

// What acts are made of. Costs and all that is kept are double for kF64, else float.
enum class Dtype { kF32, kF64, kBF16, kF16 };

CTC_FN bool is_half(Dtype dtype) { return dtype == Dtype::kBF16 || dtype == Dtype::kF16; }
CTC_FN int64_t element_size(Dtype dtype) { return is_half(dtype) ? 2 : dtype == Dtype::kF32 ? 4 : 8; }

// acts seen as (N, T, B, V), row-major: batch axes before T are folded into N, those after it into B.
struct Shape {
  int64_t N, T, B, V, L;

  CTC_INLINE int64_t sequences() const { return N * B; }
  CTC_INLINE int64_t rows() const { return N * T * B; }
  // Rows of acts (and of every per-frame array) are numbered in memory order.
  CTC_INLINE int64_t first_row(int64_t sequence) const { return sequence / B * T * B + sequence % B; }
  CTC_INLINE int64_t sequence_of_row(int64_t row) const { return row / (T * B) * B + row % B; }
  CTC_INLINE int64_t frame_of_row(int64_t row) const { return row / B % T; }
  // Columns of the per-frame residual: the occupancies of the blank and of each label, or, where classes are no
  // more than that, the gradient itself.
  CTC_INLINE bool dense() const { return V <= L + 1; }
  CTC_INLINE int64_t columns() const { return dense() ? V : L + 1; }
};

// Entries below 0 are padding wherever they stand; those at V and above, and the blank, are no labels at all.
CTC_FN bool is_padding(int32_t label) { return label < 0; }
CTC_FN bool is_bad_label(int32_t label, int64_t V, int32_t blank) { return label >= V || label == blank; }

// A path may step from label i - 1 to label i without the blank between them only where they differ.
CTC_FN bool may_skip(const int32_t* labels, int64_t i) { return i > 0 && labels[i] != labels[i - 1]; }

// The fewest frames that an alignment of these labels needs: one each, and a blank between equal neighbours.
CTC_FN int64_t frames_needed(const int32_t* labels, int64_t L) {
  int64_t frames = L;
  for (int64_t i = 1; i < L; ++i) frames += labels[i] == labels[i - 1];
  return frames;
}

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// What the loss sums over: shapes, which labels count, which skips are allowed. Plain C++17, host and device.
#pragma once

#include <cstdint>

#include "platform.h"

namespace jax_ctc {

// The type of acts. Costs and residuals are double for kF64, and float for all others.
enum class Dtype { kF32, kF64, kBF16, kF16 };

CTC_FN bool is_half(Dtype dtype) { return dtype == Dtype::kBF16 || dtype == Dtype::kF16; }
CTC_FN int64_t element_size(Dtype dtype) { return is_half(dtype) ? 2 : dtype == Dtype::kF32 ? 4 : 8; }

// acts as a row-major array (N, T, B, V). The batch axes before T are folded into N, those after T into B.
struct Shape {
  int64_t N, T, B, V, L;

  CTC_INLINE int64_t sequences() const { return N * B; }
  CTC_INLINE int64_t rows() const { return N * T * B; }
  // Rows of acts (and of every per-frame array) are numbered in memory order.
  CTC_INLINE int64_t first_row(int64_t sequence) const { return sequence / B * T * B + sequence % B; }
  CTC_INLINE int64_t sequence_of_row(int64_t row) const { return row / (T * B) * B + row % B; }
  CTC_INLINE int64_t frame_of_row(int64_t row) const { return row / B % T; }
  // Columns of a row of residuals. Compact: the occupancies of the blank and of each label position. Dense: the
  // gradient itself, because it has no more elements than those.
  CTC_INLINE bool dense() const { return V <= L + 1; }
  CTC_INLINE int64_t columns() const { return dense() ? V : L + 1; }
};

// The most frames, and the most label positions. Kernels count both in an int32, up to 1024 steps past the end.
constexpr int64_t kMostSteps = INT32_MAX - 1024;

// An entry below 0 is padding, wherever it stands. The blank, and an entry of V or more, are invalid: padding never is,
// because the blank is a class.
CTC_FN bool is_padding(int32_t label) { return label < 0; }
CTC_FN bool is_bad_label(int32_t label, int64_t V, int32_t blank) { return label >= V || label == blank; }

// Whether a path may step from label i - 1 to label i without the blank between them: only if the labels differ.
CTC_FN bool may_skip(const int32_t* labels, int64_t i) { return i > 0 && labels[i] != labels[i - 1]; }

// The fewest frames that an alignment of these labels needs: one for each label, and one for the blank between two
// equal neighbours.
CTC_FN int64_t frames_needed(const int32_t* labels, int64_t L) {
  int64_t frames = L;
  for (int64_t i = 1; i < L; ++i) frames += labels[i] == labels[i - 1];
  return frames;
}

}  // namespace jax_ctc

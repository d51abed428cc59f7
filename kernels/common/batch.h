// SPDX-License-Identifier: Apache-2.0
// A batch as every backend receives it, and the residuals. F below is double for f64 acts, and float for all others.
#pragma once

#include <cstdint>

#include "problem.h"

namespace jax_ctc {

// All arrays are row-major. Labels and lengths may hold any values. An invalid one makes the cost of its own sequence
// NaN, and no other.
struct Batch {
  Dtype dtype;
  Shape shape;
  const void* acts;        // (N, T, B, V)
  const int32_t* labels;   // (N*B, L); entries below 0 are padding
  const int32_t* lengths;  // (N*B,)
  int32_t blank;
  bool softmax = true;  // acts are logits. Else they are log-scores, of which only the entries of the blank and the
                        // labels are read

  // Numbers in a row of `Residuals::rows`.
  CTC_INLINE int64_t factors() const { return softmax && !shape.dense() ? 2 : 0; }
};

// The residuals: what the forward pass keeps for the derivatives. Elements are F, and every frame has a row.
//   dense, V <= L + 1:  rows is absent
//                       columns (N, T, B, V)      the gradient of the cost
//   compact:            rows (N, T, B, 2)         shift and scale of the softmax, p = scale * exp(x - shift); of
//                                                 log-scores absent
//                       columns (N, T, B, 1 + L)  occupancies of the blank and of each label position
// In the compact layout equal labels share the column of their first occurrence. The columns of the others, and of
// padding, are 0.
//
// A row of zeros means a zero gradient: the frame is beyond the length, or its sequence has no alignment or an invalid
// argument. A row of NaN means a NaN gradient: the frame is in use, and its sequence has a row without a softmax. Of
// log-scores only the entries of the blank and of the labels become NaN.
struct Residuals {
  void* rows;
  void* columns;
};

// The best path of each sequence, -1 at frames that are not in use or where there is none.
struct Alignment {
  int32_t *path, *label_index;  // (N, T, B)
  void* score;                  // (N*B,)
};

// Calls run(F()). F is the type of costs and residuals.
template <class Run> auto with_result_type(Dtype dtype, Run run) {
  return dtype == Dtype::kF64 ? run(double()) : run(float());
}

}  // namespace jax_ctc

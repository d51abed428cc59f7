// SPDX-License-Identifier: Apache-2.0
// A batch as every backend gets it. F below is double for f64 acts and float for the others.
#pragma once

#include <cstdint>

#include "problem.h"

namespace jax_ctc {

// Row-major arrays. Labels and lengths may hold anything: a bad value makes the cost of its own sequence NaN.
struct Batch {
  Dtype dtype;
  Shape shape;
  const void* acts;        // (N, T, B, V)
  const int32_t* labels;   // (N*B, L); entries below 0 are padding
  const int32_t* lengths;  // (N*B,)
  int32_t blank;
};

// What the forward pass keeps for the derivatives, F per element, one row per frame. A row that has no gradient (after
// the length, or of a sequence without one) is zero, one that has no value (a NaN in the sequence) is NaN.
//   dense, V <= L + 1:  rows is absent;     columns (N, T, B, V)      the gradient of the cost
//   compact:            rows (N, T, B, 2)   shift and scale of the softmax, p = scale * exp(x - shift)
//                       columns (N, T, B, 1 + L)  occupancies: of the blank, and of each label position; equal labels
//                       share the first one's column, the others and the padding are 0
struct Kept {
  void* rows;
  void* columns;
};

// run(F()): F is the type of costs and residuals.
template <class Run> auto with_result_type(Dtype dtype, Run run) {
  return dtype == Dtype::kF64 ? run(double()) : run(float());
}

}  // namespace jax_ctc

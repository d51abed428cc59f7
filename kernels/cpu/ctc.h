// SPDX-License-Identifier: Apache-2.0
// The operations on a batch, as plain functions over pointers. F below is double for f64 acts and float for the others.
#pragma once

#include <cstdint>

#include "../lattice.h"
#include "parallel.h"
#include "task.h"

namespace jax_ctc {

// Row-major arrays. Labels and lengths may hold anything: a bad value makes the cost of its own sequence NaN.
struct Problem {
  Dtype dtype;
  Shape shape;
  const void* acts;        // (N, T, B, V)
  const int32_t* labels;   // (N*B, L); entries below 0 are padding
  const int32_t* lengths;  // (N*B,)
  int32_t blank;
  int64_t threads;  // at most this many
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

void loss(const Problem& problem, void* cost, Executor& executor);  // cost (N*B,)
void forward(const Problem& problem, void* cost, Kept kept, Executor& executor);
// directions and gradient like acts; tangents and cotangents like cost. A zero cotangent gives a zero gradient,
// whatever was kept. The gradient may take the place of acts, or, where dense, of columns.
void tangent(const Problem& problem, Kept kept, const void* directions, void* tangents, Executor& executor);
void cotangent(const Problem& problem, Kept kept, const void* cotangents, void* gradient, Executor& executor);

}  // namespace jax_ctc

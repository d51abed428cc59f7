// SPDX-License-Identifier: Apache-2.0
// The operations on a batch, as plain functions of pointers. Elements are double for f64 acts, and float for all
// others, unless an array is like acts.
#pragma once

#include <cstdint>

#include "../common/batch.h"
#include "parallel.h"
#include "simd/interface.h"

namespace jax_ctc {

struct Problem : Batch {
  int64_t threads;  // the most that an operation may use
};

void loss(const Problem& problem, void* cost, Executor& executor);  // cost (N*B,)
void forward(const Problem& problem, void* cost, Residuals residuals, Executor& executor);

// direction and gradient are like acts, tangents and cotangents like cost. A zero cotangent gives a zero gradient,
// whatever the residuals hold. The gradient may overwrite acts or, if dense, columns.
void tangent(const Problem& problem, Residuals residuals, const void* direction, void* tangents, Executor& executor);
void cotangent(const Problem& problem, Residuals residuals, const void* cotangents, void* gradient, Executor& executor);

// Hessian-vector products: out = cotangent * Hessian * direction for each sequence, like acts. If `masked`, a sequence
// whose direction is 0 at all frames in use has a product of 0, also where its Hessian is NaN.
void hvp(const Problem& problem, Residuals residuals, const void* cotangents, const void* direction, bool masked,
         void* out, Executor& executor);

// What the lattice needs of V classes, or of a slice of them. Here `labels` are L symbols: classes of acts, or below 0.
// Frames that are not in use get (0, 0, 0) and scores of 0.
struct Sums {
  void *top, *ties, *tail;  // (N, T, B)
  void* scores;             // (N, T, B, L)
};
void sums(const Problem& problem, Sums out, Executor& executor);
void sums_cotangent(const Problem& problem, const void* top, const void* ct_tail, const void* ct_scores, void* out,
                    Executor& executor);

// The most probable class of each frame. The problem has no labels, L = 0. `others` is the sum of exp(acts - top) over
// all classes but the best. A row without a softmax gets (-1, -inf, NaN), and a frame that is not in use (-1, 0, 0).
struct TopClasses {
  int32_t* best;       // (N, T, B)
  void *top, *others;  // (N, T, B)
};
void top_class(const Problem& problem, TopClasses out, Executor& executor);

// The best path of each sequence. `star`: label V is the star, and not an invalid one.
void align(const Problem& problem, bool star, Alignment out, Executor& executor);

// Prefix beam search. The problem has no labels, L = 0.
struct BeamOptions {
  int64_t beam_width, top_paths;  // 1 <= top_paths <= beam_width
  int64_t classes_per_frame;      // the most that may be added to a prefix; 0: all
};
struct BeamResults {
  int32_t* labels;         // (N, T, B, top_paths), -1 after the last label
  int32_t* label_lengths;  // (N*B, top_paths)
  void* scores;            // (N*B, top_paths)
};
void beam(const Problem& problem, const BeamOptions& options, const BeamResults& out, Executor& executor);

}  // namespace jax_ctc

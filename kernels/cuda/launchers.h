// SPDX-License-Identifier: Apache-2.0
// The kernels' launchers, a .cu file each, and what they are given. ctc.cpp calls them in turn.
#pragma once

#include "ctc.h"

namespace jax_ctc {
namespace cuda {

// rows.cu: computes each row's softmax normaliser and the emissions of the blank and the labels, or of the classes, and
// removes padding from the labels. When training it also fills `rows`, and dense `columns` with the softmax where
// emissions are not of classes; occupancy.cu completes them.
const char* launch_rows(const Problem& problem, Residuals residuals, void* scratch);

// lattice.cu: emissions -> cost; for training, states of alpha and beta.
const char* launch_lattice(const Problem& problem, bool training, void* cost, void* scratch);

// occupancy.cu: states -> occupancies into columns, and the rows of sequences without a gradient.
const char* launch_occupancies(const Problem& problem, Residuals residuals, void* scratch);

// gradient.cu: rows, columns -> gradient; or its product with directions, in two steps.
const char* launch_gradient(const Problem& problem, Residuals residuals, const void* cotangents, void* gradient);
const char* launch_tangent_rows(const Problem& problem, Residuals residuals, const void* directions, void* scratch);
const char* launch_tangent_sums(const Problem& problem, void* tangents, void* scratch);

// hvp.cu, lattice.cu, occupancy.cu and hvp.cu again: acts, residuals, directions -> emissions of Duals, and what
// the last step needs of each row; -> states; -> changes of the occupancies; -> the Hessian-vector product.
const char* launch_hvp_rows(const Problem& problem, Residuals residuals, const void* directions, void* scratch);
const char* launch_hvp_lattice(const Problem& problem, void* scratch);
const char* launch_hvp_occupancies(const Problem& problem, void* scratch);
const char* launch_hvp(const Problem& problem, const void* cotangents, const void* directions, void* out,
                       void* scratch);

// align_rows.cu, align.cu: the labels, and what the path needs of each row; -> the best path of each sequence.
const char* launch_align_rows(const Problem& problem, bool star, void* scratch);
const char* launch_align(const Problem& problem, Alignment out, void* scratch);

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// The functions of one instruction set. All of this folder is compiled once per instruction set.
#pragma once

#include "align.h"
#include "best_classes.h"
#include "forward.h"
#include "gradient.h"
#include "hvp.h"
#include "slice_sums.h"
#include "top_class.h"

namespace jax_ctc {
namespace {

template <class F> constexpr Kernels<F> kKernels = {sequence_cost<F>,   sequence_hvp<F>,       sequence_alignment<F>,
                                                    gradient_row<F>,    tangent_row<F>,        slice_sums<F>,
                                                    slice_cotangent<F>, read_row<F>,           top_classes<F>,
                                                    best_classes<F>,    dense_gradient_row<F>, dense_tangent_row<F>};

}  // namespace
}  // namespace jax_ctc

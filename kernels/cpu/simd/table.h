// SPDX-License-Identifier: Apache-2.0
// All that is compiled once per instruction set.
#pragma once

#include "forward.h"
#include "hvp.h"
#include "slice_sums.h"

namespace jax_ctc {
namespace {

template <class F> constexpr Kernels<F> kKernels = {sequence_cost<F>, sequence_hvp<F>, gradient_row<F>,
                                                    tangent_row<F>,   slice_sums<F>,   slice_cotangent<F>,
                                                    scale_row<F>,     dot_row<F>};

}  // namespace
}  // namespace jax_ctc

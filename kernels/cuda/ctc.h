// SPDX-License-Identifier: Apache-2.0
// The operations on a batch: each puts one to four kernels into a stream and returns.
#pragma once

#include <cstdint>

#include "../common/batch.h"

namespace jax_ctc {
namespace cuda {

struct Problem : Batch {  // arrays on the device
  void* stream;
};

// Memory that an operation needs for each sequence: bytes, bilinear in T and L but for kAlign (_kernels.py), and from
// one sequence to the next, the same rounded up to 16.
enum class Operation { kLoss, kForward, kTangent, kHvp, kAlign };
int64_t scratch_bytes(Operation operation, Dtype dtype, int64_t T, int64_t L);
int64_t scratch_stride(Operation operation, const Batch& batch);

// Each returns null, or what is wrong.
const char* loss(const Problem& problem, void* cost, void* scratch);  // cost (N*B,)
const char* forward(const Problem& problem, void* cost, Residuals residuals, void* scratch);
// directions and gradient like acts; tangents and cotangents like cost. A zero cotangent gives a zero gradient,
// whatever the residuals, and what is exactly 0 in the gradient stays 0, whatever the cotangent. Residuals, labels and
// lengths may hold anything. The gradient may take the place of acts, or, where dense, of columns.
const char* tangent(const Problem& problem, Residuals residuals, const void* directions, void* tangents, void* scratch);
const char* cotangent(const Problem& problem, Residuals residuals, const void* cotangents, void* gradient);
// out like acts, and nothing else's place: the Hessian times directions, times the cotangent of each sequence.
const char* hvp(const Problem& problem, Residuals residuals, const void* cotangents, const void* directions, void* out,
                void* scratch);

// The best path of each sequence. `star`: label V is the star, and not an invalid one.
const char* align(const Problem& problem, bool star, Alignment out, void* scratch);

// With up to so many labels the gradient may take the place of acts. The corrections of a row wait in shared memory:
// 12,001 doubles are 94 KB, and a block may have 99 KB on every GPU from sm_80 on.
constexpr int64_t kMostLabelsInPlace = 12000;

}  // namespace cuda
}  // namespace jax_ctc

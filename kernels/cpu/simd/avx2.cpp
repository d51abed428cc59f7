// SPDX-License-Identifier: Apache-2.0
// AVX2 with fused multiply-add and conversions of float16: 8 floats.
#define CTC_VECTOR_BYTES 32
#include "target.h"

#if defined(__x86_64__)
CTC_TARGET_BEGIN("avx2,fma,f16c")
#include "table.h"

const jax_ctc::InstructionSet jax_ctc::kAvx2 = {"avx2", jax_ctc::kKernels<float>, jax_ctc::kKernels<double>};

CTC_TARGET_END
#endif

// SPDX-License-Identifier: Apache-2.0
// AVX-512: 16 floats.
#define CTC_VECTOR_BYTES 64
#include "target.h"

#if defined(__x86_64__)
CTC_TARGET_BEGIN("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c")
#include "table.h"

const jax_ctc::InstructionSet jax_ctc::kAvx512 = {"avx512", jax_ctc::kKernels<float>, jax_ctc::kKernels<double>};

CTC_TARGET_END
#endif

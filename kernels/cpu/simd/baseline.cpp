// SPDX-License-Identifier: Apache-2.0
// The instruction set that every machine of the architecture has: SSE2 or NEON, 4 floats.
#define CTC_VECTOR_BYTES 16
#include "table.h"

const jax_ctc::InstructionSet jax_ctc::kBaseline = {"baseline", jax_ctc::kKernels<float>, jax_ctc::kKernels<double>};

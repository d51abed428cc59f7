// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs. Decided once, at the first call.
#pragma once

#include <string>
#include <vector>

#include "simd/interface.h"

namespace jax_ctc {

// Those of this build that this machine has, the widest last.
std::vector<const InstructionSet*> instruction_sets();

// The widest, or the one that the environment variable JAX_CTC_ISA names (baseline, avx2, avx512), where the machine
// has it. What the variable asked for and did not get stands in `isa_complaint`.
const InstructionSet& instruction_set();
std::string isa_complaint();

}  // namespace jax_ctc

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

template <class F> const Kernels<F>& kernels();
template <> inline const Kernels<float>& kernels() { return instruction_set().f32; }
template <> inline const Kernels<double>& kernels() { return instruction_set().f64; }

std::string isa_complaint();

}  // namespace jax_ctc

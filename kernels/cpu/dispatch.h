// SPDX-License-Identifier: Apache-2.0
// Which instruction set runs. The first call decides it.
#pragma once

#include <string>
#include <vector>

#include "simd/interface.h"

namespace jax_ctc {

// The instruction sets of this build that this machine has, the widest last.
std::vector<const InstructionSet*> instruction_sets();

// The widest of them, or the one that the environment variable JAX_CTC_ISA names (baseline, avx2, avx512) if this
// machine has it. If it does not, `isa_complaint` says so, else it is empty.
const InstructionSet& instruction_set();
std::string isa_complaint();

template <class F> const Kernels<F>& kernels();
template <> inline const Kernels<float>& kernels() { return instruction_set().f32; }
template <> inline const Kernels<double>& kernels() { return instruction_set().f64; }

}  // namespace jax_ctc

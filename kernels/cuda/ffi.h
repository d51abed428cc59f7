// SPDX-License-Identifier: Apache-2.0
// The handlers of XLA's custom calls on CUDA devices, by target name.
#pragma once

#include <utility>
#include <vector>

struct XLA_FFI_CallFrame;
struct XLA_FFI_Error;

namespace jax_ctc {

using Handler = XLA_FFI_Error*(XLA_FFI_CallFrame*);
std::vector<std::pair<const char*, Handler*>> cuda_handlers();

// The version of XLA's FFI that they were compiled for: they run on runtimes at least as new.
std::pair<int, int> ffi_api_version();

}  // namespace jax_ctc

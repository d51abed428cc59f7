// SPDX-License-Identifier: Apache-2.0
// The handlers that XLA calls. Each module, _cpu and _cuda, defines both functions in its ffi.cpp.
#pragma once

#include <utility>
#include <vector>

struct XLA_FFI_CallFrame;
struct XLA_FFI_Error;

namespace jax_ctc {

using Handler = XLA_FFI_Error*(XLA_FFI_CallFrame*);

// By target name.
std::vector<std::pair<const char*, Handler*>> handlers();

// The version of XLA's FFI that they were compiled for. They run on runtimes at least as new.
std::pair<int, int> ffi_api_version();

}  // namespace jax_ctc

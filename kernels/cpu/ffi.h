// SPDX-License-Identifier: Apache-2.0
// The handlers that XLA calls, by target name. A name is what exported programs and compilation caches hold on to: a
// change of operands, attributes or meaning is a new name.
#pragma once

#include <utility>
#include <vector>

struct XLA_FFI_CallFrame;
struct XLA_FFI_Error;

namespace jax_ctc {

using Handler = XLA_FFI_Error*(XLA_FFI_CallFrame*);

std::vector<std::pair<const char*, Handler*>> cpu_handlers();

// The version of the interface that the handlers were compiled for.
std::pair<int, int> ffi_api_version();

}  // namespace jax_ctc

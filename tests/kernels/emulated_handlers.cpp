// SPDX-License-Identifier: Apache-2.0
// XLA's handlers of the CUDA kernels over the emulator, for programs on the CPU: everything but the device.
#include "emulated.cpp"
#include "emulated_kernels.h"
#include "xla/ffi/api/ffi.h"

namespace xla::ffi {

// There is no stream on the CPU, and the emulator needs none.
template <class Stream> struct NoStream;
template <class Stream> struct CtxDecoding<NoStream<Stream>> {
  using Type = Stream;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, DiagnosticEngine&) {
    return Stream{};
  }
};

}  // namespace xla::ffi

#define PlatformStream NoStream
#include "../../kernels/cuda/ffi.cpp"

// The handler of a target, or null.
extern "C" void* handler(const char* target) {
  for (const auto& [name, function] : jax_ctc::handlers())
    if (std::strcmp(name, target) == 0) return reinterpret_cast<void*>(function);
  return nullptr;
}

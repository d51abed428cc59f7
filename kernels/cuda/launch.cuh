// SPDX-License-Identifier: Apache-2.0
// How a kernel is launched, with as much shared memory as it asks for. Host code.
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include "machine.cuh"

namespace jax_ctc {
namespace cuda {

constexpr size_t kSharedMemoryWithoutOptIn = 48 << 10;  // bytes that any kernel may have

// The outcome of a call whose error is dealt with here. Else the next launch of this thread would report it.
inline cudaError_t dealt_with(cudaError_t e) {
  if (e != cudaSuccess) cudaGetLastError();
  return e;
}

// Of the current device; `value` where it does not say.
inline int attribute_or(int value, cudaDeviceAttr attribute) {
  int device = 0, found = 0;
  const bool says = dealt_with(cudaGetDevice(&device)) == cudaSuccess &&
                    dealt_with(cudaDeviceGetAttribute(&found, attribute, device)) == cudaSuccess;
  return says ? found : value;
}
// Bytes that a block may have.
inline int shared_memory_limit() {
  return attribute_or(kSharedMemoryWithoutOptIn, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}
inline int multiprocessors() { return attribute_or(1, cudaDevAttrMultiProcessorCount); }

// Raises the kernel's limit on shared memory to the current device's maximum, once for each kernel and device. It is
// always the maximum, because the limit belongs to the kernel and not to a launch: after a lower limit the larger
// launch of another thread would fail.
inline cudaError_t allow_all_shared_memory(const void* kernel) {
  static std::mutex one_at_a_time;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0;
  if (const cudaError_t e = dealt_with(cudaGetDevice(&device)); e != cudaSuccess) return e;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (allowed.count({kernel, device}) != 0) return cudaSuccess;
  const cudaError_t e =
      dealt_with(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory_limit()));
  if (e == cudaSuccess) allowed.insert({kernel, device});
  return e;
}

// Launches without waiting; null, or what is wrong. No programmatic dependent launch: on an H200 it packed the
// lattice's blocks onto the few multiprocessors that were free early, which made training 2.3 times as slow at (400,
// 16, 32, 100).
template <class Arguments> const char* launch(void (*kernel)(Arguments), int64_t blocks, int threads, size_t shared,
                                              void* stream, const Arguments& arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > INT32_MAX) return "more blocks than a grid can have";
  cudaError_t e = cudaSuccess;
  if (shared > kSharedMemoryWithoutOptIn) e = allow_all_shared_memory(reinterpret_cast<const void*>(kernel));
  if (e == cudaSuccess)
    e = start(kernel, unsigned(blocks), threads, shared, static_cast<cudaStream_t>(stream), arguments);
  return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

}  // namespace cuda
}  // namespace jax_ctc

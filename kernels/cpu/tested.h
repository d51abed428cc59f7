// SPDX-License-Identifier: Apache-2.0
// What the test programs of tests/ switch on in the kernels with -DJAX_CTC_TEST. Every other build has none of it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace jax_ctc {
namespace tested {

#if defined(JAX_CTC_TEST)
// Frames whose states the lattice keeps at once, in place of its own choice; 0: its own choice. A multiple of 4.
inline int64_t block_length = 0;
// Work in nanoseconds from which on other threads help.
constexpr double kForkNanoseconds = 0;
// Bytes after each array of the scratch memory that nobody may touch.
constexpr size_t kGap = 256;
#endif

// An access to poisoned memory ends a program that was built with the address sanitizer.
static inline void poison(const void* memory, size_t bytes) {
#if defined(JAX_CTC_TEST) && defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(memory, bytes);
#else
  (void)memory, (void)bytes;
#endif
}
static inline void unpoison(const void* memory, size_t bytes) {
#if defined(JAX_CTC_TEST) && defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, bytes);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace tested
}  // namespace jax_ctc

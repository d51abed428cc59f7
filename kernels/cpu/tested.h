// SPDX-License-Identifier: Apache-2.0
// What the programs in tests/ switch on in the kernels with -DJAX_CTC_TEST. No other build has any of it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace jax_ctc {
namespace tested {

#if defined(JAX_CTC_TEST)
// The number of frames whose states the lattice stores at once, a multiple of 4. 0 leaves the choice to the lattice.
inline int64_t block_length = 0;
// Whether the products of blanks are always computed, not only where a product could be lost (group_sweep.h).
inline bool products_of_blanks = false;

// The fewest slots of a band that is made narrower (band.h).
inline int64_t narrowest_band = 32;
// Whether all rows of halves become their gradient in pieces, not only wide ones (gradient.h).
inline bool pieces_of_halves = false;
// The least work, in nanoseconds, for which other threads help.
constexpr double kForkNanoseconds = 0;
// The bytes after each array of the scratch memory that no kernel may touch.
constexpr size_t kGap = 256;
#endif

// In a program that was built with the address sanitizer, an access to poisoned memory ends the program.
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

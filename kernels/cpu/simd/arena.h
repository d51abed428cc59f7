// SPDX-License-Identifier: Apache-2.0
// Lays out the arrays of one sequence, one after the other, in the scratch memory of a thread.
#pragma once

#include "interface.h"

namespace jax_ctc {
namespace {

// Hands out memory. What does not fit is only measured.
class Arena {
 public:
  explicit Arena(Room room) : room_(room) {}

  // Gives `array` n elements, aligned to 64 bytes, or null if there is no room for them.
  template <class A> void take(A*& array, int64_t n) {
    size_t bytes = 0;
    if (__builtin_mul_overflow(size_t(n), sizeof(A), &bytes) || bytes > kTooMuch) bytes = kTooMuch;
    const size_t begin = size_, end = begin + (bytes + kGap + 63) / 64 * 64;
    size_ = end > kTooMuch ? kTooMuch : end;
    array = reinterpret_cast<A*>(end > room_.bytes ? nullptr : room_.memory + begin);
    if (array != nullptr) tested::unpoison(array, bytes);
  }
  // The bytes that were asked for.
  size_t size() const { return size_; }

 private:
  // More bytes than any machine has. An allocation of this size fails, and the sum of two such sizes does not overflow.
  static constexpr size_t kTooMuch = SIZE_MAX / 4;
#if defined(JAX_CTC_TEST)
  static constexpr size_t kGap = tested::kGap;
#else
  static constexpr size_t kGap = 0;
#endif
  Room room_;
  size_t size_ = 0;
};

// Calls lay_out(arena) once if the memory of the thread is enough. Else it calls it again, with as much as is needed.
// It must take the same arrays both times.
template <class LayOut> void take_from(Scratch& scratch, LayOut lay_out) {
  const Room room = scratch.reserve(0);
  Arena arena(room);
  lay_out(arena);
  if (arena.size() <= room.bytes) return;
  Arena larger(scratch.reserve(arena.size()));
  lay_out(larger);
}

// Scratch memory for `rows` rows of V halves as floats. Null if the dtype needs no conversion.
template <class F> F* row_buffer(Dtype dtype, int64_t V, int64_t rows, Scratch& scratch) {
  F* buffer = nullptr;
  if (is_half(dtype)) take_from(scratch, [&](Arena& arena) { arena.take(buffer, rows * V); });
  return buffer;
}

}  // namespace
}  // namespace jax_ctc

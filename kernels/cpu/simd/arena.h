// SPDX-License-Identifier: Apache-2.0
// Lays out the arrays of one sequence, one after the other, in the scratch memory of a thread.
#pragma once

#include "interface.h"

namespace jax_ctc {
namespace {

// Hands out memory. An arena without memory only measures how much is needed.
class Arena {
 public:
  Arena() = default;
  explicit Arena(char* memory) : memory_(memory) {}

  // Gives `array` n elements, aligned to 64 bytes.
  template <class A> void take(A*& array, int64_t n) {
    array = reinterpret_cast<A*>(memory_ == nullptr ? nullptr : memory_ + size_);
    size_t bytes = 0;
    if (__builtin_mul_overflow(size_t(n), sizeof(A), &bytes) || bytes > kTooMuch) bytes = kTooMuch;
    const size_t room = (bytes + kGap + 63) / 64 * 64;
    if (memory_ != nullptr) tested::poison(memory_ + size_ + bytes, room - bytes);
    size_ = size_ + room > kTooMuch ? kTooMuch : size_ + room;
  }
  size_t size() const { return size_; }

 private:
  // More bytes than any machine has. An allocation of this size fails, and the sum of two such sizes does not overflow.
  static constexpr size_t kTooMuch = SIZE_MAX / 4;
#if defined(JAX_CTC_TEST)
  static constexpr size_t kGap = tested::kGap;
#else
  static constexpr size_t kGap = 0;
#endif
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// Calls lay_out(arena) twice, first to measure and then to hand out. It must take the same arrays both times.
template <class LayOut> void take_from(Scratch& scratch, LayOut lay_out) {
  Arena measure;
  lay_out(measure);
  Arena arena(scratch.reserve(measure.size()));
  lay_out(arena);
}

}  // namespace
}  // namespace jax_ctc

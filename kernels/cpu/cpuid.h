// SPDX-License-Identifier: Apache-2.0
// What an x86-64 machine says of itself. Not with __builtin_cpu_supports: its table is part of GCC's runtime library,
// and programs that link another one (zig, clang-cl) read zeros from it.
#pragma once

#if defined(__x86_64__)
#include <cstdint>

namespace jax_ctc {

struct Cpuid {
  uint32_t leaf1_c = 0, leaf7_b = 0;
  uint32_t saved = 0;  // XCR0: the registers that the system saves when it switches threads

  // A feature counts only if the system saves its registers too.
  bool avx2() const { return has(leaf1_c, kFma | kAvx | kF16c) && has(leaf7_b, kAvx2) && has(saved, kYmm); }
  bool avx512() const { return avx2() && has(leaf7_b, kAvx512) && has(saved, kZmm); }

  static Cpuid of_this_machine() {
    Cpuid found;
    const uint32_t leaves = ask(0).a;
    if (leaves < 7) return found;
    found.leaf1_c = ask(1).c;
    found.leaf7_b = ask(7).b;
    if (has(found.leaf1_c, kXgetbv)) found.saved = xcr0();
    return found;
  }

 private:
  static constexpr uint32_t kFma = 1u << 12, kXgetbv = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;  // leaf 1, ecx
  static constexpr uint32_t kAvx2 = 1u << 5;                                                         // leaf 7, ebx
  static constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;                     // F, DQ, BW, VL
  static constexpr uint32_t kYmm = 0x6, kZmm = 0xe6;  // XMM and YMM; also masks, and both parts of ZMM

  static bool has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

  struct Answer {
    uint32_t a, b, c, d;
  };
  static Answer ask(uint32_t leaf) {
    Answer x;
    asm volatile("cpuid" : "=a"(x.a), "=b"(x.b), "=c"(x.c), "=d"(x.d) : "a"(leaf), "c"(0));
    return x;
  }
  static uint32_t xcr0() {
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
  }
};

}  // namespace jax_ctc
#endif

// SPDX-License-Identifier: Apache-2.0
// How a function is declared that both nvcc and a C++ compiler compile. Plain C++17, host and device.
#pragma once

#if defined(__FAST_MATH__) || defined(__USE_FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "jax_ctc computes with infinities and NaN: -ffast-math, -ffinite-math-only and --use_fast_math break it"
#endif

// CTC_INLINE: a member function. CTC_FN: a free function.
#if defined(__CUDACC__)
#define CTC_INLINE __host__ __device__ __forceinline__
#else
#define CTC_INLINE inline __attribute__((always_inline))
#endif
// Internal linkage, because every instruction set compiles its own copy and the linker must not pick one for all.
#define CTC_FN static CTC_INLINE

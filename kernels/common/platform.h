// SPDX-License-Identifier: Apache-2.0
// How a function is declared that both nvcc and a C++ compiler compile. Plain C++17, host and device.
#pragma once

// CTC_INLINE: a member function. CTC_FN: a free function.
#if defined(__CUDACC__)
#define CTC_INLINE __host__ __device__ __forceinline__
#else
#define CTC_INLINE inline __attribute__((always_inline))
#endif
// Internal linkage, because every instruction set compiles its own copy and the linker must not pick one for all.
#define CTC_FN static CTC_INLINE

// SPDX-License-Identifier: Apache-2.0
// bfloat16 and float16 to float, and back with rounding to nearest even. The caller may have told the machine to flush
// denormal numbers. So arithmetic on halves is integer arithmetic, or instructions that do not flush them. Compilers
// vectorise the plain loops.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../../common/scaled.h"
#include "interface.h"

namespace jax_ctc {
namespace {

CTC_FN float from_bf16(uint16_t h) { return bits<float>(uint32_t(h) << 16); }

CTC_FN uint16_t to_bf16(float x) {
  const uint32_t u = bits<uint32_t>(x), nearest = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return x == x ? nearest : 0x7fc0;
}

CTC_FN float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff;
  const uint32_t normal = (magnitude << 13) + ((magnitude >= 0x7c00 ? 255 - 31 : 127 - 15) << 23);
  const uint32_t denormal = bits<uint32_t>(float(int32_t(magnitude)) * 0x1p-24f);
  return bits<float>(sign | (magnitude < 0x400 ? denormal : normal));
}

CTC_FN uint16_t to_f16(float x) {
  const uint32_t u = bits<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  const uint32_t shifted = magnitude - ((127u - 15) << 23);
  const uint32_t normal = (shifted + 0xfff + (shifted >> 13 & 1)) >> 13;
  const uint32_t denormal =
      bits<uint32_t>(bits<float>(magnitude) + 0.5f) - bits<uint32_t>(0.5f);  // the ulp of 1/2 is 2^-24
  const uint32_t finite = magnitude < 0x38800000 ? denormal : normal;
  const uint32_t bounded = magnitude >= 0x477ff000 ? 0x7c00 : finite;  // 65520 and above round to infinity
  return sign | (magnitude > 0x7f800000 ? 0x7e00 : bounded);
}

// Of kF16AtOnce elements, where there are instructions for it.
#if defined(CTC_VECTOR_BYTES) && CTC_VECTOR_BYTES > 16
constexpr int64_t kF16AtOnce = 8;
inline void convert_some_f16(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void convert_some_f16(const float* from, uint16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
constexpr int64_t kF16AtOnce = 4;
inline void convert_some_f16(const uint16_t* from, float* to) {
  vst1q_f32(to, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}
inline void convert_some_f16(const float* from, uint16_t* to) {
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from))));
}
#else
constexpr int64_t kF16AtOnce = 1;
inline void convert_some_f16(const uint16_t* from, float* to) { *to = from_f16(*from); }
inline void convert_some_f16(const float* from, uint16_t* to) { *to = to_f16(*from); }
#endif

inline void widen(Dtype dtype, const uint16_t* from, int64_t n, float* to) {
  if (dtype == Dtype::kBF16) {
    for (int64_t i = 0; i < n; ++i) to[i] = from_bf16(from[i]);
  } else {
    int64_t i = 0;
    for (; i + kF16AtOnce <= n; i += kF16AtOnce) convert_some_f16(from + i, to + i);
    for (; i < n; ++i) to[i] = from_f16(from[i]);
  }
}

inline void narrow(Dtype dtype, const float* from, int64_t n, uint16_t* to) {
  if (dtype == Dtype::kBF16) {
    for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(from[i]);
  } else {
    int64_t i = 0;
    for (; i + kF16AtOnce <= n; i += kF16AtOnce) convert_some_f16(from + i, to + i);
    for (; i < n; ++i) to[i] = to_f16(from[i]);
  }
}

// A row of V elements as F. If the elements are halves, this is a copy in `buffer`, else the row itself.
template <class F> const F* widened(Dtype dtype, const void* row, int64_t V, F* buffer) {
  if constexpr (sizeof(F) == 4) {
    if (is_half(dtype)) {
      widen(dtype, static_cast<const uint16_t*>(row), V, buffer);
      return buffer;
    }
  }
  return static_cast<const F*>(row);
}

// One element of a row as F.
template <class F> CTC_FN F entry(Dtype dtype, const void* row, int64_t v) {
  if constexpr (sizeof(F) == 4) {
    if (dtype == Dtype::kBF16) return from_bf16(static_cast<const uint16_t*>(row)[v]);
    if (dtype == Dtype::kF16) return from_f16(static_cast<const uint16_t*>(row)[v]);
  }
  return static_cast<const F*>(row)[v];
}
template <class F> CTC_FN void set_entry(Dtype dtype, void* row, int64_t v, F x) {
  if constexpr (sizeof(F) == 4) {
    if (is_half(dtype)) return narrow(dtype, &x, 1, static_cast<uint16_t*>(row) + v);
  }
  static_cast<F*>(row)[v] = x;
}

}  // namespace
}  // namespace jax_ctc

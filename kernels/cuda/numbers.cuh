// SPDX-License-Identifier: Apache-2.0
// Arithmetic of kernels: exp, log, the types of acts and what is computed in, division.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "machine.cuh"

namespace jax_ctc {
namespace cuda {

template <class F> constexpr F kLowest = sizeof(F) == 4 ? F(-FLT_MAX) : F(-DBL_MAX);
template <class F> CTC_DEVICE F not_a_number() { return F(NAN); }
template <class F> CTC_DEVICE F infinity() { return F(INFINITY); }

// exp(x) for x <= 0. -inf gives 0, NaN stays.
CTC_DEVICE float exp_of_nonpositive(float x) { return exp2_approx(x * 1.44269504088896341f); }
CTC_DEVICE double exp_of_nonpositive(double x) { return exp(x); }
CTC_DEVICE float log_of(float x) { return logf(x); }
CTC_DEVICE double log_of(double x) { return log(x); }
CTC_DEVICE float log_of_1_and(float x) { return log1pf(x); }
CTC_DEVICE double log_of_1_and(double x) { return log1p(x); }

CTC_DEVICE float widen(float x) { return x; }
CTC_DEVICE double widen(double x) { return x; }
CTC_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
CTC_DEVICE float widen(__half x) { return __half2float(x); }
template <class A, class F> struct Narrow {
  static CTC_DEVICE A of(F x) { return x; }
};
template <> struct Narrow<__nv_bfloat16, float> {
  static CTC_DEVICE __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
};
template <> struct Narrow<__half, float> {
  static CTC_DEVICE __half of(float x) { return __float2half_rn(x); }
};

// What is computed in, for acts of A.
template <class A> struct ComputedIn {
  using type = float;
};
template <> struct ComputedIn<double> {
  using type = double;
};
template <class A> using Computed = typename ComputedIn<A>::type;

// Elements of an array that are moved at once: 16 bytes of them, or less.
template <class A, int n = 16 / int(sizeof(A))> struct alignas(n * sizeof(A)) Piece {
  static constexpr int size = n;
  A at[n];
};

// a / b for a >= 0, b > 0; 64-bit division is a call of some 100 instructions.
CTC_DEVICE int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

}  // namespace cuda
}  // namespace jax_ctc

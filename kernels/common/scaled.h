// SPDX-License-Identifier: Apache-2.0
// The value type of the lattice: m * 2^e, where every value has an exponent of its own (docs/ctc.md, section 3).
//
// R is a float, a double, or a vector of them. Z is the integers of the same shape. Sums and products need no exp, no
// log and no branch, and nothing that matters can underflow. There is no zero: the value of a state that was not
// reached has the exponent kNone. It contributes exactly 0 to every sum with the value of a state that was reached.
#pragma once

#include <cstdint>
#include <type_traits>

#include "platform.h"

namespace jax_ctc {

constexpr int32_t kNone = -(1 << 28);                // exponent of a state that was not reached
constexpr int32_t kDead = -(1 << 26);                // exponent of the emission of a class with probability 0
constexpr int32_t kNoPath = -(1 << 26) + (1 << 22);  // a total below it has a dead emission: there is no alignment
constexpr int kFoldEvery = 16;                       // frames. A mantissa grows by less than 2^2.2 a frame

// The IEEE layout of R. Here for scalars. The file that defines a vector type specialises it for that.
template <class R> struct Layout;
template <> struct Layout<float> {
  using Integer = int32_t;
  static constexpr int mantissa = 23, bias = 127;
};
template <> struct Layout<double> {
  using Integer = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
};
template <class R> using Integer = typename Layout<R>::Integer;

template <class To, class From> CTC_FN To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
template <class T> CTC_FN constexpr T max_of(T a, T b) { return a > b ? a : b; }
template <class T> CTC_FN constexpr T min_of(T a, T b) { return a < b ? a : b; }

// x as a T, or in every lane of T if T is a vector.
template <class T, class = void> struct ElementOf {
  using type = T;
};
template <class T> struct ElementOf<T, std::void_t<decltype(T{}[0])>> {
  using type = std::remove_cv_t<std::remove_reference_t<decltype(T{}[0])>>;
};
template <class T, class S> CTC_FN T splat(S x) { return T{} + static_cast<typename ElementOf<T>::type>(x); }

// 2^(d - bias) for d <= bias, and exactly 0 from d = 0 down.
template <class R> CTC_FN R pow2_above(Integer<R> d) { return bits<R>(max_of(d, Integer<R>{}) << Layout<R>::mantissa); }
// 2^d for d <= 0, and exactly 0 from d = -bias down.
template <class R> CTC_FN R pow2(Integer<R> d) {
  using Z = Integer<R>;
  return bits<R>((max_of(d, splat<Z>(-Layout<R>::bias)) + Layout<R>::bias) << Layout<R>::mantissa);
}
// 2^(a - e) for a <= e. For the same e a CPU subtracts the bias once; a GPU shifts and adds it in one instruction.
template <class R> CTC_FN R pow2_below(Integer<R> a, Integer<R> e) {
#if defined(__CUDACC__)
  return pow2<R>(a - e);
#else
  return pow2_above<R>(a - (e - Layout<R>::bias));
#endif
}
// 2^d for d of either sign, and 2^bias from d = bias up.
template <class R> CTC_FN R pow2_any(Integer<R> d) { return pow2<R>(min_of(d, splat<Integer<R>>(Layout<R>::bias))); }

template <class R> struct Scaled {
  using Z = Integer<R>;
  R m;
  Z e;
  static CTC_INLINE Scaled none() { return {splat<R>(1), splat<Z>(kNone)}; }
};

template <class R> CTC_FN Scaled<R> add(Scaled<R> a, Scaled<R> b) {
  const Integer<R> e = max_of(a.e, b.e);
  return {a.m * pow2_below<R>(a.e, e) + b.m * pow2_below<R>(b.e, e), e};
}

// The sum of three values. Only two operations wait for `late`.
template <class R> CTC_FN Scaled<R> add(Scaled<R> a, Scaled<R> b, Scaled<R> late) {
  const Integer<R> e = max_of(max_of(a.e, b.e), late.e);
  return {a.m * pow2<R>(a.e - e) + b.m * pow2<R>(b.e - e) + late.m * pow2<R>(late.e - e), e};
}

// The exponent never falls below kNone, so that sums of exponents stay inside an int32.
template <class R> CTC_FN Scaled<R> times(Scaled<R> a, Scaled<R> b) {
  return {a.m * b.m, max_of(a.e + b.e, splat<Integer<R>>(kNone))};
}

// a where `mask` is set, else b. A mask is all ones or all zeros. A vector has one for each lane.
template <class R> CTC_FN Scaled<R> select(Integer<R> mask, Scaled<R> a, Scaled<R> b) {
  return {mask < 0 ? a.m : b.m, mask < 0 ? a.e : b.e};
}

// a where `mask` is set, else a value that adds 0 to the value of any state that was reached.
template <class R> CTC_FN Scaled<R> only_if(Integer<R> mask, Scaled<R> a) {
  return {a.m, mask < 0 ? a.e : splat<Integer<R>>(kNone)};
}

// The same value, with the mantissa in [1, 2).
template <class R> CTC_FN Scaled<R> fold(Scaled<R> a) {
  using Z = Integer<R>;
  const Z x = (bits<Z>(a.m) >> Layout<R>::mantissa) - Layout<R>::bias;
  const Z one = splat<Z>(1) << Layout<R>::mantissa;
  return {bits<R>(bits<Z>(a.m) - x * one), max_of(a.e + x, splat<Z>(kNone))};
}

// a * b / 2^reference as a plain number.
template <class R> CTC_FN R product(Scaled<R> a, Scaled<R> b, Integer<R> reference) {
  return a.m * b.m * pow2_any<R>(a.e + b.e - reference);
}

}  // namespace jax_ctc

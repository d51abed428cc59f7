// SPDX-License-Identifier: Apache-2.0
// The value type of second derivatives: a scaled number and its derivative along a direction, (m, d) * 2^e
// (docs/ctc.md, section 4). The derivative shares the exponent of its value, so it needs no maximum and no shift of its
// own.
#pragma once

#include "scaled.h"

namespace jax_ctc {

// A plain number and its derivative.
template <class R> struct Number {
  R value, change;
  CTC_INLINE Number& operator+=(Number other) {
    value += other.value, change += other.change;
    return *this;
  }
  CTC_INLINE Number operator+(Number other) const { return other += *this; }
  CTC_INLINE Number operator*(R constant) const { return {value * constant, change * constant}; }
  CTC_INLINE Number operator*(Number other) const {
    return {value * other.value, value * other.change + change * other.value};
  }
};

// A direction at a class less `centre`, the direction's mean under the occupancies of the frame, which leaves out those
// of 0. So where the mean is finite, and the direction is not, the occupancy is 0, and nothing changes with that class.
template <class R> CTC_FN R change_in_frame(R direction, R centre) {
  const R change = direction - centre;
  return change - change == R{} ? change : centre - centre;
}

template <class R> struct Dual {
  using Z = Integer<R>;
  R m;
  Z e;
  R d;
  static CTC_INLINE Dual none() { return {splat<R>(1), splat<Z>(kNone), R{}}; }
};

template <class R> CTC_FN Dual<R> add(Dual<R> a, Dual<R> b) {
  const Integer<R> e = max_of(a.e, b.e);
  const R x = pow2_below<R>(a.e, e), y = pow2_below<R>(b.e, e);
  return {a.m * x + b.m * y, e, a.d * x + b.d * y};
}

// The sum of three values. See scaled.h.
template <class R> CTC_FN Dual<R> add(Dual<R> a, Dual<R> b, Dual<R> late) {
  const Integer<R> e = max_of(max_of(a.e, b.e), late.e);
  const R x = pow2<R>(a.e - e), y = pow2<R>(b.e - e), z = pow2<R>(late.e - e);
  return {a.m * x + b.m * y + late.m * z, e, a.d * x + b.d * y + late.d * z};
}

template <class R> CTC_FN Dual<R> times(Dual<R> a, Dual<R> b) {
  return {a.m * b.m, max_of(a.e + b.e, splat<Integer<R>>(kNone)), a.d * b.m + a.m * b.d};
}

template <class R> CTC_FN Dual<R> select(Integer<R> mask, Dual<R> a, Dual<R> b) {
  return {mask < 0 ? a.m : b.m, mask < 0 ? a.e : b.e, mask < 0 ? a.d : b.d};
}

template <class R> CTC_FN Dual<R> only_if(Integer<R> mask, Dual<R> a) {
  return {a.m, mask < 0 ? a.e : splat<Integer<R>>(kNone), a.d};
}

template <class R> CTC_FN Dual<R> fold(Dual<R> a) {
  const Scaled<R> folded = fold(Scaled<R>{a.m, a.e});
  const Integer<R> x = (bits<Integer<R>>(a.m) >> Layout<R>::mantissa) - Layout<R>::bias;
  return {folded.m, folded.e, a.d * pow2_any<R>(-x)};
}

// a * b / 2^reference. Both mantissas may be as large as 2^41. In this order of operations no intermediate result
// overflows.
template <class R> CTC_FN Number<R> product(Dual<R> a, Dual<R> b, Integer<R> reference) {
  const R scale = pow2_any<R>(a.e + b.e - reference), m = a.m * scale;
  return {m * b.m, a.d * scale * b.m + m * b.d};
}

}  // namespace jax_ctc

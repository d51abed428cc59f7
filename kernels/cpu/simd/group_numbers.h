// SPDX-License-Identifier: Apache-2.0
// The numbers of the lattice in groups of frames (group_step.h): vectors of doubles, or of doubles with derivatives.
#pragma once

#include "../../common/dual.h"
#include "class_table.h"

namespace jax_ctc {
namespace {

using Doubles = Lanes<double>;
constexpr int kDoubles = kLanes<double>;

// Exponents are integers in doubles, because some instruction sets cannot compare integers of 64 bits.
// The exponent of x > 0.
CTC_FN Doubles exponent_of(Doubles x) {
  typedef uint64_t Bits __attribute__((vector_size(CTC_VECTOR_BYTES)));
  constexpr double kOne = 0x1p52;  // an integer below it fills its lowest bits
  return bits<Doubles>((bits<Bits>(x) >> 52) | bits<uint64_t>(kOne)) - (kOne + 1023);
}
CTC_FN int exponent_of(float x) { return (bits<int32_t>(x) >> 23) - 127; }
CTC_FN double exponent_of(double x) { return double((bits<int64_t>(x) >> 52) - 1023); }
// 2^e: 0 below e = -1022, and 2^1023 from there up.
CTC_FN Doubles power_of_2(Doubles e) {
  const Doubles bounded = min_of(max_of(e, splat<Doubles>(-1023)), splat<Doubles>(1023));
  return bits<Doubles>(bits<Integer<Doubles>>(bounded + (0x1.8p52 + 1023)) << 52);
}

// Below, V is Doubles or Number<Doubles>. In memory derivatives stand `pitch` elements after their numbers.
template <class V> constexpr int kPartsOf = sizeof(V) / sizeof(Doubles);

CTC_FN Doubles value_of(Doubles v) { return v; }
CTC_FN Doubles value_of(Number<Doubles> v) { return v.value; }

CTC_FN void load_number(const double* at, int64_t, Doubles& to) { to = load<Doubles>(at); }
CTC_FN void load_number(const double* at, int64_t pitch, Number<Doubles>& to) {
  to = {load<Doubles>(at), load<Doubles>(at + pitch)};
}
CTC_FN void load_number(const float* at, int64_t, Doubles& to) { to = load_widened(at); }
CTC_FN void load_number(const float* at, int64_t pitch, Number<Doubles>& to) {
  to = {load_widened(at), load_widened(at + pitch)};
}

CTC_FN Number<Doubles> shift_up(Number<Doubles> below, Number<Doubles> v) {
  return {shift_up(below.value, v.value), shift_up(below.change, v.change)};
}
CTC_FN Number<Doubles> shift_down(Number<Doubles> v, Number<Doubles> above) {
  return {shift_down(v.value, above.value), shift_down(v.change, above.change)};
}

// A number times a ratio y, which has a derivative u * y: `y` is (y, u).
CTC_FN Doubles times_ratio(Doubles v, Doubles y) { return v * y; }
CTC_FN Number<Doubles> times_ratio(Number<Doubles> v, Number<Doubles> y) {
  return {v.value * y.value, (v.change + v.value * y.change) * y.value};
}

// A derivative, along the directions that fit (directed_ratios.h), is less than 2^kMostChange times its number.
constexpr int kMostChange = 64;

// The ratios of labels at successive frames, `frame` elements apart. Their derivatives, divided by them, are `pitch`
// elements further.
struct Ratios {
  const float* first;
  int64_t frame, pitch;
};

// The frames of alpha that are taken together. Beta takes a group at once.
constexpr int kTogether = CTC_VECTOR_BYTES == 16 ? 2 : kFrames;

}  // namespace
}  // namespace jax_ctc

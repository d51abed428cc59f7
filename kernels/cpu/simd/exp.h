// SPDX-License-Identifier: Apache-2.0
// exp of vectors of numbers, none of which exceeds a bound: for the sums and the softmax of rows. Emissions, which are
// multiplied, have an exp that keeps more digits (emission.h).
#pragma once

#include "lanes.h"

namespace jax_ctc {
namespace {

// 2^x = 2^n root^j p(f), where root = 2^(1 / 2^kBits), and n + j / 2^kBits is x rounded. A polynomial p is 1 + ...,
// with the smallest largest relative error on |f| <= 1 / 2^(kBits + 1). `power` makes 2^n root^j of a float or double
// whose lowest bits are n + bias, then j. It is 0 if these are all 0. If only n + bias is 0, it is less than the
// smallest normal number.
template <class F> struct Exp2;
template <> struct Exp2<double> {
  static constexpr int kBits = 0, terms = 11;  // an error of 2.2e-16
  double coefficient[terms] = {1,
                               0.69314718055994917561,
                               0.24022650695909101675,
                               0.055504108664481815964,
                               0.0096181291079831063137,
                               0.0013333558225800853821,
                               0.00015403529994281648836,
                               0.000015252659427374816511,
                               1.3215653577451931069e-6,
                               1.0208323055302919941e-7,
                               7.0381825747354676927e-9};
  static CTC_INLINE DoubleLanes power(LongLanes sum) { return bits<DoubleLanes>(sum << Layout<double>::mantissa); }
};
#if CTC_VECTOR_BYTES == 16
template <> struct Exp2<float> {
  static constexpr int kBits = 0, terms = 6;  // an error of 9.1e-8
  float coefficient[terms] = {1, 0.693146978f, 0.240222421f, 0.0555073374f, 0.00967151264f, 0.00132647271f};
  static CTC_INLINE FloatLanes power(IntLanes sum) { return bits<FloatLanes>(sum << Layout<float>::mantissa); }
};
#else
// The powers of the root are in one vector or two. exp of a wide row is bound by multiplications: a root takes the
// place of two of eight with AVX2, of three with AVX-512, and other units of a processor look it up. Entry j is the bit
// pattern of root^j less that of 1, and less j where the lowest bits of n + bias and j are added to it.
template <> struct Exp2<float> {
#if CTC_VECTOR_BYTES == 32
  static constexpr int kBits = 3, terms = 4;  // an error of 2.6e-8
  float coefficient[terms] = {1, 0.69314724f, 0.24025752f, 0.055488963f};
  static CTC_INLINE IntLanes roots(IntLanes j) {
    const IntLanes table = {0, -289342, -509968, -655657, -719629, -694486, -572163, -343865};
    return bits<IntLanes>(_mm256_permutevar8x32_epi32(bits<__m256i>(table), bits<__m256i>(j)));
  }
#else
  static constexpr int kBits = 5, terms = 3;  // an error of 5.3e-8
  float coefficient[terms] = {1, 0.6931573f, 0.24022649f};
  static CTC_INLINE IntLanes roots(IntLanes j) {
    const IntLanes low = {0,       -78457,  -152893, -223217, -289342, -351174, -408621, -461584,
                          -509968, -553670, -592590, -626621, -655657, -679589, -698305, -711690};
    const IntLanes high = {-719629, -722001, -718684, -709555, -694486, -673346, -646004, -612322,
                           -572163, -525384, -471841, -411385, -343865, -269126, -187011, -97357};
    return bits<IntLanes>(_mm512_permutex2var_epi32(bits<__m512i>(low), bits<__m512i>(j), bits<__m512i>(high)));
  }
#endif
  static CTC_INLINE FloatLanes power(IntLanes sum) {
    return bits<FloatLanes>((sum << (Layout<float>::mantissa - kBits)) + roots(sum));
  }
};
#endif
template <class F> constexpr F kLog2E = F(1.44269504088896340736);
template <class F> constexpr F kLeastExponent = F(-Layout<F>::bias * 0.693147180559945309417);
// Adding it rounds to a multiple of 1 / 2^kBits, and leaves what Exp2::power takes in the lowest bits.
template <class F> constexpr F kRoundExponent =
    F(3) * F(int64_t(1) << (Layout<F>::mantissa - 1 - Exp2<F>::kBits)) + F(Layout<F>::bias);

// exp(x) = power * p(f). Where that is below the smallest normal number, the product is wrong by less than this number.
// For -inf `power` is 0. Of NaN f is NaN.
template <class V> struct ExpParts {
  V f, power;
};
// exp(x) = p * power.
template <class V> struct ExpFactors {
  V p, power;
};
template <class F, class V> CTC_FN ExpFactors<V> factors_of(const ExpParts<V>& parts) {
  return {polynomial<Exp2<F>>(parts.f), parts.power};
}

// `round` is kRoundExponent, less k for exp(x) / 2^k. x is not below what has the power 0.
template <class F, class V> CTC_FN ExpParts<V> exp_parts(V x, V round) {
  const V log2e = splat<V>(kLog2E<F>), rounded = fused(x, log2e, round), n = rounded - round;
  return {fused(x, log2e, -n), Exp2<F>::power(bits<Integer<V>>(rounded))};
}
// For x <= 0. The relative error of a float grows to |x| / 2^26, because log2(e) is rounded, and to five times as much
// without a fused multiply-add. The sum of a row, which has exp(0), is right to one rounding: x exp(x) is small.
template <class F, class V> CTC_FN ExpParts<V> exp_parts(V x) {
  return exp_parts<F>(at_least(kLeastExponent<F>, x), splat<V>(kRoundExponent<F>));
}
template <class F, class V> CTC_FN ExpFactors<V> exp_factors(V x) { return factors_of<F>(exp_parts<F>(x)); }
template <class F, class V> CTC_FN V exp_of_nonpositive(V x) {
  const ExpFactors<V> y = exp_factors<F>(x);
  return y.p * y.power;
}

// scale * exp(x) for x <= 0. A short polynomial is multiplied by the scale beforehand. So a scale above kMost may give
// inf.
template <class F> class ScaledExp {
  using V = Lanes<F>;
  static constexpr int kTerms = Exp2<F>::kBits > 0 ? Exp2<F>::terms : 1;
  V factor[kTerms];

 public:
  static constexpr F kMost = F(0x1p127);
  CTC_INLINE explicit ScaledExp(F scale) {
    constexpr Exp2<F> series;
    for (int k = 0; k < kTerms; ++k) factor[k] = splat<V>(scale * series.coefficient[k]);
  }
  CTC_INLINE V operator()(V x) const {
    if constexpr (kTerms == 1) {
      return exp_of_nonpositive<F>(x) * factor[0];
    } else {
      const ExpParts<V> parts = exp_parts<F>(x);
      V p = factor[kTerms - 1];
      for (int k = kTerms - 2; k >= 0; --k) p = p * parts.f + factor[k];
      return p * parts.power;
    }
  }
};

// exp(x - top) * of_top() for x <= top. Of differences of_top() is 1.
template <class F> class ExpOfDifferences {
  F top;

 public:
  explicit ExpOfDifferences(F top) : top(top) {}
  template <class V> CTC_INLINE ExpFactors<V> operator()(V x) const { return exp_factors<F>(x - top); }
  double of_top() const { return 1; }
};
// The same without the subtraction, of floats that are not far: relative to 2^k, where k is top * log2(e) rounded. Here
// x may be up to kAbove above `top`. That log2(e) is rounded changes exp(x) and of(y) by nearly the same factor: the
// relative error of their ratio grows to |x - y| / 2^26. Only with a fused multiply-add, because the product with
// log2(e) must not be rounded. All entries of a sum are divided by `of` the largest. So it is a double: an error of it
// would not be averaged.
class ExpOfLogits {
  float k;
  double f_of_top;
  FloatLanes lowest, round;

 public:
  static constexpr float kAbove = 40;  // nats. Exponents and the sums of parts of a row stay in range
  // Then `lowest` is right to a small part of 1 / 2^kBits, and `round` is exact.
  template <class F> static bool allows(F top) {
    constexpr F kMost = 16384;
    return kFused && sizeof(F) == 4 && top < kMost && -top < kMost;
  }
  explicit ExpOfLogits(float top)
      : k(__builtin_rintf(top * kLog2E<float>)),
        f_of_top(log2_of(top)),
        lowest(splat<FloatLanes>((k - Layout<float>::bias) * 0.693147180559945309417f)),
        round(splat<FloatLanes>(kRoundExponent<float> - k)) {}
  CTC_INLINE ExpFactors<FloatLanes> operator()(FloatLanes x) const {
    return factors_of<float>(exp_parts<float>(max_of(lowest, x), round));
  }
  double of_top() const { return polynomial<Exp2<double>>(f_of_top); }
  // Of a number that is not far from top. Of top itself n is 0.
  double of(float x) const {
    const double y = log2_of(x), n = __builtin_rint(y);
    return polynomial<Exp2<double>>(y - n) *
           bits<double>((int64_t(n) + Layout<double>::bias) << Layout<double>::mantissa);
  }

 private:
  double log2_of(float x) const { return double(x) * double(kLog2E<float>) - k; }
};

}  // namespace
}  // namespace jax_ctc

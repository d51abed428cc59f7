// SPDX-License-Identifier: Apache-2.0
// Vectors of CTC_VECTOR_BYTES bytes of floats or doubles: load, store, neighbours, sums.
//
// Each instruction set includes this file inside its target region (target.h). So everything here has internal linkage.
#pragma once

#include "../../common/emission.h"
#include "target.h"

namespace jax_ctc {
namespace {

typedef float FloatLanes __attribute__((vector_size(CTC_VECTOR_BYTES)));
typedef int32_t IntLanes __attribute__((vector_size(CTC_VECTOR_BYTES)));
typedef double DoubleLanes __attribute__((vector_size(CTC_VECTOR_BYTES)));
typedef int64_t LongLanes __attribute__((vector_size(CTC_VECTOR_BYTES)));
typedef int32_t HalfLanes __attribute__((vector_size(CTC_VECTOR_BYTES / 2)));  // as many as LongLanes
typedef float HalfFloats __attribute__((vector_size(CTC_VECTOR_BYTES / 2)));   // as many as DoubleLanes

}  // namespace

template <> struct Layout<FloatLanes> : Layout<float> {
  using Integer = IntLanes;
};
template <> struct Layout<DoubleLanes> : Layout<double> {
  using Integer = LongLanes;
};

namespace {

// x * y + z, of floats with one rounding if kFused.
#if CTC_VECTOR_BYTES == 64
constexpr bool kFused = true;
CTC_FN FloatLanes fused(FloatLanes x, FloatLanes y, FloatLanes z) { return _mm512_fmadd_ps(x, y, z); }
#elif CTC_VECTOR_BYTES == 32
constexpr bool kFused = true;
CTC_FN FloatLanes fused(FloatLanes x, FloatLanes y, FloatLanes z) { return _mm256_fmadd_ps(x, y, z); }
#elif defined(__aarch64__)
constexpr bool kFused = true;
CTC_FN FloatLanes fused(FloatLanes x, FloatLanes y, FloatLanes z) { return vfmaq_f32(z, x, y); }
#else
constexpr bool kFused = false;
CTC_FN FloatLanes fused(FloatLanes x, FloatLanes y, FloatLanes z) { return x * y + z; }
#endif

CTC_FN DoubleLanes fused(DoubleLanes x, DoubleLanes y, DoubleLanes z) { return x * y + z; }

#if CTC_VECTOR_BYTES > 16 || defined(__aarch64__)
template <> struct LessLn2<FloatLanes> {
  static CTC_INLINE FloatLanes times(FloatLanes n, FloatLanes x) {
    // x - n * kHigh is exact, because it is less than 1/2 and a multiple of 2^-25.
    constexpr float kHigh = 0x1.62e43p-1f, kRest = -0x1.05c610ca86c39p-29;
    return fused(splat<FloatLanes>(-kRest), n, fused(splat<FloatLanes>(-kHigh), n, x));
  }
};
#endif

template <class F> struct LanesOf;
template <> struct LanesOf<float> {
  using type = FloatLanes;
};
template <> struct LanesOf<double> {
  using type = DoubleLanes;
};
template <class F> using Lanes = typename LanesOf<F>::type;
template <class F> constexpr int kLanes = CTC_VECTOR_BYTES / sizeof(F);

// V is a vector type, F its element.
template <class V, class F> CTC_FN V load(const F* from) {
  static_assert(sizeof(V) == CTC_VECTOR_BYTES);
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class F> CTC_FN void store(F* to, V v) { __builtin_memcpy(to, &v, sizeof v); }

// As many floats as a vector has doubles. Of __builtin_convertvector GCC 12 makes three instructions or more.
CTC_FN DoubleLanes load_widened(const float* from) {
#if defined(__clang__)
  HalfFloats v;
  __builtin_memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, DoubleLanes);
#elif defined(__aarch64__)
  return vcvt_f64_f32(vld1_f32(from));
#elif CTC_VECTOR_BYTES == 64
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));  // without a mask GCC 12 warns
#elif CTC_VECTOR_BYTES == 32
  return _mm256_cvtps_pd(_mm_loadu_ps(from));
#else
  return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#endif
}
CTC_FN HalfFloats narrowed(DoubleLanes v) { return __builtin_convertvector(v, HalfFloats); }
CTC_FN void store_narrowed(float* to, DoubleLanes v) {
  const HalfFloats narrow = narrowed(v);
  __builtin_memcpy(to, &narrow, sizeof narrow);
}

// Loads the first n lanes and fills the others with `rest`.
template <class V, class F> CTC_FN V load_first(const F* from, int64_t n, F rest) {
  V v = splat<V>(rest);
  __builtin_memcpy(&v, from, n * sizeof(F));
  return v;
}
template <class V, class F> CTC_FN void store_first(F* to, V v, int64_t n) { __builtin_memcpy(to, &v, n * sizeof(F)); }

template <int... K> struct Indices {};
template <int N, int... K> struct Count : Count<N - 1, N - 1, K...> {};
template <int... K> struct Count<0, K...> {
  using type = Indices<K...>;
};
template <class V> constexpr int kCount = sizeof(V) / sizeof(V{}[0]);

template <class V, int... K> CTC_FN Integer<V> number_lanes(Indices<K...>) { return Integer<V>{K...}; }
template <class V> CTC_FN Integer<V> number_lanes() { return number_lanes<V>(typename Count<kCount<V>>::type{}); }
// Loads the last n < kLanes of `size` entries and fills the other lanes with `rest`. If size >= kLanes, one unaligned
// load reaches back over entries that were processed already, and these lanes are masked; the n entries are then in the
// upper lanes. A memcpy of n bytes would wait for its own store before it is loaded again: about 20 cycles.
template <class V, class F> CTC_FN V load_last(const F* from, int64_t size, int64_t n, F rest) {
  constexpr int N = kLanes<F>;
  if (size < N) return load_first<V>(from, size, rest);
  return number_lanes<V>() >= splat<Integer<V>>(N - n) ? load<V>(from + size - N) : splat<V>(rest);
}

template <class V, int... K> CTC_FN V shuffle_up(V below, V v, Indices<K...>) {
  return __builtin_shufflevector(below, v, (kCount<V> - 1 + K)...);
}
template <class V, int... K> CTC_FN V shuffle_down(V v, V above, Indices<K...>) {
  return __builtin_shufflevector(v, above, (K + 1)...);
}
// Each lane gets its lower neighbour; lane 0 gets the last lane of `below`.
template <class V> CTC_FN V shift_up(V below, V v) { return shuffle_up(below, v, typename Count<kCount<V>>::type{}); }
// Each lane gets its upper neighbour; the last lane gets lane 0 of `above`.
template <class V> CTC_FN V shift_down(V v, V above) {
  return shuffle_down(v, above, typename Count<kCount<V>>::type{});
}

// Lane k gets lane from[k] of v.
template <class V, class Z> CTC_FN V permute(V v, Z from) {
#if defined(__clang__)
  V to = v;
  for (int k = 0; k < kCount<V>; ++k) to[k] = v[from[k]];
  return to;
#else
  return __builtin_shuffle(v, from);
#endif
}

// Lane k gets lane from[k], modulo their number, of two vectors that are numbered together.
template <class V, class Z> CTC_FN V permute(V low, V high, Z from) {
#if defined(__clang__)
  V to = low;
  for (int k = 0; k < kCount<V>; ++k) {
    const auto lane = from[k] % kCount<V>;
    to[k] = from[k] / kCount<V> % 2 == 0 ? low[lane] : high[lane];
  }
  return to;
#else
  return __builtin_shuffle(low, high, from);
#endif
}
// Lane k in all lanes.
template <int k, class V, int... K> CTC_FN V spread(V v, Indices<K...>) {
  return __builtin_shufflevector(v, v, (0 * K + k)...);
}
template <int k, class V> CTC_FN V spread(V v) { return spread<k>(v, typename Count<kCount<V>>::type{}); }

// The lower halves of integers. Of __builtin_convertvector GCC 12 makes six instructions with AVX2, of this three.
template <int... K> CTC_FN HalfLanes low_halves(IntLanes v, Indices<K...>) {
  return __builtin_shufflevector(v, v, (2 * K)...);
}
CTC_FN HalfLanes low_halves(LongLanes v) {
  return low_halves(bits<IntLanes>(v), typename Count<kCount<LongLanes>>::type{});
}

// Sets bits of the lanes where a comparison holds. With AVX-512 its result is a mask, which an instruction can take.
CTC_FN void set_where(LongLanes where, int64_t set, LongLanes& lanes) {
  if constexpr (CTC_VECTOR_BYTES == 64)
    lanes = where ? lanes | set : lanes;
  else
    lanes |= where & set;
}

template <int kBy, class V, int... K> CTC_FN V rotate(V v, Indices<K...>) {
  return __builtin_shufflevector(v, v, ((K + kBy) % kCount<V>)...);
}
// The sum over the lanes whose numbers have the same remainder modulo `by`. Each of them holds the result. The order is
// a fixed tree, so the bits are the same on every call.
template <int by, int width, class V> CTC_FN V sum_over(V v) {
  if constexpr (width > by)
    return sum_over<by, width / 2>(v + rotate<width / 2>(v, typename Count<kCount<V>>::type{}));
  else
    return v;
}
template <int by, int width, class V> CTC_FN V max_over(V v) {
  if constexpr (width > by)
    return max_over<by, width / 2>(max_of(v, rotate<width / 2>(v, typename Count<kCount<V>>::type{})));
  else
    return v;
}
template <class V> CTC_FN auto sum_of_lanes(V v) { return sum_over<1, kCount<V>>(v)[0]; }
template <class V> CTC_FN auto max_of_lanes(V v) { return max_over<1, kCount<V>>(v)[0]; }

// Whether a comparison holds in a lane.
template <class Z> CTC_FN bool holds_anywhere(Z where) {
#if CTC_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask(bits<__m512i>(where), bits<__m512i>(where)) != 0;
#elif CTC_VECTOR_BYTES == 32
  return !_mm256_testz_si256(bits<__m256i>(where), bits<__m256i>(where));
#else
  return sum_of_lanes(where) != 0;
#endif
}

// The sums of as many pairs of lanes as a vector has doubles.
CTC_FN DoubleLanes sum_of_pairs(DoubleLanes v) { return v; }
CTC_FN DoubleLanes sum_of_pairs(FloatLanes v) {
  float lanes[kCount<FloatLanes>];
  store(lanes, v);
  return load_widened(lanes) + load_widened(lanes + kCount<DoubleLanes>);
}

// max_of(bound, x), which is NaN if x is. For a bound that the compiler knows GCC 12 would make two instructions.
template <class V, class F> CTC_FN V at_least(F bound, V x) {
  V least = splat<V>(bound);
#if defined(__x86_64__)
  __asm__("" : "+v"(least));
#endif
  return max_of(least, x);
}

}  // namespace
}  // namespace jax_ctc

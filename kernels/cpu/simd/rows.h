// SPDX-License-Identifier: Apache-2.0
// Functions of one row of V logits: the emissions of some classes, the softmax, and products with it. V is the only
// size that these functions know. The lattice (step.h) does not know V.
#pragma once

#include "normaliser.h"

namespace jax_ctc {
namespace {

template <class F> CTC_FN bool is_finite(F x) { return x - x == 0; }

// to = from * factor. Where `from` is 0 the result is 0, even if the factor is inf or NaN. `to` may be `from`.
template <class F> void multiply(const F* from, int64_t n, F factor, F* to) {
  if (is_finite(factor))
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] * factor;
  else
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] == 0 ? F(0) : from[i] * factor;
}

// The sum of gradient * u over the entries where gradient is not 0.
template <class F> double dot_of_nonzero(const F* gradient, int64_t n, const F* u) {
  using Vec = DoubleLanes;
  constexpr int64_t N = kCount<Vec>, kSums = 2;  // an addition to one sum does not wait for one to the other
  const auto wide = [](const F* from) {
    if constexpr (sizeof(F) == 4)
      return load_widened(from);
    else
      return load<Vec>(from);
  };
  const auto term = [](auto g, auto along) { return g == decltype(g){} ? decltype(g){} : g * along; };
  Vec sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * N <= n; i += kSums * N)
    for (int64_t k = 0; k < kSums; ++k) sums[k] += term(wide(gradient + i + k * N), wide(u + i + k * N));
  for (; i + N <= n; i += N) sums[0] += term(wide(gradient + i), wide(u + i));
  if (i < n && n >= N) {  // the last vector reaches back over entries that are in the sum
    const Vec last = term(wide(gradient + n - N), wide(u + n - N));
    sums[1] += number_lanes<Vec>() >= N - (n - i) ? last : Vec{};
    i = n;
  }
  double sum = sum_of_lanes(sums[0] + sums[1]);
  for (; i < n; ++i) sum += term(double(gradient[i]), double(u[i]));
  return sum;
}

// Prefetches a row. The hardware does not, because the rows of a sequence lie too far apart in a batch.
template <bool kToWrite = false> CTC_FN void prefetch(const void* row, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(row), end = begin + bytes;
  for (uintptr_t line = begin / 64 * 64; line < end; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line), kToWrite);
}

// What the emissions of a row are computed from: its shift, reduced, and the bound that a logit must exceed for the
// vector code. It is infinite if shift itself is not near. Lanes may be of several rows.
template <class F> struct RowShift {
  using Vec = Lanes<F>;
  Reduced<Vec> reduced;
  Vec near_from;
  explicit CTC_INLINE RowShift(Vec shift) {
    const Integer<Vec> near = is_near<F>(shift);
    reduced = reduce<F>(near ? shift : Vec{});
    near_from = near ? splat<Vec>(F(-kNear<F>)) : splat<Vec>(F(__builtin_inf()));
  }
};

// Whether some emissions must be computed again: split_emission took them for dead.
template <class F> CTC_FN bool any_is_far(F furthest, F shift) {
  return furthest > F(shift - kFurthest) || !is_near<F>(shift);
}

// The emissions of logits x <= shift. Where x is not near they are dead, and `furthest` becomes the largest such x.
template <class F> CTC_FN Scaled<Lanes<F>> split_emission(Lanes<F> x, const RowShift<F>& shift, Lanes<F>& furthest) {
  using Vec = Lanes<F>;
  constexpr F kInfinity = __builtin_inf();
  // Of NaN the maximum is NaN, so that the sum over the row becomes NaN.
  const Scaled<Vec> y = near_emission<F>(at_least(F(-kNear<F>), x), shift.reduced);
  const Integer<Vec> near = x > shift.near_from;
  furthest = max_of(furthest, near ? splat<Vec>(-kInfinity) : x);
  return {y.m, near ? y.e : splat<Integer<Vec>>(kDead)};
}

// Computes again the emissions of n logits of which some are not near, or those of a frame that is like others, rounded
// with its dither (dither.h). Both are rare.
template <class F>
void split_any_emissions(const F* x, int64_t n, F shift, F* p, Integer<F>* q, int32_t dither = kNearest) {
  for (int64_t i = 0; i < n; ++i) {
    const Scaled<F> y = any_emission(x[i], shift, dither);
    p[i] = y.m, q[i] = y.e;
  }
}

// Computes n emissions. n is a multiple of the number of lanes.
template <class F> void split_emissions(const F* x, int64_t n, F shift, F* p, Integer<F>* q) {
  using Vec = Lanes<F>;
  const RowShift<F> row(splat<Vec>(shift));
  Vec furthest = splat<Vec>(-F(__builtin_inf()));
  for (int64_t i = 0; i < n; i += kLanes<F>) {
    const Scaled<Vec> y = split_emission<F>(load<Vec>(x + i), row, furthest);
    store(p + i, y.m), store(q + i, y.e);
  }
  if (any_is_far(max_of_lanes(furthest), shift)) split_any_emissions(x, n, shift, p, q);
}

// Prefetches what a pass that reads x and writes `out` in order needs later: x from memory early, and both from the
// second-level cache. The addresses may lie behind the arrays: to prefetch is not to access.
template <class F> CTC_INLINE void prefetch_ahead(const F* x, const F* out) {
  constexpr uintptr_t kNext = 2048, kLater = 8192;
  const uintptr_t from = reinterpret_cast<uintptr_t>(x), to = reinterpret_cast<uintptr_t>(out);
  __builtin_prefetch(reinterpret_cast<const void*>(from + kLater), 0, 2);
  __builtin_prefetch(reinterpret_cast<const void*>(from + kNext));
  __builtin_prefetch(reinterpret_cast<const void*>(to + kNext), 1);
}

// out = scale * exp(x - shift). `out` may be x.
template <class F> void scaled_softmax(const F* x, int64_t V, F shift, F scale, F* out) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>, kLine = 64 / sizeof(F), kWide = 1024;
  if (scale > ScaledExp<F>::kMost || -scale > ScaledExp<F>::kMost) {
    scaled_softmax(x, V, shift, F(1), out);
    return multiply(out, V, scale, out);
  }
  const ScaledExp<F> exp(scale);
  if (V < N) return store_first(out, exp(load_first<Vec>(x, V, shift) - shift), V);
  Vec last = {};  // computed before out overwrites x
  if (V % N > 0) last = exp(load<Vec>(x + V - N) - shift);
  const auto write = [&](int64_t v) { store(out + v, exp(load<Vec>(x + v) - shift)); };
  int64_t v = 0;
  for (; V >= kWide && v + kLine <= V; v += kLine) {
    prefetch_ahead(x + v, out + v);
    for (int k = 0; k < kLine; k += N) write(v + k);
  }
  for (; v + N <= V; v += N) write(v);
  if (V % N > 0) store(out + V - N, last);
}

// out = scale * exp(x - shift) - factor * taken.
template <class F> void softmax_less(const F* x, int64_t V, F shift, F scale, const F* taken, F factor, F* out) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  const auto at = [&](int64_t v, int64_t n) {
    const Vec y = exp_of_nonpositive<F>(load_first<Vec>(x + v, n, shift) - shift) * scale;
    return y - load_first<Vec>(taken + v, n, F(0)) * factor;
  };
  if (V < N) return store_first(out, at(0, V), V);
  for (int64_t v = 0; v + N <= V; v += N) store(out + v, at(v, N));
  if (V % N > 0) store(out + V - N, at(V - N, N));
}

// out = -factor * taken, and 0 where taken is 0.
template <class F> void minus(const F* taken, int64_t V, F factor, F* out) {
  for (int64_t v = 0; v < V; ++v) out[v] = F(0) - taken[v] * factor;
}

// The rows of acts and of a direction that are read next. They are prefetched while the rows before them are read, into
// the second-level cache. Nothing is prefetched where `element` is 0.
struct NextRows {
  const char *acts = nullptr, *direction = nullptr;
  int64_t element = 0;  // bytes

  CTC_INLINE void prefetch(int64_t begin, int64_t end) const {
    for (int64_t byte = begin * element; byte < end * element; byte += 64)
      __builtin_prefetch(acts + byte, 0, 2), __builtin_prefetch(direction + byte, 0, 2);
  }
};

// The sum over v of softmax(x)[v] * (u[v] - base). Classes of probability 0 are left out, because u may be inf or NaN
// there.
template <class F>
double softmax_dot(const F* x, int64_t V, F shift, F scale, const F* u, F base, const NextRows& next = {}) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  constexpr int64_t kChunk = 16 * N;
  const auto term = [&](Vec at, Vec direction) {
    const Vec y = exp_of_nonpositive<F>(at - shift);
    return y == Vec{} ? Vec{} : y * (direction - base);
  };
  double sum = 0;
  for (int64_t begin = 0; begin < V; begin += kChunk) {
    const int64_t end = min_of(begin + kChunk, V);
    Vec part = {};
    int64_t v = begin;
    for (; v + 4 * N <= end; v += 4 * N) {
      next.prefetch(v, v + 4 * N);
      for (int k = 0; k < 4 * N; k += N) part += term(load<Vec>(x + v + k), load<Vec>(u + v + k));
    }
    for (; v + N <= end; v += N) part += term(load<Vec>(x + v), load<Vec>(u + v));
    if (v < end) part += term(load_last<Vec>(x, V, end - v, -F(__builtin_inf())), load_last<Vec>(u, V, end - v, F(0)));
    sum += double(sum_of_lanes(part));
  }
  return sum * double(scale);
}

// out = factor * (softmax(x) * (u - centre - mean) - less). The first term is 0 where the softmax is 0. If `less` is
// null nothing is subtracted.
template <class F> void softmax_change(const F* x, int64_t V, F shift, F scale, const F* u, F centre, F mean, F factor,
                                       const F* less, F* out, const NextRows& next = {}) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  const auto at = [&](int64_t v, int64_t n) {
    const Vec y = exp_of_nonpositive<F>(load_first<Vec>(x + v, n, shift) - shift);
    const Vec change = y == Vec{} ? Vec{} : y * scale * ((load_first<Vec>(u + v, n, F(0)) - centre) - mean);
    return (less == nullptr ? change : change - load_first<Vec>(less + v, n, F(0))) * factor;
  };
  if (V < N) return store_first(out, at(0, V), V);
  int64_t v = 0;
  for (; v + 4 * N <= V; v += 4 * N) {
    next.prefetch(v, v + 4 * N);
    for (int k = 0; k < 4 * N; k += N) store(out + v + k, at(v + k, N));
  }
  for (; v + N <= V; v += N) store(out + v, at(v, N));
  if (V % N > 0) store(out + V - N, at(V - N, N));
}

}  // namespace
}  // namespace jax_ctc

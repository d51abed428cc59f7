// SPDX-License-Identifier: Apache-2.0
// The most probable classes of a row, for the beam search.
#pragma once

#include "arena.h"
#include "half.h"
#include "normaliser.h"

namespace jax_ctc {
namespace {

// A number that at least n entries of the row reach, or -inf. The largest entry of each of kParts parts of the row is
// an entry. Bisection between the least and the most of these finds a number that n of them reach.
template <int kParts, class F> F bound_by_parts(const F* x, int64_t V, int64_t n) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>, kVectors = kParts / N, kSteps = 8;
  if (n > kParts || V < kParts) return -__builtin_inf();
  Vec top[kVectors];
  for (int k = 0; k < kVectors; ++k) top[k] = load<Vec>(x + k * N);
  for (int64_t v = kParts; v + kParts <= V; v += kParts)
    for (int k = 0; k < kVectors; ++k) top[k] = max_of(load<Vec>(x + v + k * N), top[k]);
  Vec least = top[0], most = top[0];
  for (int k = 1; k < kVectors; ++k) least = -max_of(-top[k], -least), most = max_of(top[k], most);
  F low = -max_of_lanes(-least), high = max_of_lanes(most);  // all reach `low`
  for (int step = 0; step < kSteps; ++step) {
    const F middle = low / 2 + high / 2;
    if (!(middle > low)) break;  // as for a `low` of -inf
    Integer<Vec> reached = {};
    for (int k = 0; k < kVectors; ++k) reached -= top[k] >= splat<Vec>(middle);
    (int64_t(sum_of_lanes(reached)) >= n ? low : high) = middle;
  }
  return low;
}
template <class F> F bound_of_best(const F* x, int64_t V, int64_t n) {
  return n <= 40 || V < 512 ? bound_by_parts<64>(x, V, n) : bound_by_parts<256>(x, V, n);
}

template <class V, int... K> CTC_FN Integer<V> lane_bits(int first, Indices<K...>) {
  using Word = std::make_unsigned_t<std::decay_t<decltype(Integer<V>{}[0])>>;
  return Integer<V>{std::make_signed_t<Word>(Word(1) << (first + K))...};
}

// Writes the classes other than the blank that reach a bound, in their order: at least the `n` most probable, but none
// of probability 0. Returns how many there are. The row has no NaN.
template <class F> int64_t best_of_row(const F* x, int64_t V, int32_t blank, int64_t n, ClassScore<F>* best) {
  using Vec = Lanes<F>;
  using Word = std::make_unsigned_t<std::decay_t<decltype(Integer<Vec>{}[0])>>;
  constexpr int N = kLanes<F>, kGroup = 8 * sizeof(Word);  // entries whose comparisons fit the bits of a word
  const F bound = bound_of_best(x, V, n + 1);              // one of them may be the blank
  int64_t count = 0;
  const auto add = [&](int64_t v) {
    if (v != blank && x[v] > F(-__builtin_inf())) best[count++] = {x[v], int32_t(v)};
  };
  int64_t v = 0;
  for (; v + kGroup <= V; v += kGroup) {
    Integer<Vec> reached = {};
    for (int k = 0; k < kGroup / N; ++k)
      reached |= (load<Vec>(x + v + k * N) >= splat<Vec>(bound)) & lane_bits<Vec>(k * N, typename Count<N>::type{});
    for (uint64_t word = Word(sum_of_lanes(reached)); word != 0; word &= word - 1) add(v + __builtin_ctzll(word));
  }
  for (; v < V; ++v)
    if (x[v] >= bound) add(v);
  return count;
}

template <class F> BestClasses<F> best_classes(const LogitRow& row, const void* next, int64_t n, ClassScore<F>* best) {
  F* buffer = row_buffer<F>(row.dtype, row.V, 1, *row.scratch);
  const F* x = widened(row.dtype, row.acts, row.V, buffer);
  const Normaliser<F> normaliser = normalise<F>(row.dtype, row.acts, row.V, next);
  if (!normaliser.defined()) return {x, 0, 0, 0};
  return {x, normaliser.shift, normaliser.sum, n > 0 ? best_of_row(x, row.V, row.blank, n, best) : 0};
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// The most probable classes of a row, for the beam search.
#pragma once

#include "half.h"
#include "normaliser.h"

namespace jax_ctc {
namespace {

// The largest entries so far, the largest first. Of equal entries the lower class comes first.
template <class F> struct Best {
  F* scores;
  int32_t* classes;
  int64_t most, count = 0;

  CTC_INLINE void add(F x, int32_t c) {
    if (count == most && !(x > scores[most - 1])) return;
    int64_t i = count < most ? count++ : most - 1;
    for (; i > 0 && scores[i - 1] < x; --i) scores[i] = scores[i - 1], classes[i] = classes[i - 1];
    scores[i] = x, classes[i] = c;
  }
};

// A number that at least n entries of the row reach, or -inf. The largest entry of each of 64 parts of the row is an
// entry. Bisection between the least and the most of these finds a number that n of them reach.
template <class F> F bound_of_best(const F* x, int64_t V, int64_t n) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>, kParts = 64, kVectors = kParts / N;
  constexpr int kSteps = 8;
  const F none = -__builtin_inf();
  if (n > kParts || V < 2 * kParts) return none;
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

template <class V, int... K> CTC_FN Integer<V> lane_bits(int first, Indices<K...>) {
  using Word = std::make_unsigned_t<std::decay_t<decltype(Integer<V>{}[0])>>;
  return Integer<V>{std::make_signed_t<Word>(Word(1) << (first + K))...};
}

// Writes up to `n` classes other than the blank, the most probable first. Leaves out those of probability 0. Returns
// how many there are. The row has no NaN.
template <class F> int64_t best_of_row(const F* x, int64_t V, int32_t blank, int64_t n, F* scores, int32_t* classes) {
  using Vec = Lanes<F>;
  using Word = std::make_unsigned_t<std::decay_t<decltype(Integer<Vec>{}[0])>>;
  constexpr int N = kLanes<F>, kGroup = 8 * sizeof(Word);  // entries whose comparisons fit the bits of a word
  const F none = -__builtin_inf();
  Best<F> best = {scores, classes, n};
  const F bound = bound_of_best(x, V, n + 1);  // one of them may be the blank
  const auto add = [&](int64_t v) {
    if (v != blank && x[v] >= bound && x[v] > none) best.add(x[v], v);
  };
  int64_t v = 0;
  for (; v + kGroup <= V; v += kGroup) {
    const Vec least = splat<Vec>(best.count == n ? scores[n - 1] : bound);
    Integer<Vec> reached = {};
    for (int k = 0; k < kGroup / N; ++k)
      reached |= (load<Vec>(x + v + k * N) >= least) & lane_bits<Vec>(k * N, typename Count<N>::type{});
    for (uint64_t word = Word(sum_of_lanes(reached)); word != 0; word &= word - 1) add(v + __builtin_ctzll(word));
  }
  for (; v < V; ++v) add(v);
  return best.count;
}

template <class F>
BestClasses<F> best_classes(const LogitRow& row, const void* next, int64_t n, F* scores, int32_t* classes) {
  F* buffer = row_buffer<F>(row.dtype, row.V, 1, *row.scratch);
  const F* x = widened(row.dtype, row.acts, row.V, buffer);
  const Normaliser<F> normaliser = normalise(x, row.V, buffer ? buffer : static_cast<const F*>(next));
  if (!normaliser.defined()) return {x, 0, 0, 0};
  return {x, normaliser.shift, normaliser.sum, n > 0 ? best_of_row(x, row.V, row.blank, n, scores, classes) : 0};
}

}  // namespace
}  // namespace jax_ctc

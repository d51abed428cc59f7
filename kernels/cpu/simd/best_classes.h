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
  F bound;  // an entry below it cannot be among the best

  void add(F x, int32_t c) {
    if (count == most && !(x > scores[most - 1])) return;
    int64_t i = count < most ? count++ : most - 1;
    for (; i > 0 && scores[i - 1] < x; --i) scores[i] = scores[i - 1], classes[i] = classes[i - 1];
    scores[i] = x, classes[i] = c;
    if (count == most) bound = scores[most - 1];
  }
};

// A number that at least n + 1 entries of the row reach, or -inf. Each of the maxima of some parts of the row is an
// entry. So n + 1 entries reach the smallest of the n + 1 largest maxima.
template <class F> F bound_of_best(const F* x, int64_t V, int64_t n) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>, kParts = 64 / N * N;
  const F none = -__builtin_inf();
  if (n + 1 > kParts || V < 2 * kParts) return none;
  Vec top[kParts / N];
  for (Vec& t : top) t = splat<Vec>(none);
  for (int64_t v = 0; v + kParts <= V; v += kParts)
    for (int k = 0; k < kParts / N; ++k) top[k] = max_of(load<Vec>(x + v + k * N), top[k]);
  F maxima[kParts], scores[kParts];
  int32_t classes[kParts];
  for (int k = 0; k < kParts / N; ++k) store(maxima + k * N, top[k]);
  Best<F> best = {scores, classes, n + 1, 0, none};
  for (int k = 0; k < kParts; ++k) best.add(maxima[k], k);
  return best.bound;
}

// Writes up to `n` classes other than the blank, the most probable first. Leaves out those of probability 0. Returns
// how many there are. The row has no NaN.
template <class F> int64_t best_of_row(const F* x, int64_t V, int32_t blank, int64_t n, F* scores, int32_t* classes) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  const F none = -__builtin_inf();
  Best<F> best = {scores, classes, n, 0, bound_of_best(x, V, n)};
  const auto add = [&](int64_t v) {
    if (v != blank && x[v] >= best.bound && x[v] > none) best.add(x[v], v);
  };
  int64_t v = 0;
  for (; v + N <= V; v += N)
    if (sum_of_lanes(load<Vec>(x + v) >= splat<Vec>(best.bound)) != 0)
      for (int k = 0; k < N; ++k) add(v + k);
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

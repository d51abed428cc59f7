// SPDX-License-Identifier: Apache-2.0
// The most probable class of a row, for greedy decoding.
#pragma once

#include "class_table.h"

namespace jax_ctc {
namespace {

// The index of the first of n entries that is equal to x, or n.
template <class F> int64_t find(const F* entries, int64_t n, F x) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>, kBlock = 8 * N;
  const auto equal = [&](int64_t v) { return load<Vec>(entries + v) == splat<Vec>(x); };
  int64_t v = 0;
  for (; v + kBlock <= n; v += kBlock) {
    Integer<Vec> found = {};
    for (int k = 0; k < kBlock; k += N) found |= equal(v + k);
    if (holds_anywhere(found)) break;
  }
  for (; v + N <= n; v += N) {
    const Integer<Vec> from_end = equal(v) & (splat<Integer<Vec>>(N) - number_lanes<Vec>());
    if (const int64_t most = max_of_lanes(from_end); most > 0) return v + N - most;
  }
  while (v < n && entries[v] != x) ++v;
  return v;
}

// The first class of a row whose entry is `top`, which is an entry.
template <class F> int32_t first_class(Dtype dtype, const void* row, int64_t V, F top) {
  F wide[Pieces::kMost];
  for (int64_t begin = 0; begin < V; begin += Pieces::kMost) {
    const int64_t n = min_of(Pieces::kMost, V - begin);
    const char* const piece = static_cast<const char*>(row) + begin * element_size(dtype);
    const int64_t v = find(widened(dtype, piece, n, wide), n, top);
    if (v < n) return begin + v;
  }
  return -1;
}

template <class F> TopClass<F> top_class(int32_t best, F top, double ties, double tail) {
  if (!(ties >= 1 && tail >= 0)) return {-1, -F(__builtin_inf()), F(__builtin_nan(""))};
  return {best, top, F(ties - 1 + tail)};
}

constexpr int64_t kMostOfTable = 128;  // classes

// Up to four rows at once, from a table of their classes. A row has the same bits in any place.
template <class F> void few_top_classes(const RowGroup& rows, TopClass<F>* to) {
  using Vec = Lanes<F>;
  using Mask = Integer<Vec>;
  constexpr int N = kLanes<F>;
  F wide[kFrames][kMostOfTable];
  alignas(64) F x[kFrames * (kMostOfTable + kLanes<float> + 4)];
  const F* of[kFrames];
  for (int k = 0; k < kFrames; ++k)
    of[k] = widened(rows.dtype, rows.acts[min_of<int64_t>(k, rows.count - 1)], rows.V, wide[k]);
  const Vec top = tabulate(of, rows.V, -F(__builtin_inf()), x);
  // Numbers of classes, negated: the first class has the largest.
  Mask number = -(number_lanes<Vec>() / kFrames), first = splat<Mask>(Integer<F>(-rows.V)), ties = {};
  Vec tail = {};
  const int64_t n = kFrames * table_classes(rows.V);
  for (int64_t i = 0; i < n; i += N, number -= Integer<F>(N / kFrames)) {
    const Vec v = load<Vec>(x + i);
    const ExpFactors<Vec> y = exp_factors<F>(v - top);
    const Mask at_top = v == top;
    tail += y.p * (at_top ? Vec{} : y.power), ties -= at_top;
    first = max_of(at_top ? number : first, first);
  }
  first = max_over<kFrames, N>(first), ties = sum_over<kFrames, N>(ties);
  tail = sum_over<kFrames, N>(tail) + (top - top);  // NaN if the largest is infinite
  for (int64_t k = 0; k < rows.count; ++k)
    to[k] = top_class(int32_t(-first[k]), top[k], double(ties[k]), double(tail[k]));
}

template <class F> void top_classes(const RowGroup& rows, const void* next, TopClass<F>* to) {
  if constexpr (kLanes<F> >= kFrames)
    if (rows.V <= kMostOfTable) return few_top_classes(rows, to);
  for (int64_t k = 0; k < rows.count; ++k) {
    const RowSums<F> sums = sum_row<F>(rows.dtype, rows.acts[k], rows.V, k + 1 < rows.count ? rows.acts[k + 1] : next);
    const int32_t best = sums.ties > 0 ? first_class(rows.dtype, rows.acts[k], rows.V, sums.top) : -1;
    to[k] = top_class(best, sums.top, sums.ties, sums.tail);
  }
}

}  // namespace
}  // namespace jax_ctc

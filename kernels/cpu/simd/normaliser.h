// SPDX-License-Identifier: Apache-2.0
// The normaliser of a row of V logits: the largest entry, and the sum of exp relative to it.
#pragma once

#include "exp.h"
#include "half.h"

namespace jax_ctc {
namespace {

// The normaliser of log-scores, from the n entries of a row that are read. No sum is taken, so it is 1. `shift` only
// keeps exponents small. It is 0 if all entries are -inf, which is no fault of log-scores. n is a multiple of the
// number of lanes.
template <class F> Normaliser<F> reference_of_scores(const F* x, int64_t n) {
  using Vec = Lanes<F>;
  constexpr F kInfinity = __builtin_inf();
  Vec top = splat<Vec>(-kInfinity);
  Integer<Vec> nan = {};
  for (int64_t i = 0; i < n; i += kLanes<F>) {
    const Vec v = load<Vec>(x + i);
    top = max_of(v, top), nan |= v != v;
  }
  const F shift = max_of_lanes(top);
  const bool defined = shift < kInfinity && sum_of_lanes(nan) == 0;
  return {shift > -kInfinity ? shift : F(0), defined ? 1 : __builtin_nan("")};
}

template <class F> F largest(const F* x, int64_t V) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  const F none = -__builtin_inf();
  Vec a = splat<Vec>(none), b = a, c = a, d = a;
  int64_t v = 0;
  for (; v + 4 * N <= V; v += 4 * N) {  // four chains hide the latency
    a = max_of(load<Vec>(x + v), a), b = max_of(load<Vec>(x + v + N), b);
    c = max_of(load<Vec>(x + v + 2 * N), c), d = max_of(load<Vec>(x + v + 3 * N), d);
  }
  for (; v + N <= V; v += N) a = max_of(load<Vec>(x + v), a);
  if (v < V) b = max_of(load_last<Vec>(x, V, V - v, none), b);
  return max_of_lanes(max_of(max_of(a, b), max_of(c, d)));
}

// Memory that is prefetched a little at a time, because a processor has room for 10 to 16 lines that are on their way,
// and waits when there are more. Into the second-level cache there is room for some 48: what is `later` bytes behind a
// line goes there, if kLater.
template <bool kLater> struct Ahead {
  static constexpr int64_t kLine = 64;
  uintptr_t at, end;
  intptr_t later;
  template <int64_t kBytes> CTC_INLINE void prefetch() {
    if (at >= end) return;
    for (int64_t byte = 0; byte < kBytes; byte += kLine) prefetch_line(at + byte);
    at += kBytes;
  }
  void prefetch_rest() {
    for (; at < end; at += kLine) prefetch_line(at);
  }

 private:
  CTC_INLINE void prefetch_line(uintptr_t line) const {
    __builtin_prefetch(reinterpret_cast<const void*>(line));
    if (kLater) __builtin_prefetch(reinterpret_cast<const void*>(line + later), 0, 2);
  }
};

// A row of acts in pieces of up to 1024 entries, equal but for the last one, and the row that is read after it.
struct Pieces {
  static constexpr int64_t kMost = 1024, kStep = 64;  // entries
  const char *row, *next;
  int64_t element, V, size, count;
  Pieces(const void* row, int64_t element, int64_t V, const void* next)
      : row(static_cast<const char*>(row)),
        next(static_cast<const char*>(next)),
        element(element),
        V(V),
        size(kMost),
        count(1) {
    if (V <= kMost) return;
    const uint32_t steps = (V + kStep - 1) / kStep, least = (V + kMost - 1) / kMost;
    const uint32_t of_piece = (steps + least - 1) / least;
    size = of_piece * kStep, count = (steps + of_piece - 1) / of_piece;
  }
  int64_t begin(int64_t k) const { return min_of(k * size, V); }
  // The piece after piece k. With kLater, which is for rows of two pieces and more, the one after that comes later.
  template <bool kLater> Ahead<kLater> ahead(int64_t k) const {
    const uintptr_t from = place(k + 1);
    const int64_t after = k + 1 < count ? k + 1 : 0;
    return {from, from + (begin(after + 1) - begin(after)) * element, kLater ? intptr_t(place(k + 2) - from) : 0};
  }

 private:
  uintptr_t place(int64_t k) const {
    return reinterpret_cast<uintptr_t>(k < count ? row : next) + (k < count ? k : k - count) * size * element;
  }
};

// The sum of exp(x - shift) over n entries, in two parts: the number of entries equal to shift, and the sum of the
// others. `exp` is ExpOfDifferences or ExpOfLogits, below `shift`.
struct PartSum {
  double ties, tail;
};
template <bool kTies, class F, class Exp, bool kLater>
PartSum sum_part(const F* x, int64_t n, F shift, const Exp& exp, Ahead<kLater>& ahead) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  // A lane makes 16 additions or 17. Then the sum goes on in doubles, because one float sum over V = 1e5 would give the
  // gradient an error of 2e-5.
  constexpr int64_t kPart = 32 * N;
  DoubleLanes tail = {};
  Integer<Vec> others = {};  // counted, because one comparison then does what two would do
  for (int64_t begin = 0; begin < n; begin += kPart) {
    const int64_t end = min_of(begin + kPart, n);
    Vec a = {}, b = {};
    const auto add = [&](Vec at, Vec& to) {
      ExpFactors<Vec> y = exp(at);
      if constexpr (kTies) {
        const Integer<Vec> other = at != shift;
        y.power = other ? y.power : Vec{}, others -= other;
      }
      to += y.p * y.power;
    };
    int64_t v = begin;
    for (; v + 4 * N <= end; v += 4 * N) {
      ahead.template prefetch<4 * N * sizeof(F)>();
      add(load<Vec>(x + v), a), add(load<Vec>(x + v + N), b);
      add(load<Vec>(x + v + 2 * N), a), add(load<Vec>(x + v + 3 * N), b);
    }
    for (; v + N <= end; v += N) add(load<Vec>(x + v), a);
    if (v < end) add(load_last<Vec>(x, n, end - v, F(-__builtin_inf())), b);
    tail += sum_of_pairs(a + b);
  }
  const int64_t lanes = (n + N - 1) / N * N;
  return {kTies ? double(lanes - sum_of_lanes(others)) : 0, sum_of_lanes(tail) / exp.of_top()};
}

// Of a row, or of a slice of one: the largest entry, the number of entries equal to it, and the sum of exp(x - top) of
// the others. If all entries are -inf these are (-inf, 0, 0). If there is a NaN or a +inf, `ties` and `tail` are NaN.
template <class F> struct RowSums {
  F top;
  double ties, tail;
};

// Reads a row of acts in pieces, each twice. A piece stays in the first-level cache between its two passes, as floats
// if acts are halves. Meanwhile the next piece is prefetched into this cache, and the one after it into the
// second-level cache: the rows of a sequence lie too far apart for the hardware to do it, and one piece ahead is too
// late for memory. `next` is the row that is read next.
template <class F> RowSums<F> sum_row(Dtype dtype, const void* row, int64_t V, const void* next) {
  const Pieces pieces(row, element_size(dtype), V, next);
  F wide[Pieces::kMost];
  const F infinity = __builtin_inf();
  const double nan = __builtin_nan("");
  F top = -infinity;
  double ties = 0, tail = 0;
  for (int64_t k = 0; k < pieces.count; ++k) {
    const int64_t begin = pieces.begin(k), end = pieces.begin(k + 1);
    const F* const x = widened(dtype, pieces.row + begin * pieces.element, end - begin, wide);
    const F here = largest(x, end - begin);
    if (here > top) {
      if (ties > 0) tail = (ties + tail) * __builtin_exp(double(top) - double(here)), ties = 0;
      top = here;
    }
    if (!(top < infinity)) return {top, nan, nan};
    if (top == -infinity) {  // up to here. Comparisons do not find a NaN
      for (int64_t v = 0; v < end - begin; ++v)
        if (x[v] != x[v]) return {top, nan, nan};
      continue;
    }
    const auto sum_of = [&](const auto& exp, auto ahead) {
      // If the largest entry is in another piece, no entry is equal to it.
      const PartSum part = here == top ? sum_part<true>(x, end - begin, top, exp, ahead)
                                       : sum_part<false>(x, end - begin, top, exp, ahead);
      ahead.prefetch_rest();
      return part;
    };
    const auto sum = [&](auto ahead) {
      if constexpr (sizeof(F) == 4)
        if (ExpOfLogits::allows(top)) return sum_of(ExpOfLogits(top), ahead);
      return sum_of(ExpOfDifferences<F>(top), ahead);
    };
    const PartSum part = pieces.count > 1 ? sum(pieces.ahead<true>(k)) : sum(pieces.ahead<false>(k));
    ties += part.ties, tail += part.tail;
  }
  return {top, ties, tail};
}

template <class F> Normaliser<F> normalise(Dtype dtype, const void* row, int64_t V, const void* next) {
  const RowSums<F> sums = sum_row<F>(dtype, row, V, next);
  return {sums.top, sums.ties > 0 ? sums.ties + sums.tail : __builtin_nan("")};
}

// The product of many numbers >= 1 without overflow. One log of it at the end takes the place of one log for each.
struct RunningProduct {
  double m = 1;
  int64_t e = 0;
  double log_of_others = 0;  // of factors whose log is known
  CTC_INLINE void multiply(double x) {
    m *= x;
    const int64_t pattern = bits<int64_t>(m), exponent = (pattern >> 52) - 1023;
    m = bits<double>(pattern - exponent * (int64_t(1) << 52));
    e += exponent;
  }
};

}  // namespace
}  // namespace jax_ctc

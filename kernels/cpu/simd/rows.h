// SPDX-License-Identifier: Apache-2.0
// What is done to one row of V activations: its softmax normaliser, the emissions of a few classes, its gradient.
// V is the only size these functions know; the lattice (step.h) never sees it.
#pragma once

#include "lanes.h"

namespace jax_ctc {
namespace {

template <class F> CTC_FN bool is_finite(F x) { return x - x == 0; }

// to = unit * factor, and 0 where unit is, whatever the factor is. `to` may be unit.
template <class F> void multiply(const F* unit, int64_t n, F factor, F* to) {
  if (is_finite(factor))
    for (int64_t i = 0; i < n; ++i) to[i] = unit[i] * factor;
  else
    for (int64_t i = 0; i < n; ++i) to[i] = unit[i] == 0 ? F(0) : unit[i] * factor;
}

// Sum of unit * along, where unit is not 0.
template <class F> double dot_of_nonzero(const F* unit, int64_t n, const F* along) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += unit[i] == 0 ? 0 : double(unit[i]) * double(along[i]);
  return sum;
}

// Prefetches a row. The hardware does not, because rows of a sequence in a batch lie too far apart.
template <bool kToWrite = false> CTC_FN void prefetch(const void* row, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(row), end = begin + bytes;
  for (uintptr_t line = begin / 64 * 64; line < end; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line), kToWrite);
}

// softmax(x)[v] = exp(x[v] - shift) / sum, with shift the largest of the row: sum >= 1, and it keeps its digits when
// one class has nearly all of the probability, because the largest entries are counted, not added.
template <class F> struct Normaliser {
  F shift;
  double sum;
  // No softmax: a NaN, a +inf, or nothing but -inf in the row.
  bool defined() const { return sum >= 1; }
};

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

// Adds exp(x - shift) of the entries below shift, and counts those equal to it.
template <class F> struct TailSum {
  using Vec = Lanes<F>;
  Vec sum = {};
  Integer<Vec> count = {};
  CTC_INLINE void add(Vec x, F shift) {
    const Integer<Vec> top = x == shift;
    const Vec e = exp_of_nonpositive<F>(x - shift);
    sum += top ? Vec{} : e;
    count -= top;
  }
};

// The sum of exp(x - shift) over n entries: how many are equal to shift, and the rest.
struct PartSum {
  double count, tail;
};
template <class F> PartSum sum_part(const F* x, int64_t n, F shift) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  constexpr int64_t kPart = 64 * N;  // 16 additions a lane before the sum goes on in double: one float sum over V = 1e5
                                     // would cost the gradient 2e-5
  PartSum sum = {0, 0};
  for (int64_t begin = 0; begin < n; begin += kPart) {
    const int64_t end = min_of(begin + kPart, n);
    TailSum<F> a, b, c, d;
    int64_t v = begin;
    for (; v + 4 * N <= end; v += 4 * N) {
      a.add(load<Vec>(x + v), shift), b.add(load<Vec>(x + v + N), shift);
      c.add(load<Vec>(x + v + 2 * N), shift), d.add(load<Vec>(x + v + 3 * N), shift);
    }
    for (; v + N <= end; v += N) a.add(load<Vec>(x + v), shift);
    if (v < end) b.add(load_last<Vec>(x, n, end - v, F(-__builtin_inf())), shift);
    sum.count += double(sum_of_lanes((a.count + b.count) + (c.count + d.count)));
    sum.tail += double(sum_of_lanes((a.sum + b.sum) + (c.sum + d.sum)));
  }
  return sum;
}

// Over a row or a slice of one: the largest entry, how many are equal to it, and the sum of exp(x - top) of the others.
// Nothing but -inf: (-inf, 0, 0). Where there is a NaN or +inf the sums are NaN.
template <class F> struct RowSums {
  F top;
  double count, tail;
};

// Reads a row in pieces. A piece stays in the first-level cache between its two passes, and the next piece is
// prefetched meanwhile, because rows of a sequence lie too far apart for the hardware to do it. `next` is the row that
// comes next.
template <class F> RowSums<F> sum_row(const F* x, int64_t V, const F* next) {
  constexpr int64_t kPiece = 4096 / sizeof(F);
  constexpr int64_t kLine = 64 / sizeof(F);
  const F infinity = __builtin_inf();
  const double nan = __builtin_nan("");
  F top = -infinity;
  double count = 0, tail = 0;
  for (int64_t begin = 0; begin < V; begin += kPiece) {
    const int64_t end = min_of(begin + kPiece, V);
    const bool last = end == V;
    const F* ahead = last ? next : x + end;
    const int64_t n = min_of(kPiece, last ? V : V - end);
    for (int64_t v = 0; v < n; v += kLine) __builtin_prefetch(ahead + v);
    const F here = largest(x + begin, end - begin);
    if (here > top) {
      if (count > 0) tail = (count + tail) * __builtin_exp(double(top) - double(here)), count = 0;
      top = here;
    }
    if (!(top < infinity)) return {top, nan, nan};
    if (top == -infinity) {  // so far; a NaN is not found by comparing
      for (int64_t v = begin; v < end; ++v)
        if (x[v] != x[v]) return {top, nan, nan};
      continue;
    }
    const PartSum part = sum_part(x + begin, end - begin, top);
    count += part.count, tail += part.tail;
  }
  return {top, count, tail};
}

template <class F> Normaliser<F> normalise(const F* x, int64_t V, const F* next) {
  const RowSums<F> sums = sum_row(x, V, next);
  return {sums.top, sums.count > 0 ? sums.count + sums.tail : __builtin_nan("")};
}

// The emissions between kNear and kFurthest, which hardly ever are.
template <class F> void split_far_emissions(const F* x, int64_t n, F shift, F* p, Integer<F>* q) {
  for (int64_t i = 0; i < n; ++i) {
    const double d = double(x[i]) - double(shift);
    if (!(d > -kFurthest && d <= -kNear<F>)) continue;
    const Scaled<F> y = far_emission<F>(d);
    p[i] = y.m, q[i] = y.e;
  }
}

// exp(x - shift) = p * 2^q. The difference is taken exactly (as a pair), so that logits far from each other keep their
// digits too. `far` marks the ones that split_far_emissions has to look at.
template <class F> struct Emission {
  Lanes<F> p;
  Integer<Lanes<F>> q, far;
};
template <class F> CTC_FN Emission<F> split_emission(Lanes<F> x, Lanes<F> shift) {
  using Vec = Lanes<F>;
  const Vec d = x - shift, back = d - x;
  const Vec rest = (x - (d - back)) + (-shift - back);
  const Integer<Vec> near = d > F(-kNear<F>);
  Integer<Vec> far = {};
  if constexpr (kNear<F> < kFurthest) far = (d > F(-kFurthest)) & ~near;
  const Split<Vec> y = split_exp<F>(near ? d : Vec{}, near ? rest : Vec{});
  return {near ? y.p : splat<Vec>(F(1)), near ? y.q : splat<Integer<Vec>>(kDead), far};
}

// The same of n entries, n a multiple of the lane count.
template <class F> void split_emissions(const F* x, int64_t n, F shift, F* p, Integer<F>* q) {
  using Vec = Lanes<F>;
  Integer<Vec> far = {};
  for (int64_t i = 0; i < n; i += kLanes<F>) {
    const Emission<F> y = split_emission<F>(load<Vec>(x + i), splat<Vec>(shift));
    far |= y.far;
    store(p + i, y.p), store(q + i, y.q);
  }
  if (sum_of_lanes(far) != 0) split_far_emissions(x, n, shift, p, q);
}

// out = scale * exp(x - shift); out may be x.
template <class F> void scaled_softmax(const F* x, int64_t V, F shift, F scale, F* out) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  if (V < N) return store_first(out, exp_of_nonpositive<F>(load_first<Vec>(x, V, shift) - shift) * scale, V);
  const Vec last = exp_of_nonpositive<F>(load<Vec>(x + V - N) - shift) * scale;  // before out takes the place of x
  for (int64_t v = 0; v + N <= V; v += N) store(out + v, exp_of_nonpositive<F>(load<Vec>(x + v) - shift) * scale);
  store(out + V - N, last);
}

// out = scale * exp(x - shift) - unit * taken.
template <class F> void softmax_less(const F* x, int64_t V, F shift, F scale, const F* taken, F unit, F* out) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  const auto at = [&](int64_t v, int64_t n) {
    const Vec y = exp_of_nonpositive<F>(load_first<Vec>(x + v, n, shift) - shift) * scale;
    return y - load_first<Vec>(taken + v, n, F(0)) * unit;
  };
  if (V < N) return store_first(out, at(0, V), V);
  for (int64_t v = 0; v + N <= V; v += N) store(out + v, at(v, N));
  if (V % N > 0) store(out + V - N, at(V - N, N));
}

// Sum over v of softmax(x)[v] * (d[v] - base); classes of probability 0 are left out, whatever d is there.
template <class F> double softmax_dot(const F* x, int64_t V, F shift, F scale, const F* d, F base) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  constexpr int64_t kChunk = 16 * N;
  const auto term = [&](Vec at, Vec along) {
    const Vec y = exp_of_nonpositive<F>(at - shift);
    return y == Vec{} ? Vec{} : y * (along - base);
  };
  double sum = 0;
  for (int64_t begin = 0; begin < V; begin += kChunk) {
    const int64_t end = min_of(begin + kChunk, V);
    Vec part = {};
    int64_t v = begin;
    for (; v + N <= end; v += N) part += term(load<Vec>(x + v), load<Vec>(d + v));
    if (v < end) part += term(load_last<Vec>(x, V, end - v, -F(__builtin_inf())), load_last<Vec>(d, V, end - v, F(0)));
    sum += double(sum_of_lanes(part));
  }
  return sum * double(scale);
}

// out = factor * (softmax(x) * (d - centre - mean) - less), the first term 0 where the probability is; `less` may be
// null for nothing.
template <class F> void softmax_change(const F* x, int64_t V, F shift, F scale, const F* d, F centre, F mean, F factor,
                                       const F* less, F* out) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  const auto at = [&](int64_t v, int64_t n) {
    const Vec y = exp_of_nonpositive<F>(load_first<Vec>(x + v, n, shift) - shift);
    const Vec change = y == Vec{} ? Vec{} : y * scale * ((load_first<Vec>(d + v, n, F(0)) - centre) - mean);
    return (less == nullptr ? change : change - load_first<Vec>(less + v, n, F(0))) * factor;
  };
  if (V < N) return store_first(out, at(0, V), V);
  for (int64_t v = 0; v + N <= V; v += N) store(out + v, at(v, N));
  if (V % N > 0) store(out + V - N, at(V - N, N));
}

// The product of many numbers >= 1 without overflow: one log at the end instead of one each.
struct Product {
  double m = 1;
  int64_t e = 0;
  CTC_INLINE void multiply(double x) {
    m *= x;
    const int64_t pattern = bits<int64_t>(m), exponent = (pattern >> 52) - 1023;
    m = bits<double>(pattern - exponent * (int64_t(1) << 52));
    e += exponent;
  }
};

}  // namespace
}  // namespace jax_ctc

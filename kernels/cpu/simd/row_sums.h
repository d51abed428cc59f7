// SPDX-License-Identifier: Apache-2.0
// Of a row of V logits: the largest entry, the number of entries equal to it, and the sum of exp of the others.
#pragma once

#include "exp.h"
#include "row_pieces.h"

namespace jax_ctc {
namespace {

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

// What is added up in floats before the sum goes on in doubles: a lane makes 16 additions or 17. One float sum over
// V = 1e5 would give the gradient an error of 2e-5.
template <class F> constexpr int64_t kPart = 32 * kLanes<F>;

// Calls add(vector, sums) for the vectors of one part, the entries [begin, end), and returns the sums of lanes. -inf
// takes the place of what is missing in the last vector.
template <class F, class Add, bool kLater>
CTC_INLINE Lanes<F> add_part(const F* x, int64_t begin, int64_t end, const Add& add, Ahead<kLater>& ahead) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  Vec a = {}, b = {};
  int64_t v = begin;
  for (; v + 4 * N <= end; v += 4 * N) {
    ahead.template prefetch<4 * N * sizeof(F)>();
    add(load<Vec>(x + v), a), add(load<Vec>(x + v + N), b);
    add(load<Vec>(x + v + 2 * N), a), add(load<Vec>(x + v + 3 * N), b);
  }
  for (; v + N <= end; v += N) add(load<Vec>(x + v), a);
  if (v < end) add(load_last<Vec>(x, end, end - v, F(-__builtin_inf())), b);
  return a + b;
}

// Of n entries: the number of those equal to top, and the sum of exp of the others, relative to what `exp` is.
struct PieceSum {
  double ties, tail;
};
template <bool kTies, class F, class Exp, bool kLater>
PieceSum sum_piece(const F* x, int64_t n, F top, const Exp& exp, Ahead<kLater> ahead) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  DoubleLanes tail = {};
  Integer<Vec> others = {};  // counted, because one comparison then does what two would do
  const auto add = [&](Vec at, Vec& to) {
    ExpFactors<Vec> y = exp(at);
    if constexpr (kTies) {
      const Integer<Vec> other = at != top;
      y.power = other ? y.power : Vec{}, others -= other;
    }
    to += y.p * y.power;
  };
  for (int64_t v = 0; v < n; v += kPart<F>) tail += sum_of_pairs(add_part(x, v, min_of(v + kPart<F>, n), add, ahead));
  ahead.prefetch_rest();
  const int64_t lanes = (n + N - 1) / N * N;
  return {kTies ? double(lanes - sum_of_lanes(others)) : 0, sum_of_lanes(tail)};
}

// Of a row, or of a slice of one: the largest entry, the number of entries equal to it, and the sum of exp(x - top) of
// the others. Where many entries are equal, `tail` may have all but one of them. If all entries are -inf these are
// (-inf, 0, 0). If there is a NaN or a +inf, `tail` is NaN.
template <class F> struct RowSums {
  F top;
  double ties, tail;
};

// Reads a row of acts in pieces, each twice. A piece stays in the first-level cache between its two passes, as floats
// if acts are halves.
template <class F> RowSums<F> sum_in_two_passes(Dtype dtype, const void* row, int64_t V, const void* next) {
  const Pieces pieces(row, element_size(dtype), V, next);
  F wide[Pieces::kMost];
  const F infinity = __builtin_inf();
  const double nan = __builtin_nan("");
  F top = -infinity;
  double ties = 0, tail = 0;
  for (int64_t k = 0; k < pieces.count; ++k) {
    const int64_t n = pieces.length(k);
    const F* const x = pieces.read(dtype, pieces.begin(k), n, wide);
    const F here = largest(x, n);
    if (here > top) {
      if (ties > 0) tail = (ties + tail) * __builtin_exp(double(top) - double(here)), ties = 0;
      top = here;
    }
    if (!(top < infinity)) return {top, nan, nan};
    if (top == -infinity) {  // up to here. Comparisons do not find a NaN
      for (int64_t v = 0; v < n; ++v)
        if (x[v] != x[v]) return {top, nan, nan};
      continue;
    }
    const auto sum_of = [&](const auto& exp, auto ahead) {
      // If the largest entry is in another piece, no entry is equal to it.
      const PieceSum sum =
          here == top ? sum_piece<true>(x, n, top, exp, ahead) : sum_piece<false>(x, n, top, exp, ahead);
      ties += sum.ties, tail += sum.tail / exp.of_top();
    };
    const auto sum = [&](auto ahead) {
      if constexpr (sizeof(F) == 4)
        if (ExpOfLogits::allows(top)) return sum_of(ExpOfLogits(top), ahead);
      sum_of(ExpOfDifferences<F>(top), ahead);
    };
    pieces.count > 1 ? sum(pieces.ahead<true>(k)) : sum(pieces.ahead<false>(k));
  }
  return {top, ties, tail};
}

// A part of a row that was read once: the largest entry of each lane, and its sum relative to a power of 2.
template <class F> struct Part {
  Lanes<F> tops, sums;
  int64_t begin, n;
};

// The parts of some pieces, a stretch of the row.
template <class F> class Stretch {
 public:
  static constexpr int64_t kPieces = 8;
  int64_t count = 0;
  const Part<F>& operator[](int64_t i) const { return list[i]; }
  const Part<F>* begin() const { return list; }
  const Part<F>* end() const { return list + count; }

  // Adds the entries [begin, begin + n) of a row, which are `x`.
  CTC_INLINE void add_piece(const F* x, int64_t begin, int64_t n, const ExpOfLogits& exp, Ahead<true> ahead) {
    using Vec = Lanes<F>;
    for (int64_t v = 0; v < n; v += kPart<F>) {
      Vec tops = splat<Vec>(-F(__builtin_inf()));
      const auto add = [&](Vec at, Vec& to) {
        tops = max_of(tops, at);
        const ExpFactors<Vec> y = exp(at);
        to += y.p * y.power;
      };
      const int64_t of_part = min_of(kPart<F>, n - v);
      const Vec sums = add_part(x + v, 0, of_part, add, ahead);
      list[count++] = {tops, sums, begin + v, of_part};
    }
    ahead.prefetch_rest();
  }

 private:
  Part<F> list[kPieces * Pieces::kMost / kPart<F>];
};

// Copies the entries of a part of n that one lane of its vectors has (add_part). Returns their number.
template <class F> int64_t entries_of_lane(const F* x, int64_t n, int lane, F* to) {
  constexpr int N = kLanes<F>;
  int64_t count = 0, v = 0;
  for (; v + N <= n; v += N) to[count++] = x[v + lane];
  if (n < N && lane < n) to[count++] = x[lane];
  if (n > N && N - lane <= n - v) to[count++] = x[n - N + lane];
  return count;
}

// The sums of a row of two pieces or more, each of which is read once. The sum is relative to the largest of the first
// entries. When the largest entry of a stretch is known, the lane that has it is read again, without this entry. False
// if the row is not one for this: if its first entries are far or -inf, or if others are +inf, NaN or much larger.
template <class F> bool sum_in_one_pass(Dtype dtype, const void* row, int64_t V, const void* next, RowSums<F>& to) {
  using Vec = Lanes<F>;
  constexpr int64_t N = kLanes<F>, kPieces = Stretch<F>::kPieces, kFirst = 64;
  // If more lanes of a stretch have the largest entry, its equals stay in the sum: no labelling has nearly all of the
  // probability then, so 1 - p is not small. Of a confident model a frame between two labels has three likely classes.
  constexpr int64_t kMostTied = 3;
  const Pieces pieces(row, element_size(dtype), V, next);
  F wide[Pieces::kMost];
  const int64_t first = min_of(V, kFirst);  // kFirst. With the constant alone GCC 12 warns of a loop
  const F first_top = largest(pieces.read(dtype, 0, first, wide), first);
  if (!ExpOfLogits::allows(first_top)) return false;
  const ExpOfLogits exp(first_top);
  F top = first_top;
  double ties = 0, sum = 0;
  const auto add_others = [&](const F* x, int64_t n) {
    const PieceSum others = sum_piece<true>(x, n, top, exp, Ahead<false>{});
    ties += others.ties, sum += others.tail;
  };
  for (int64_t first_piece = 0; first_piece < pieces.count; first_piece += kPieces) {
    Stretch<F> parts;
    for (int64_t k = first_piece; k < min_of(first_piece + kPieces, pieces.count); ++k) {
      const int64_t begin = pieces.begin(k), n = pieces.length(k);
      const F* const x = pieces.read(dtype, begin, n, wide);
      parts.add_piece(x, begin, n, exp, pieces.ahead<true>(k));
    }
    Vec tops = splat<Vec>(top);
    for (const Part<F>& part : parts) tops = max_of(tops, part.tops);
    const F here = max_of_lanes(tops);
    if (!(here - first_top < ExpOfLogits::kAbove)) return false;
    if (here > top) sum += ties * exp.of(top), ties = 0, top = here;
    // Where the largest is, nobody can predict. So there is no branch if one lane has it.
    DoubleLanes sums = {};
    Integer<Vec> lanes = {}, place = {};
    for (int64_t i = 0; i < parts.count; ++i) {
      const Integer<Vec> at_top = parts[i].tops == splat<Vec>(top);
      sums += sum_of_pairs(at_top ? Vec{} : parts[i].sums);
      lanes -= at_top, place |= at_top & (number_lanes<Vec>() + Integer<F>(i * N));
    }
    const auto entries_of = [&](const Part<F>& part) { return pieces.read(dtype, part.begin, part.n, wide); };
    if (const int64_t count = sum_of_lanes(lanes); count == 1) {
      const int64_t at = sum_of_lanes(place);
      F entries[kPart<F> / N];
      add_others(entries, entries_of_lane(entries_of(parts[at / N]), parts[at / N].n, at % N, entries));
    } else if (count > 1) {
      const bool apart = count <= kMostTied;
      sums = DoubleLanes{};
      for (const Part<F>& part : parts) {
        if (apart && holds_anywhere(part.tops == splat<Vec>(top)))
          add_others(entries_of(part), part.n);
        else
          sums += sum_of_pairs(part.sums);
      }
    }
    sum += sum_of_lanes(sums);
  }
  sum /= exp.of(top);
  to = ties > 0 ? RowSums<F>{top, ties, sum} : RowSums<F>{top, 1, sum - 1};
  return true;
}

// `next` is the row that is read next.
template <class F> RowSums<F> sum_row(Dtype dtype, const void* row, int64_t V, const void* next) {
  // A row of one piece takes as long in two passes, or less.
  if constexpr (kFused && sizeof(F) == 4) {
    RowSums<F> sums;
    if (V > Pieces::kMost && sum_in_one_pass(dtype, row, V, next, sums)) return sums;
  }
  return sum_in_two_passes<F>(dtype, row, V, next);
}

}  // namespace
}  // namespace jax_ctc

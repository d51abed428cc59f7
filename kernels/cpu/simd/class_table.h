// SPDX-License-Identifier: Apache-2.0
// For small V: normalisers, emissions and ratios of four frames at once, from a table of all classes.
//
// In a table the numbers of a class at four frames stand side by side. So a sum over classes needs no step across
// lanes, exp is computed once for each class and not once for each label, and one load gives a label's emissions at
// four frames.
#pragma once

#include "dithered_ratios.h"
#include "rows.h"
#include "step.h"

namespace jax_ctc {
namespace {

// Prefetches a group of rows, `step` bytes apart.
CTC_FN void prefetch_group(const void* first, int64_t step, int64_t bytes) {
  const char* row = static_cast<const char*>(first);
  if (bytes > 128) {
    for (int k = 0; k < kFrames; ++k) prefetch(row + k * step, bytes);
    return;
  }
  // Three lines at most, without a loop that would take longer than they do.
  const int64_t middle = bytes / 2, last = bytes - 1;
#pragma GCC unroll 4
  for (int k = 0; k < kFrames; ++k, row += step)
    __builtin_prefetch(row), __builtin_prefetch(row + middle), __builtin_prefetch(row + last);
}

// The number of classes of a table: V, and at least one more of probability 0, which entries without a label point to.
inline int64_t table_classes(int64_t V) { return V / 4 * 4 + 4; }
// The elements of a table, of which whole vectors of classes are written.
template <class F> int64_t table_size(int64_t V) { return kFrames * padded<F>(V + 1); }

// The last n < kLanes of V >= kLanes classes of a row, in the lower lanes, and `none` in the others.
template <class F> CTC_FN Lanes<F> tail_of_row(const F* row, int64_t V, int64_t n, F none) {
  using Vec = Lanes<F>;
  using Z = Integer<Vec>;
  const Z lane = number_lanes<Vec>(), from = (lane + Integer<F>(kLanes<F> - n)) % kLanes<F>;
  return lane < splat<Z>(n) ? permute(load<Vec>(row + V - kLanes<F>), from) : splat<Vec>(none);
}

// table[class][frame] = rows[frame][class]. Classes beyond V, as far as whole vectors of classes and table_classes(V)
// go, get `none`. All stores are whole vectors, because the table is loaded right behind them. Returns the largest
// entry of each frame, or -inf, in all of its lanes. A NaN is passed over.
template <class F> Lanes<F> tabulate(const F* const (&rows)[kFrames], int64_t V, F none, F* table) {
  using Vec = Lanes<F>;
  constexpr int N = kLanes<F>;
  Vec top[kFrames];
  for (Vec& of_frame : top) of_frame = splat<Vec>(-F(__builtin_inf()));
  const auto put = [&](int64_t v, Vec a, Vec b, Vec c, Vec d) {
    top[0] = max_of(a, top[0]), top[1] = max_of(b, top[1]), top[2] = max_of(c, top[2]), top[3] = max_of(d, top[3]);
    Vec at[kFrames] = {a, b, c, d};  // of a loop GCC 12 makes copies in memory
    transpose_groups(at);
    store_by_group(table + kFrames * v, at);
  };
  Quad<F> top_of_quads = Quad<F>{} - F(__builtin_inf());
  int64_t v = 0;
  for (; v + N <= V; v += N)
    put(v, load<Vec>(rows[0] + v), load<Vec>(rows[1] + v), load<Vec>(rows[2] + v), load<Vec>(rows[3] + v));
  if (v == V) {
    for (int64_t i = kFrames * v; i < kFrames * table_classes(V); i += N) store(table + i, splat<Vec>(none));
  } else if (N > kFrames && V >= N) {
    const auto tail = [&](int k) { return tail_of_row(rows[k], V, V - v, none); };
    put(v, tail(0), tail(1), tail(2), tail(3));
  } else {
    for (; v < V; ++v) {
      const Quad<F> at = {rows[0][v], rows[1][v], rows[2][v], rows[3][v]};
      top_of_quads = max_of(at, top_of_quads);
      store_quad<F>(table + kFrames * v, at);
    }
    for (; v < table_classes(V); ++v) store_quad<F>(table + kFrames * v, Quad<F>{} + none);
  }
  return max_of(largest_of_frames<F>(top[0], top[1], top[2], top[3]), tiled<F>(top_of_quads));
}

// The logits of all classes at four frames, their emissions p * 2^q, and the normalisers of these frames. Of log-scores
// only classes that are read have emissions other than 0.
//
// The functions read what `tabulate` has written to x. `top` is what it returned.
template <class F> struct Table {
  using Vec = Lanes<F>;
  using Mask = Integer<Vec>;
  static constexpr int N = kLanes<F>;

  F* x;  // logits. x, p and q are [class][frame]
  F* p;
  Integer<F>* q;
  F shift[kFrames];
  double sum[kFrames];  // as in Normaliser

  void read(Vec top, int64_t V) { split_classes<true>(kFrames * table_classes(V), top); }
  // Leaves p and q as they are.
  void read_logits(Vec top, int64_t V) {
    const int64_t n = kFrames * ((V + 3) / 4 * 4);  // without the class that no row has
    Vec tail = {};
    Mask others = {};
    for (int64_t i = 0; i < n; i += N) {
      const Vec v = load<Vec>(x + i);
      const ExpFactors<Vec> y = exp_factors<F>(v - top);
      const Mask other = v != top;
      tail += y.p * (other ? y.power : Vec{}), others -= other;
    }
    set_normalisers<true>(top, tail, Integer<F>(n / N) - others);
  }
  // `most`, [class][frame], is +inf at the classes that are read, and -inf at all others, whatever rows hold there.
  void read_scores(int64_t V, const F* most) { split_classes<false>(kFrames * table_classes(V), only_read(V, most)); }
  // After these, for frames that are alike: the emissions again, rounded with a dither. t is the first frame.
  template <bool kSoftmax> void round_with_dither(int64_t V, int64_t t) {
    for (int k = 0; k < kFrames; ++k) split_any<kSoftmax>(kFrames * table_classes(V), k, dither_of(t + k));
  }

  // Ratios to the blank's emission in the place of p. q is not written.
  RatioBase<F> read_ratios(Vec top, int64_t V, int32_t blank) {
    const RatioBase<F> base = ratio_base(blank, top);
    const F* const x = this->x;  // the stores below do not change it
    F* const p = this->p;
    Vec tail = {};
    Mask others = {};
    int64_t i = 0;
    for (; i < kFrames * V; i += N) {
      const Vec v = load<Vec>(x + i), y = base.ratio(v);
      const Mask other = v != top;
      tail += other ? y : Vec{}, others -= other;
      store(p + i, y);
    }
    const Mask ties = Integer<F>(i / N) - others;
    // Without a loop, for which GCC would call memset: there are four classes at most.
#pragma GCC unroll 4
    for (int k = 0; k < 4 * kFrames; k += N)
      if (i + k < kFrames * table_classes(V)) store(p + i + k, Vec{});
    set_normalisers<true>(top, tail / base.of_top, ties);
    return base;
  }
  // The same for frames that are alike.
  RatioBase<F> read_dithered_ratios(Vec top, int64_t V, int32_t blank, Quad<int64_t> dithers) {
    const RatioBase<F> base = dithered_base(blank, top, dithers);
    dithered_ratios(x, kFrames * table_classes(V), load_quad(x + kFrames * int64_t(blank)), dithers, p);
    Vec tail = {};
    Mask others = {};
    int64_t i = 0;
    for (; i < kFrames * V; i += N) {
      const Mask other = load<Vec>(x + i) != top;
      tail += other ? load<Vec>(p + i) : Vec{}, others -= other;
    }
    set_normalisers<true>(top, tail / base.of_top, Integer<F>(i / N) - others);
    return base;
  }
  RatioBase<F> read_ratios_of_scores(int64_t V, const F* most, int32_t blank) {
    const Vec top = only_read(V, most);
    const RatioBase<F> base = ratio_base(blank, top);
    for (int64_t i = 0; i < kFrames * table_classes(V); i += N) store(p + i, base.ratio(load<Vec>(x + i)));
    set_normalisers<false>(top, Vec{}, Mask{});
    return base;
  }
  RatioBase<F> read_dithered_ratios_of_scores(int64_t V, const F* most, int32_t blank, Quad<int64_t> dithers) {
    const Vec top = only_read(V, most);
    dithered_ratios(x, kFrames * table_classes(V), load_quad(x + kFrames * int64_t(blank)), dithers, p);
    set_normalisers<false>(top, Vec{}, Mask{});
    return dithered_base(blank, top, dithers);
  }
  CTC_INLINE RatioBase<F> ratio_base(int32_t blank, Vec top) const {
    return {tiled<F>(load_quad(x + kFrames * int64_t(blank))), top};
  }

  RatioBase<F> dithered_base(int32_t blank, Vec top, Quad<int64_t> dithers) const {
    RatioBase<F> base = ratio_base(blank, top);
    if (base.fits) base.of_top = dithered_ratio(top, load_quad(x + kFrames * int64_t(blank)), dithers);
    return base;
  }

  // Of log-scores see reference_of_scores. A NaN has become +inf. A NaN among logits has made `tail` NaN.
  template <bool kSoftmax> void set_normalisers(Vec top, Vec tail, Mask ties) {
    const Vec shifts = kSoftmax ? top : top > -F(__builtin_inf()) ? top : Vec{};
    const Vec tails = sum_over<kFrames, N>(tail) + (shifts - shifts);  // NaN if a shift is infinite
    const Mask all_ties = kSoftmax ? sum_over<kFrames, N>(ties) : Mask{} + 1;
    store_quad(shift, first_quad<F>(shifts));
    store_quad(sum, first_quad<double>(all_ties) + first_quad<double>(tails));
  }

 private:
  // Leaves the entries that are read. Returns the largest of each frame, in all of its lanes.
  Vec only_read(int64_t V, const F* most) {
    Vec top = splat<Vec>(-F(__builtin_inf()));
    for (int64_t i = 0; i < kFrames * table_classes(V); i += N) {
      const Vec read = min_of(load<Vec>(x + i), load<Vec>(most + i));
      top = max_of(read, top);
      store(x + i, read);
    }
    return max_over<kFrames, N>(top);
  }
  // `top` is the largest entry of each frame, in all of its lanes.
  template <bool kSoftmax> void split_classes(int64_t n, Vec top) {
    const F* const x = this->x;  // the stores below do not change it
    F* const p = this->p;
    Integer<F>* const q = this->q;
    const RowShift<F> row(top);
    Vec tail = {}, furthest = splat<Vec>(-F(__builtin_inf()));
    Mask others = {};
    for (int64_t i = 0; i < n; i += N) {
      const Vec v = load<Vec>(x + i);
      const Scaled<Vec> y = split_emission<F>(v, row, furthest);
      if constexpr (kSoftmax) {
        const Mask other = v != top;
        tail += bits<Vec>(bits<Mask>(y.m * pow2<Vec>(y.e)) & other);
        others -= other;
      }
      store(p + i, y.m), store(q + i, y.e);
    }
    set_normalisers<kSoftmax>(top, tail, Integer<F>(n / N) - others);
    furthest = max_over<kFrames, N>(furthest);
    for (int k = 0; k < kFrames; ++k)
      if (any_is_far<F>(furthest[k], shift[k])) split_any<kSoftmax>(n, k);
  }

  // Does the same again for one frame, of which some logits are not near.
  template <bool kSoftmax> void split_any(int64_t n, int k, int32_t dither = kNearest) {
    double sum_of_all = 0;
    for (int64_t i = k; i < n; i += kFrames) {
      split_any_emissions(x + i, 1, shift[k], p + i, q + i, dither);
      // A row with a NaN may have entries above its shift.
      if (kSoftmax) sum_of_all += x[i] == x[i] ? double(p[i]) * pow2_any<double>(q[i]) : __builtin_nan("");
    }
    if (kSoftmax && is_finite(shift[k])) sum[k] = sum_of_all;
  }
};

// gather_vector for the labels of whole vectors.
template <class F> void gather(const F* table, const int32_t* places, Window labels, F* const (&to)[kFrames]) {
  for (int64_t i = labels.begin; i < labels.end; i += kLanes<F>) gather_vector(table, places, i, to);
}
// The same, where entries become >= 0. Returns the smallest of each lane.
template <class F, class Each = Itself>
Lanes<F> gather_least(const F* table, const int32_t* places, Window labels, F* const (&to)[kFrames], Each each = {}) {
  Lanes<F> least = splat<Lanes<F>>(F(1));
  F* const copies[kFrames] = {to[0], to[1], to[2], to[3]};  // stores may change `to`, for all that the compiler knows
  for (int64_t i = labels.begin; i < labels.end; i += kLanes<F>)
    least = min_of(least, gather_vector(table, places, i, copies, each));
  return least;
}

// Writes the emissions of `pairs` labels and of the blank.
template <class Value, class F> void gather(const Table<F>& table, const int32_t* places, int64_t pairs, int32_t blank,
                                            const Emissions<Value> (&y)[kFrames]) {
  const F* const p = table.p;
  const F* const q = reinterpret_cast<const F*>(table.q);  // only moved, so any type will do
  F *p_to[kFrames], *q_to[kFrames];
  for (int k = 0; k < kFrames; ++k) p_to[k] = y[k].mantissas(), q_to[k] = p_to[k] + y[k].pitch;
  for (int64_t i = 0; i < pairs; i += kLanes<F>) {
    gather_vector(p, places, i, p_to);
    gather_vector(q, places, i, q_to);
  }
  for (int k = 0; k < kFrames; ++k) {
    store(y[k].mantissas() + y[k].last, splat<Lanes<F>>(p[4 * int64_t(blank) + k]));
    store(y[k].exponents() + y[k].last, splat<Integer<Lanes<F>>>(table.q[4 * int64_t(blank) + k]));
  }
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// For small V: softmax, emissions and occupancies of four frames at once, from a table of all classes.
//
// In a table the numbers of a class at four frames stand side by side. So a sum over classes needs no step across
// lanes, exp is computed once for each class and not once for each label, and one load gives a label's emissions at
// four frames.
#pragma once

#include "rows.h"
#include "step.h"

namespace jax_ctc {
namespace {

constexpr int kFrames = 4;

template <class F> struct QuadOf {
  typedef F type __attribute__((vector_size(kFrames * sizeof(F))));
};
template <class F> using Quad = typename QuadOf<F>::type;

template <class F> CTC_FN Quad<F> load_quad(const F* from) {
  Quad<F> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class F> CTC_FN void store_quad(F* to, Quad<F> v) { __builtin_memcpy(to, &v, sizeof v); }

template <class F, int... K> CTC_FN Lanes<F> tiled(Quad<F> v, Indices<K...>) {
  return __builtin_shufflevector(v, v, (K % kFrames)...);
}
// The four numbers, repeated over all lanes.
template <class F> CTC_FN Lanes<F> tiled(Quad<F> v) { return tiled<F>(v, typename Count<kLanes<F>>::type{}); }

// to[k][j] = from[j][k] for 4 x 4 entries.
template <class F> CTC_FN void transpose(const F* const (&from)[4], F* const (&to)[4]) {
  const Quad<F> a = load_quad(from[0]), b = load_quad(from[1]), c = load_quad(from[2]), d = load_quad(from[3]);
  const Quad<F> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad<F> cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  store_quad(to[0], __builtin_shufflevector(ab, cd, 0, 1, 4, 5));
  store_quad(to[1], __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
  store_quad(to[2], __builtin_shufflevector(AB, CD, 0, 1, 4, 5));
  store_quad(to[3], __builtin_shufflevector(AB, CD, 2, 3, 6, 7));
}

// The number of classes of a table: V, and at least one more of probability 0, which entries without a label point to.
inline int64_t table_classes(int64_t V) { return V / 4 * 4 + 4; }

// table[class][frame] = rows[frame][class]. Classes beyond V get `none`.
template <class F> void tabulate(const F* const (&rows)[kFrames], int64_t V, F none, F* table) {
  int64_t v = 0;
  for (; v + 4 <= V; v += 4)
    transpose<F>({rows[0] + v, rows[1] + v, rows[2] + v, rows[3] + v},
                 {table + 4 * v, table + 4 * v + 4, table + 4 * v + 8, table + 4 * v + 12});
  for (; v < table_classes(V); ++v)
    for (int k = 0; k < kFrames; ++k) table[4 * v + k] = v < V ? rows[k][v] : none;
}

// The emissions p * 2^q of all classes at four frames, and the normalisers of these frames. Of log-scores only classes
// that are read have emissions other than 0.
template <class F> struct Table {
  F* x;  // logits. x, p and q are [class][frame]
  F* p;
  Integer<F>* q;
  F shift[kFrames];
  double sum[kFrames];  // as in Normaliser

  void read(const F* const (&rows)[kFrames], int64_t V) {
    tabulate(rows, V, -F(__builtin_inf()), x);
    normalise<true>(kFrames * table_classes(V));
  }
  // `most`, [class][frame], is +inf at the classes that are read, and -inf at all others, whatever rows hold there.
  void read_scores(const F* const (&rows)[kFrames], int64_t V, const F* most) {
    tabulate(rows, V, -F(__builtin_inf()), x);
    const int64_t n = kFrames * table_classes(V);
    for (int64_t i = 0; i < n; i += kLanes<F>) store(x + i, min_of(load<Lanes<F>>(x + i), load<Lanes<F>>(most + i)));
    normalise<false>(n);
  }

 private:
  // Of log-scores see reference_of_scores. A NaN has become +inf.
  template <bool kSoftmax> void normalise(int64_t n) {
    using Vec = Lanes<F>;
    using Mask = Integer<Vec>;
    constexpr int N = kLanes<F>;
    Vec top = load<Vec>(x);
    for (int64_t i = N; i < n; i += N) top = max_of(load<Vec>(x + i), top);
    top = max_over<kFrames, N>(top);
    Vec sums[2] = {};
    Mask ties = {}, far = {}, nan = {};
    for (int64_t i = 0; i < n; i += N) {
      const Vec v = load<Vec>(x + i);
      const Emission<F> y = split_emission<F>(v, top);
      if constexpr (kSoftmax) {
        const Mask at_top = v == top;
        sums[i / N % 2] += at_top ? Vec{} : y.p * pow2<Vec>(y.q);
        ties -= at_top;
        nan |= v != v;
      }
      far |= y.far;
      store(p + i, y.p), store(q + i, y.q);
    }
    const Vec tails = sum_over<kFrames, N>(sums[0] + sums[1]);
    const Mask all_ties = sum_over<kFrames, N>(ties), any_nan = sum_over<kFrames, N>(nan);
    for (int k = 0; k < kFrames; ++k) {
      const bool possible = top[k] > -F(__builtin_inf());
      const bool defined = (possible || !kSoftmax) && top[k] < F(__builtin_inf()) && any_nan[k] == 0;
      shift[k] = possible || kSoftmax ? top[k] : F(0);
      sum[k] = !defined ? __builtin_nan("") : kSoftmax ? double(all_ties[k]) + double(tails[k]) : 1;
    }
    if (sum_of_lanes(far) != 0)
      for (int64_t i = 0; i < n; ++i) split_far_emissions(x + i, 1, shift[i % kFrames], p + i, q + i);
  }
};

// to[frame][i] = table[labels[i]][frame] for `pairs` labels.
template <class F> void gather(const F* table, const int32_t* labels, int64_t pairs, F* const (&to)[kFrames]) {
  for (int64_t i = 0; i < pairs; i += 4)
    transpose<F>(
        {table + 4 * labels[i], table + 4 * labels[i + 1], table + 4 * labels[i + 2], table + 4 * labels[i + 3]},
        {to[0] + i, to[1] + i, to[2] + i, to[3] + i});
}

// Writes the emissions of `pairs` labels and of the blank. Entries without a label are V.
template <class Value, class F> void gather(const Table<F>& table, const int32_t* labels, int64_t pairs, int32_t blank,
                                            const Emissions<Value> (&y)[kFrames]) {
  const F* q = reinterpret_cast<const F*>(table.q);  // only moved, so any type will do
  F *p_to[kFrames], *q_to[kFrames];
  for (int k = 0; k < kFrames; ++k) p_to[k] = y[k].mantissas(), q_to[k] = p_to[k] + y[k].pitch;
  for (int64_t i = 0; i < pairs; i += 4) {
    const int64_t a = 4 * labels[i], b = 4 * labels[i + 1], c = 4 * labels[i + 2], d = 4 * labels[i + 3];
    transpose<F>({table.p + a, table.p + b, table.p + c, table.p + d},
                 {p_to[0] + i, p_to[1] + i, p_to[2] + i, p_to[3] + i});
    transpose<F>({q + a, q + b, q + c, q + d}, {q_to[0] + i, q_to[1] + i, q_to[2] + i, q_to[3] + i});
  }
  for (int k = 0; k < kFrames; ++k) {
    store(y[k].mantissas() + y[k].last, splat<Lanes<F>>(table.p[4 * int64_t(blank) + k]));
    store(y[k].exponents() + y[k].last, splat<Integer<Lanes<F>>>(table.q[4 * int64_t(blank) + k]));
  }
}

// Adds up by class, in label order, the numbers that stand at `pairs` labels of four frames. They are `pitch` elements
// from one frame to the next. `sums` has room for a table. The result is by_class[frame][class].
template <class F> void scatter(const F* gamma, int64_t pitch, const int32_t* labels, int64_t pairs, int64_t classes,
                                F* sums, F* by_class) {
  for (int64_t i = 0; i < kFrames * classes; ++i) sums[i] = 0;
  for (int64_t i = 0; i < pairs; i += 4) {
    F at[4][kFrames];
    transpose<F>({gamma + i, gamma + pitch + i, gamma + 2 * pitch + i, gamma + 3 * pitch + i},
                 {at[0], at[1], at[2], at[3]});
    for (int j = 0; j < 4; ++j) {
      F* sum = sums + 4 * int64_t(labels[i + j]);
      store_quad<F>(sum, load_quad<F>(sum) + load_quad<F>(at[j]));
    }
  }
  for (int64_t v = 0; v < classes; v += 4)
    transpose<F>({sums + 4 * v, sums + 4 * v + 4, sums + 4 * v + 8, sums + 4 * v + 12},
                 {by_class + v, by_class + classes + v, by_class + 2 * classes + v, by_class + 3 * classes + v});
}

}  // namespace
}  // namespace jax_ctc

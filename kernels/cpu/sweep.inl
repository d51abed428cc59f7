// SPDX-License-Identifier: Apache-2.0
// The lattice of one sequence, frame by frame, `kLanes` pairs of states at a time. Knows nothing of acts or of V.
//
// A direction numbers its pairs in its own order: alpha from the first label to the last, beta from the last to the
// first, so that one step serves both. Pair k of one direction meets blank L - k and label L - 1 - k of the other.
#pragma once

#include "../recursion.h"
#include "lanes.h"

namespace jax_ctc {
namespace {

// n entries with one vector of `rest` before them: what a reversed load of the other direction's row may reach.
template <class F> constexpr int64_t padded(int64_t n) { return (n + kLanes<F> - 1) / kLanes<F> * kLanes<F>; }

// The states of one frame: four arrays of `pairs` entries, each with a margin of one vector below it.
template <class F> struct States {
  using Z = Integer<F>;
  F* m;
  int64_t pitch;  // from one array to the next

  static int64_t size(int64_t pairs) { return 4 * (pairs + kLanes<F>); }
  static States at(F* base, int64_t pairs) { return {base + kLanes<F>, pairs + kLanes<F>}; }
  F* blank_m() const { return m; }
  F* label_m() const { return m + pitch; }
  Z* blank_e() const { return reinterpret_cast<Z*>(m + 2 * pitch); }
  Z* label_e() const { return reinterpret_cast<Z*>(m + 3 * pitch); }

  Scaled<F> blank(int64_t i) const { return {blank_m()[i], blank_e()[i]}; }
  Scaled<F> label(int64_t i) const { return {label_m()[i], label_e()[i]}; }

  void clear(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) blank_m()[i] = label_m()[i] = 1, blank_e()[i] = label_e()[i] = kNone;
  }
  void clear_margin() const { clear(-kLanes<F>, 0); }
  // Before the first frame: the empty prefix, in blank 0.
  void start() const {
    clear(-kLanes<F>, pitch - kLanes<F>);
    blank_e()[0] = 0;
  }
  void copy(States from) const { __builtin_memcpy(m - kLanes<F>, from.m - kLanes<F>, 4 * pitch * sizeof(F)); }
};

// exp(acts) of the labels at one frame in label order, dead beyond them and in the margin; and of the blank.
template <class F> struct Emissions {
  using Z = Integer<F>;
  F* p;
  Z* q;
  int64_t blank;  // where the blank stands

  // One frame: margin, `pairs` labels, one vector whose first entry is the blank.
  static int64_t width(int64_t pairs) { return pairs + 2 * kLanes<F>; }
};

enum Direction { kAlpha, kBeta };

template <class F, class V> CTC_FN Scaled<V> load_scaled(const F* m, const Integer<F>* e) {
  return {load<V>(m), load<Integer<V>>(e)};
}
// The vector that ends at index `last`, back to front.
template <class F, class V> CTC_FN Scaled<V> load_reversed(const F* m, const Integer<F>* e, int64_t last) {
  const int64_t first = last - kLanes<F> + 1;
  return {reverse(load<V>(m + first)), reverse(load<Integer<V>>(e + first))};
}

// Where occupancies go: gamma of the labels as they stand, and their sums over the vector lanes.
template <class F> struct Posterior {
  States<F> beta;        // the other direction at this frame, its emission included
  Integer<F> reference;  // exponent of the total
  F* labels;             // `pairs` entries
  Lanes<F> blank_sum, label_sum;
};

// One frame: `to` from `from`. With a posterior, also what the states hold before the emission times what beta holds
// after it (eq. 8).
template <Direction kDirection, bool kFold, bool kOccupancy, class F>
CTC_FN void step(int64_t L, int64_t pairs, const Integer<F>* skip, Emissions<F> y, States<F> from, States<F> to,
                 Posterior<F>* posterior) {
  using V = Lanes<F>;
  const Scaled<V> blank = {splat<V>(y.p[y.blank]), splat<Integer<V>>(y.q[y.blank])};
  Scaled<V> below = Scaled<V>::none();
  V blank_sum = {}, label_sum = {};
  const Posterior<F> post = kOccupancy ? *posterior : Posterior<F>{};
  const Integer<V> reference = splat<Integer<V>>(post.reference);
  for (int64_t i = 0; i < pairs; i += kLanes<F>) {
    const Pair<Scaled<V>> at = {load_scaled<F, V>(from.blank_m() + i, from.blank_e() + i),
                                load_scaled<F, V>(from.label_m() + i, from.label_e() + i)};
    const Scaled<V> left = {shift_up(below.m, at.label.m), shift_up(below.e, at.label.e)};
    below = at.label;
    const Pair<Scaled<V>> before = advance(at, left, load<Integer<V>>(skip + i));
    if constexpr (kOccupancy) {
      const States<F> beta = post.beta;
      blank_sum += product(before.blank, load_reversed<F, V>(beta.blank_m(), beta.blank_e(), L - i), reference);
      const V gamma = product(before.label, load_reversed<F, V>(beta.label_m(), beta.label_e(), L - 1 - i), reference);
      label_sum += gamma;
      store(post.labels + i, gamma);
    }
    const Scaled<V> label =
        kDirection == kAlpha ? load_scaled<F, V>(y.p + i, y.q + i) : load_reversed<F, V>(y.p, y.q, L - 1 - i);
    Pair<Scaled<V>> after = emit(before, blank, label);
    if constexpr (kFold) after = {fold(after.blank), fold(after.label)};
    store(to.blank_m() + i, after.blank.m), store(to.blank_e() + i, after.blank.e);
    store(to.label_m() + i, after.label.m), store(to.label_e() + i, after.label.e);
  }
  if constexpr (kOccupancy) posterior->blank_sum = blank_sum, posterior->label_sum = label_sum;
}

// Mantissas are folded at frames fixed by their number, so that a frame computed again has the same bits.
template <Direction kDirection, bool kOccupancy, class F>
void step_at(int64_t t, int64_t L, int64_t pairs, const Integer<F>* skip, Emissions<F> y, States<F> from, States<F> to,
             Posterior<F>* posterior) {
  if (t % kFoldEvery == 0)
    step<kDirection, true, kOccupancy>(L, pairs, skip, y, from, to, posterior);
  else
    step<kDirection, false, kOccupancy>(L, pairs, skip, y, from, to, posterior);
}

// The total over all alignments, from the states after the last frame of a direction (before the first: T = 0).
template <class F> Scaled<F> total_of(int64_t L, States<F> end) {
  return fold(total(end.blank(L), L > 0 ? end.label(L - 1) : Scaled<F>::none()));
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// The lattice of one sequence, frame by frame, `kLanes` pairs of states at a time. Knows nothing of acts or of V.
//
// One step serves both directions. A state of alpha comes from the left: slot i is (blank i, label i), and its
// neighbour label i - 1. A state of beta comes from the right: slot i is (blank i, label i - 1), and its neighbour
// label i.
#pragma once

#include "../recursion.h"
#include "lanes.h"

namespace jax_ctc {
namespace {

// n rounded up to whole vectors.
template <class F> constexpr int64_t padded(int64_t n) { return (n + kLanes<F> - 1) / kLanes<F> * kLanes<F>; }

// The states of one frame: four arrays of `pairs` slots, each with a margin of one vector after it.
template <class F> struct States {
  using Z = Integer<F>;
  F* m;
  int64_t pitch;  // from one array to the next

  static int64_t size(int64_t pairs) { return 4 * (pairs + kLanes<F>); }
  static States at(F* base, int64_t pairs) { return {base, pairs + kLanes<F>}; }
  F* blank_m() const { return m; }
  F* label_m() const { return m + pitch; }
  Z* blank_e() const { return reinterpret_cast<Z*>(m + 2 * pitch); }
  Z* label_e() const { return reinterpret_cast<Z*>(m + 3 * pitch); }

  Scaled<F> blank(int64_t i) const { return {blank_m()[i], blank_e()[i]}; }
  Scaled<F> label(int64_t i) const { return {label_m()[i], label_e()[i]}; }

  void clear(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) blank_m()[i] = label_m()[i] = 1, blank_e()[i] = label_e()[i] = kNone;
  }
  void clear_vector(int64_t i) const {
    using V = Lanes<F>;
    store(blank_m() + i, splat<V>(1)), store(blank_e() + i, splat<Integer<V>>(kNone));
    store(label_m() + i, splat<V>(1)), store(label_e() + i, splat<Integer<V>>(kNone));
  }
  // Outside of the frames: nothing but the blank at one end of the labels.
  void start(int64_t blank) const {
    clear(0, pitch);
    blank_e()[blank] = 0;
  }
  void copy(States from) const { __builtin_memcpy(m, from.m, 4 * pitch * sizeof(F)); }
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
// The slots of a frame that lie on an alignment, in whole vectors: of t + 1 frames no more labels can have come, and L
// minus the frames that are left must have. A third of the lattice at T = 2 L. A step marks what is next to its window
// as not reached, which is all that the steps before and after it, whose windows are one slot further, see of the
// outside.
struct Window {
  int64_t begin, end;
};
template <class F> Window window(int64_t t, int64_t T, int64_t L, int64_t pairs) {
  constexpr int64_t N = kLanes<F>;
  const int64_t first = max_of<int64_t>(0, L - (T - t));
  return {first / N * N, min_of(pairs, padded<F>(t + 2))};
}

// Where occupancies go: gamma of the labels as they stand, and their sums over the vector lanes.
template <class F> struct Posterior {
  States<F> beta;        // the other direction at this frame, its emission included
  Integer<F> reference;  // exponent of the total
  F* labels;             // `pairs` entries; 0 before and after the window
  Lanes<F> blank_sum, label_sum;
};

// One frame: `to` from `from`. With a posterior, also what alpha holds before the emission times what beta holds after
// it (eq. 8).
template <Direction kDirection, bool kFold, bool kOccupancy, class F>
CTC_FN void step(Window window, const Integer<F>* skip, Emissions<F> y, States<F> from, States<F> to,
                 Posterior<F>* posterior) {
  using V = Lanes<F>;
  constexpr int N = kLanes<F>;
  constexpr bool kRight = kDirection == kBeta;  // where the neighbour is
  const Scaled<V> blank = {splat<V>(y.p[y.blank]), splat<Integer<V>>(y.q[y.blank])};
  const int64_t begin = window.begin, end = window.end;
  Scaled<V> label_at = load_scaled<F, V>(from.label_m() + begin, from.label_e() + begin);
  Scaled<V> before_this = Scaled<V>::none();  // alpha's labels of the vector before
  if (!kRight && begin > 0) before_this = load_scaled<F, V>(from.label_m() + begin - N, from.label_e() + begin - N);
  V blank_sum = {}, label_sum = {};
  const Posterior<F> post = kOccupancy ? *posterior : Posterior<F>{};
  const Integer<V> reference = splat<Integer<V>>(post.reference);
  if constexpr (kOccupancy)
    for (int64_t i = max_of<int64_t>(0, begin - 4 * N); i < begin; i += N) store(post.labels + i, V{});
  if (begin > 0) to.clear_vector(begin - N);
  to.clear_vector(end);
  for (int64_t i = begin; i < end; i += N) {
    const Scaled<V> next = load_scaled<F, V>(from.label_m() + i + N, from.label_e() + i + N);
    const Scaled<V> neighbour =
        kRight ? Scaled<V>{shift_down(label_at.m, next.m), shift_down(label_at.e, next.e)}
               : Scaled<V>{shift_up(before_this.m, label_at.m), shift_up(before_this.e, label_at.e)};
    const Pair<Scaled<V>> at = {load_scaled<F, V>(from.blank_m() + i, from.blank_e() + i), label_at};
    before_this = label_at, label_at = next;
    const Pair<Scaled<V>> before = advance(at, neighbour, load<Integer<V>>(skip + i));
    if constexpr (kOccupancy) {
      const States<F> beta = post.beta;
      blank_sum += product(before.blank, load_scaled<F, V>(beta.blank_m() + i, beta.blank_e() + i), reference);
      const V gamma =
          product(before.label, load_scaled<F, V>(beta.label_m() + i + 1, beta.label_e() + i + 1), reference);
      label_sum += gamma;
      store(post.labels + i, gamma);
    }
    const Scaled<V> label = load_scaled<F, V>(y.p + i - kRight, y.q + i - kRight);
    Pair<Scaled<V>> after = emit(before, blank, label);
    if constexpr (kFold) after = {fold(after.blank), fold(after.label)};
    store(to.blank_m() + i, after.blank.m), store(to.blank_e() + i, after.blank.e);
    store(to.label_m() + i, after.label.m), store(to.label_e() + i, after.label.e);
  }
  if constexpr (kOccupancy) posterior->blank_sum = blank_sum, posterior->label_sum = label_sum;
}

// Mantissas are folded at frames fixed by their number, so that a frame computed again has the same bits.
template <Direction kDirection, bool kOccupancy, class F> void step_at(int64_t t, Window window, const Integer<F>* skip,
                                                                       Emissions<F> y, States<F> from, States<F> to,
                                                                       Posterior<F>* posterior) {
  if (t % kFoldEvery == 0)
    step<kDirection, true, kOccupancy>(window, skip, y, from, to, posterior);
  else
    step<kDirection, false, kOccupancy>(window, skip, y, from, to, posterior);
}

// The total over all alignments, from beta's states at the first frame (after the last: T = 0).
template <class F> Scaled<F> total_of(int64_t L, States<F> beta) {
  return fold(total(beta.blank(0), L > 0 ? beta.label(1) : Scaled<F>::none()));
}

}  // namespace
}  // namespace jax_ctc

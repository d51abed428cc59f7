// SPDX-License-Identifier: Apache-2.0
// The lattice of one sequence, frame by frame, `kLanes` pairs of states at a time. Knows nothing of acts or of V.
//
// One step serves both directions. A state of alpha comes from the left: slot i is (blank i, label i), and its
// neighbour label i - 1. A state of beta comes from the right: slot i is (blank i, label i - 1), and its neighbour
// label i.
#pragma once

#include "../../common/occupancy.h"
#include "../../common/recursion.h"
#include "lanes.h"

namespace jax_ctc {
namespace {

// n rounded up to whole vectors.
template <class F> constexpr int64_t padded(int64_t n) { return (n + kLanes<F> - 1) / kLanes<F> * kLanes<F>; }

// What a value type (Scaled or Dual) is made of, and the same type in lanes.
template <class Value> struct Parts;
template <template <class> class Type, class R> struct Parts<Type<R>> {
  using F = R;
  static constexpr int count = sizeof(Type<R>) / sizeof(R);
};
template <class Value> struct InLanesOf;
template <template <class> class Type, class R> struct InLanesOf<Type<R>> {
  using type = Type<Lanes<R>>;
};
template <class Value> using InLanes = typename InLanesOf<Value>::type;

// Values side by side, part by part: each part `pitch` after the one before it.
template <class F, class V> CTC_FN void load_parts(const F* at, int64_t pitch, Scaled<V>& to) {
  to = {load<V>(at), load<Integer<V>>(reinterpret_cast<const Integer<F>*>(at + pitch))};
}
template <class F, class V> CTC_FN void load_parts(const F* at, int64_t pitch, Dual<V>& to) {
  to = {load<V>(at), load<Integer<V>>(reinterpret_cast<const Integer<F>*>(at + pitch)), load<V>(at + 2 * pitch)};
}
template <class F, class V> CTC_FN void store_parts(F* at, int64_t pitch, Scaled<V> v) {
  store(at, v.m), store(reinterpret_cast<Integer<F>*>(at + pitch), v.e);
}
template <class F, class V> CTC_FN void store_parts(F* at, int64_t pitch, Dual<V> v) {
  store(at, v.m), store(reinterpret_cast<Integer<F>*>(at + pitch), v.e), store(at + 2 * pitch, v.d);
}

// The states of one frame: slots of blanks and slots of labels, `pairs` of each with a margin of one vector after them.
template <class Value> struct States {
  using F = typename Parts<Value>::F;
  using V = InLanes<Value>;
  F* parts;       // [part][blank, label][slot]
  int64_t width;  // slots and margin

  static int64_t size(int64_t pairs) { return 2 * Parts<Value>::count * (pairs + kLanes<F>); }
  static States at(F* base, int64_t pairs) { return {base, pairs + kLanes<F>}; }

  CTC_INLINE V blanks(int64_t i) const { return get(parts + i); }
  CTC_INLINE V labels(int64_t i) const { return get(parts + width + i); }
  CTC_INLINE void set(int64_t i, Pair<V> to) const {
    store_parts(parts + i, 2 * width, to.blank), store_parts(parts + width + i, 2 * width, to.label);
  }
  Scaled<F> blank(int64_t i) const { return {parts[i], exponents()[i]}; }
  Scaled<F> label(int64_t i) const { return {parts[width + i], exponents()[width + i]}; }

  // Outside of the frames: nothing but the blank at one end of the labels.
  void start(int64_t blank) const {
    for (int64_t i = 0; i < width; i += kLanes<F>) set(i, {V::none(), V::none()});
    exponents()[blank] = 0;
  }
  void copy(States from) const { __builtin_memcpy(parts, from.parts, 2 * Parts<Value>::count * width * sizeof(F)); }

 private:
  CTC_INLINE V get(const F* at) const {
    V v;
    load_parts(at, 2 * width, v);
    return v;
  }
  Integer<F>* exponents() const { return reinterpret_cast<Integer<F>*>(parts + 2 * width); }
};

// exp(acts) of the labels at one frame in label order, dead beyond them and in the margin; and of the blank. Of a Dual
// with its change.
template <class Value> struct Emissions {
  using F = typename Parts<Value>::F;
  using V = InLanes<Value>;
  F* parts;
  int64_t pitch;  // from a part to the next
  int64_t last;   // the blank stands here

  // One part of a frame: margin, `pairs` labels, one vector of the blank.
  static int64_t width(int64_t pairs) { return pairs + 2 * kLanes<F>; }

  CTC_INLINE V labels(int64_t i) const {
    V v;
    load_parts(parts + i, pitch, v);
    return v;
  }
  CTC_INLINE V blank() const { return labels(last); }
  F* mantissas() const { return parts; }
  Integer<F>* exponents() const { return reinterpret_cast<Integer<F>*>(parts + pitch); }
  F* changes() const { return parts + 2 * pitch; }  // of a Dual
};

// The states that any alignment can occupy at frame t, rounded outward to whole vectors. After t + 1 frames at most
// t + 1 labels have been emitted, and at least L - (T - t) must have been. At T = 2 L this leaves out half of the
// lattice, at T = 4 L a quarter. Each step also writes "not reached" into the vector on either side of its window. That
// is enough, because the window of the neighbouring frame extends by at most one slot.
struct Window {
  int64_t begin, end;
};
template <class F> Window window(int64_t t, int64_t T, int64_t L, int64_t pairs) {
  constexpr int64_t N = kLanes<F>;
  const int64_t first = max_of<int64_t>(0, L - (T - t));
  return {first / N * N, min_of(pairs, padded<F>(t + 2))};
}

// Each lane gets its lower, or upper, neighbour.
template <class V> CTC_FN Scaled<V> shift_up(Scaled<V> below, Scaled<V> v) {
  return {shift_up(below.m, v.m), shift_up(below.e, v.e)};
}
template <class V> CTC_FN Scaled<V> shift_down(Scaled<V> v, Scaled<V> above) {
  return {shift_down(v.m, above.m), shift_down(v.e, above.e)};
}
template <class V> CTC_FN Dual<V> shift_up(Dual<V> below, Dual<V> v) {
  return {shift_up(below.m, v.m), shift_up(below.e, v.e), shift_up(below.d, v.d)};
}
template <class V> CTC_FN Dual<V> shift_down(Dual<V> v, Dual<V> above) {
  return {shift_down(v.m, above.m), shift_down(v.e, above.e), shift_down(v.d, above.d)};
}

template <class V> CTC_FN auto sum_of_lanes(Number<V> v) {
  using F = typename ElementOf<V>::type;
  return Number<F>{sum_of_lanes(v.value), sum_of_lanes(v.change)};
}
template <class F> CTC_FN void store_parts(F* at, int64_t, Lanes<F> v) { store(at, v); }
template <class F, class V> CTC_FN void store_parts(F* at, int64_t pitch, Number<V> v) {
  store(at, v.value), store(at + pitch, v.change);
}

// Where occupancies go: those of the labels as they stand, and their sums over the vector lanes.
template <class Value> struct Posterior {
  using F = typename Parts<Value>::F;
  using Sum = StateProduct<InLanes<Value>>;
  States<Value> beta;    // the other direction at this frame, its emission included
  Integer<F> reference;  // exponent of the total
  F* labels;             // `pairs` entries a part; 0 before and after the window
  int64_t pitch;         // from a part to the next
  Sum blank_sum, label_sum;
};

// One frame: `to` from `from`. With a posterior, also what alpha holds before the emission times what beta holds after
// it (eq. 8).
template <Recursion kRecursion, bool kFold, bool kOccupancy, class Value>
CTC_FN void step(Window window, const Integer<typename Parts<Value>::F>* skip, Emissions<Value> y, States<Value> from,
                 States<Value> to, Posterior<Value>* posterior) {
  using F = typename Parts<Value>::F;
  using V = InLanes<Value>;
  using Z = Integer<Lanes<F>>;
  constexpr int N = kLanes<F>;
  constexpr bool kRight = kRecursion == kBeta;  // where the neighbour is
  const V blank = y.blank();
  const int64_t begin = window.begin, end = window.end;
  V label_at = from.labels(begin);
  V before_this = V::none();  // alpha's labels of the vector before
  if (!kRight && begin > 0) before_this = from.labels(begin - N);
  using Sum = typename Posterior<Value>::Sum;
  Sum blank_sum = {}, label_sum = {};
  const Posterior<Value> post = kOccupancy ? *posterior : Posterior<Value>{};
  const Z reference = splat<Z>(post.reference);
  if constexpr (kOccupancy)
    for (int64_t i = max_of<int64_t>(0, begin - 4 * N); i < begin; i += N)
      store_parts<F>(post.labels + i, post.pitch, Sum{});
  if (begin > 0) to.set(begin - N, {V::none(), V::none()});
  to.set(end, {V::none(), V::none()});
  for (int64_t i = begin; i < end; i += N) {
    const V next = from.labels(i + N);
    const V neighbour = kRight ? shift_down(label_at, next) : shift_up(before_this, label_at);
    const Pair<V> at = {from.blanks(i), label_at};
    before_this = label_at, label_at = next;
    const Pair<V> before = advance(at, neighbour, load<Z>(skip + i));
    if constexpr (kOccupancy) {
      blank_sum += product(before.blank, post.beta.blanks(i), reference);
      const Sum gamma = product(before.label, post.beta.labels(i + 1), reference);
      label_sum += gamma;
      store_parts<F>(post.labels + i, post.pitch, gamma);
    }
    Pair<V> after = emit(before, blank, y.labels(i - kRight));
    if constexpr (kFold) after = {fold(after.blank), fold(after.label)};
    to.set(i, after);
  }
  if constexpr (kOccupancy) posterior->blank_sum = blank_sum, posterior->label_sum = label_sum;
}

// Mantissas are folded at frames fixed by their number, so that a frame computed again has the same bits.
template <Recursion kRecursion, bool kOccupancy, class Value>
void step_at(int64_t t, Window window, const Integer<typename Parts<Value>::F>* skip, Emissions<Value> y,
             States<Value> from, States<Value> to, Posterior<Value>* posterior) {
  if (t % kFoldEvery == 0)
    step<kRecursion, true, kOccupancy>(window, skip, y, from, to, posterior);
  else
    step<kRecursion, false, kOccupancy>(window, skip, y, from, to, posterior);
}

// The total over all alignments, from beta's states at the first frame (after the last: T = 0).
template <class Value> Scaled<typename Parts<Value>::F> total_of(int64_t L, States<Value> beta) {
  using S = Scaled<typename Parts<Value>::F>;
  return fold(total(beta.blank(0), L > 0 ? beta.label(1) : S::none()));
}

}  // namespace
}  // namespace jax_ctc

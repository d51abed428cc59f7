// SPDX-License-Identifier: Apache-2.0
// One frame of the lattice of one sequence, `kLanes` pairs of states at a time. Nothing here knows acts or V.
//
// Alpha and beta take the same step. Slot i of alpha is (blank i, label i). Its neighbour is label i - 1, one slot to
// the left. Slot i of beta is (blank i, label i - 1). Its neighbour is label i, one slot to the right.
#pragma once

#include "../../common/occupancy.h"
#include "../../common/recursion.h"
#include "lanes.h"

namespace jax_ctc {
namespace {

// n rounded up to whole vectors.
template <class F> constexpr int64_t padded(int64_t n) { return (n + kLanes<F> - 1) / kLanes<F> * kLanes<F>; }

// The parts of a value type (Scaled or Dual), and the same type with vectors as its parts.
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

// Values are stored part by part. Each part is an array, `pitch` elements after the part before it.
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

// The states of one frame: an array of blanks and one of labels. Each has `pairs` slots and a margin of one vector.
template <class Value> struct States {
  using F = typename Parts<Value>::F;
  using V = InLanes<Value>;
  F* parts;       // [part][blank, label][slot]
  int64_t width;  // slots, with the margin

  static int64_t size(int64_t pairs) { return 2 * Parts<Value>::count * (pairs + kLanes<F>); }
  static States at(F* base, int64_t pairs) { return {base, pairs + kLanes<F>}; }

  CTC_INLINE V blanks(int64_t i) const { return get(parts + i); }
  CTC_INLINE V labels(int64_t i) const { return get(parts + width + i); }
  CTC_INLINE void set(int64_t i, Pair<V> to) const {
    store_parts(parts + i, 2 * width, to.blank), store_parts(parts + width + i, 2 * width, to.label);
  }
  Scaled<F> blank(int64_t i) const { return {parts[i], exponents()[i]}; }
  Scaled<F> label(int64_t i) const { return {parts[width + i], exponents()[width + i]}; }

  // The states before the first step. Only the blank at one end of the labels is reached.
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

// The emissions of one frame: those of the labels in label order, then that of the blank. Between them, and in the
// margin, emissions are dead. Emissions of Duals have a change.
template <class Value> struct Emissions {
  using F = typename Parts<Value>::F;
  using V = InLanes<Value>;
  F* parts;
  int64_t pitch;  // from one part to the next
  int64_t last;   // where the blank stands

  // The elements of one part: the margin, `pairs` labels, and one vector of the blank.
  static int64_t width(int64_t pairs) { return pairs + 2 * kLanes<F>; }

  CTC_INLINE V labels(int64_t i) const {
    V v;
    load_parts(parts + i, pitch, v);
    return v;
  }
  CTC_INLINE V blank() const { return labels(last); }
  F* mantissas() const { return parts; }
  Integer<F>* exponents() const { return reinterpret_cast<Integer<F>*>(parts + pitch); }
  F* changes() const { return parts + 2 * pitch; }  // if Value is Dual
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

// Each lane gets its lower neighbour, or its upper neighbour.
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

// The labels of one vector after the other, with the neighbour of each. Vectors of 64 bytes are shifted, because a load
// that crosses a cache line takes twice as long. Smaller ones are loaded again one place further, because AVX2 needs
// two instructions to shift a register.
template <Recursion kRecursion, class Value> class LabelsInOrder {
  using V = InLanes<Value>;
  static constexpr int64_t N = kLanes<typename Parts<Value>::F>;
  static constexpr bool kRight = kRecursion == kBeta;  // where the neighbour is
  static constexpr bool kShift = CTC_VECTOR_BYTES == 64;

 public:
  CTC_INLINE LabelsInOrder(States<Value> from, int64_t begin) : from(from) {
    if constexpr (kShift) {
      next = from.labels(begin);
      here = !kRight && begin > 0 ? from.labels(begin - N) : V::none();
    }
  }
  // Must be called with i = begin, begin + N, ...
  CTC_INLINE V at(int64_t i, V& neighbour) {
    if constexpr (kShift) {
      const V before = here;
      here = next, next = from.labels(i + N);
      neighbour = kRight ? shift_down(here, next) : shift_up(before, here);
      return here;
    } else {
      neighbour = from.labels(kRight ? i + 1 : i - 1);
      return from.labels(i);
    }
  }

 private:
  const States<Value> from;
  V here, next;
};

template <class V> CTC_FN auto sum_of_lanes(Number<V> v) {
  using F = typename ElementOf<V>::type;
  return Number<F>{sum_of_lanes(v.value), sum_of_lanes(v.change)};
}
template <class F> CTC_FN void store_parts(F* at, int64_t, Lanes<F> v) { store(at, v); }
template <class F, class V> CTC_FN void store_parts(F* at, int64_t pitch, Number<V> v) {
  store(at, v.value), store(at + pitch, v.change);
}

// Where the products alpha * beta of a frame go: those of the labels one by one, and the sums of all in each lane.
template <class Value> struct Posterior {
  using F = typename Parts<Value>::F;
  using Sum = StateProduct<InLanes<Value>>;
  States<Value> beta;    // at this frame, after its emission
  Integer<F> reference;  // exponent of the total
  F* labels;             // `pairs` entries in each part. They are 0 outside the window
  int64_t pitch;         // from one part to the next
  Sum blank_sum, label_sum;
};

// Computes the states `to` of one frame from the states `from` of its neighbour. With a posterior it also multiplies
// alpha before the emission with beta after the emission (eq. 8).
template <Recursion kRecursion, bool kFold, bool kOccupancy, class Value>
CTC_FN void step(Window window, const Integer<typename Parts<Value>::F>* skip, Emissions<Value> y, States<Value> from,
                 States<Value> to, Posterior<Value>* posterior) {
  using F = typename Parts<Value>::F;
  using V = InLanes<Value>;
  using Z = Integer<Lanes<F>>;
  constexpr int N = kLanes<F>;
  constexpr bool kRight = kRecursion == kBeta;
  const V blank = y.blank();
  const int64_t begin = window.begin, end = window.end;
  LabelsInOrder<kRecursion, Value> labels(from, begin);
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
    V neighbour;
    const V label = labels.at(i, neighbour);
    const Pair<V> before = advance({from.blanks(i), label}, neighbour, load<Z>(skip + i));
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

// One step, with mantissas folded at every kFoldEvery-th frame. The frame number alone decides, so that a frame that is
// computed again has the same bits.
template <Recursion kRecursion, bool kOccupancy, class Value>
CTC_INLINE void step_at(int64_t t, Window window, const Integer<typename Parts<Value>::F>* skip, Emissions<Value> y,
                        States<Value> from, States<Value> to, Posterior<Value>* posterior) {
  if (t % kFoldEvery == 0)
    step<kRecursion, true, kOccupancy>(window, skip, y, from, to, posterior);
  else
    step<kRecursion, false, kOccupancy>(window, skip, y, from, to, posterior);
}

// The sum over all alignments, from beta's states at the first frame. If T = 0 these are the states before any step.
template <class Value> Scaled<typename Parts<Value>::F> total_of(int64_t L, States<Value> beta) {
  using S = Scaled<typename Parts<Value>::F>;
  return fold(total(beta.blank(0), L > 0 ? beta.label(1) : S::none()));
}

}  // namespace
}  // namespace jax_ctc

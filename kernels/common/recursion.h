// SPDX-License-Identifier: Apache-2.0
// One frame of the CTC recursion for one pair of states. Writes no memory. Host and device.
//
// Pair i is (blank i, label i). The states are blank 0, label 0, blank 1, ..., label L-1, blank L. Alpha takes this
// step from frame to frame. Beta takes the same step with frames and labels in reverse order (docs/ctc.md, eq. 4 and
// 5). V is any value type with add, times and select.
#pragma once

#include "problem.h"
#include "scaled.h"

namespace jax_ctc {

enum Recursion { kAlpha, kBeta };

template <class V> struct Pair {
  V blank, label;
};

// Pair i before the emission of the next frame, from pair i (`at`) and label i - 1 (`left`) at this frame. `skip` is
// the mask of may_skip(labels, i).
template <class V, class M> CTC_FN Pair<V> advance(Pair<V> at, V left, M skip) {
  const V blank = add(at.blank, left);
  return {blank, add(at.label, select(skip, blank, at.blank))};
}

// The same sums in another order, for hardware where `left` comes late, from another lane. It takes two operations
// more, but those before the last ones do not wait for `left`.
template <class V, class M> CTC_FN Pair<V> advance_left_last(Pair<V> at, V left, M skip) {
  return {add(at.blank, left), add(at.label, at.blank, only_if(skip, left))};
}

// The same for plain numbers, where those of each pair have a unit of their own. `left_unit` is the unit of pair i - 1
// in units of pair i. `skip_unit` is the same, or 0 where the skip is not allowed.
template <class V, class R> CTC_FN Pair<V> advance(Pair<V> at, V left, R left_unit, R skip_unit) {
  return {at.blank + left * left_unit, (at.label + at.blank) + left * skip_unit};
}

template <class V> CTC_FN Pair<V> emit(Pair<V> before, V blank, V label) {
  return {times(before.blank, blank), times(before.label, label)};
}

// The sum over all alignments, from the last blank and the last label (eq. 6).
template <class V> CTC_FN V total(V last_blank, V last_label) { return add(last_blank, last_label); }

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// One frame of the CTC recursion for one pair of states. Writes no memory. Host and device.
//
// Pair i is (blank i, label i): blank 0, label 0, blank 1, ..., label L-1, blank L. The same step serves alpha and, on
// reversed frames and reversed labels, beta (docs/ctc.md, eq. 4 and 5). V is any value type with add, times, select.
#pragma once

#include "problem.h"
#include "scaled.h"

namespace jax_ctc {

enum Recursion { kAlpha, kBeta };

template <class V> struct Pair {
  V blank, label;
};

// Pair i before the emission of the next frame, from pair i and label i - 1 (`left`) at this one. `skip` is the mask of
// may_skip(labels, i).
template <class V, class M> CTC_FN Pair<V> advance(Pair<V> at, V left, M skip) {
  const V blank = add(at.blank, left);
  return {blank, add(at.label, select(skip, blank, at.blank))};
}

// The same sums in an order for hardware where `left` comes from another lane and is waited for: two more operations,
// of which the first do not need it.
template <class V, class M> CTC_FN Pair<V> advance_left_last(Pair<V> at, V left, M skip) {
  return {add(at.blank, left), add(at.label, at.blank, only_if(skip, left))};
}

template <class V> CTC_FN Pair<V> emit(Pair<V> before, V blank, V label) {
  return {times(before.blank, blank), times(before.label, label)};
}

// The total over all alignments, from the last pair's blank and the last label (eq. 6).
template <class V> CTC_FN V total(V last_blank, V last_label) { return add(last_blank, last_label); }

}  // namespace jax_ctc

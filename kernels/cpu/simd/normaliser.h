// SPDX-License-Identifier: Apache-2.0
// The normaliser of a row of V logits: the largest entry, and the sum of exp relative to it.
#pragma once

#include "row_sums.h"

namespace jax_ctc {
namespace {

// The normaliser of log-scores, from the n entries of a row that are read. No sum is taken, so it is 1. `shift` only
// keeps exponents small. It is 0 if all entries are -inf, which is no fault of log-scores. n is a multiple of the
// number of lanes.
template <class F> Normaliser<F> reference_of_scores(const F* x, int64_t n) {
  using Vec = Lanes<F>;
  constexpr F kInfinity = __builtin_inf();
  Vec top = splat<Vec>(-kInfinity);
  Integer<Vec> nan = {};
  for (int64_t i = 0; i < n; i += kLanes<F>) {
    const Vec v = load<Vec>(x + i);
    top = max_of(v, top), nan |= v != v;
  }
  const F shift = max_of_lanes(top);
  const bool defined = shift < kInfinity && !holds_anywhere(nan);
  return {shift > -kInfinity ? shift : F(0), defined ? 1 : __builtin_nan("")};
}

template <class F> Normaliser<F> normalise(Dtype dtype, const void* row, int64_t V, const void* next) {
  const RowSums<F> sums = sum_row<F>(dtype, row, V, next);
  return {sums.top, sums.ties > 0 ? sums.ties + sums.tail : __builtin_nan("")};
}

// The product of many numbers >= 1 without overflow. One log of it at the end takes the place of one log for each.
struct RunningProduct {
  double m = 1;
  int64_t e = 0;
  double log_of_others = 0;  // of factors whose log is known
  CTC_INLINE void multiply(double x) {
    m *= x;
    const int64_t pattern = bits<int64_t>(m), exponent = (pattern >> 52) - 1023;
    m = bits<double>(pattern - exponent * (int64_t(1) << 52));
    e += exponent;
  }
};

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// The slots that alpha's sweep takes: those whose alignments add to an occupancy (docs/ctc.md, section 3).
#pragma once

#include "stored_beta.h"

namespace jax_ctc {
namespace {

// States are left out if the alignments through them have less than this of the total. For a billion states that is
// 6e-11 together.
constexpr double kLittle = 0x1p-64;

// How often the band is made narrower, in frames. To look at it costs as much as to take two vectors of slots.
constexpr int64_t kNarrowEvery = 8;

// A band of fewer slots is not looked at.
inline int64_t narrowest() {
#if defined(JAX_CTC_TEST)
  return tested::narrowest_band;
#else
  return 32;
#endif
}

// Before a frame alpha is 0 from slot `end` on. What it has before slot `begin` is left out.
struct Band {
  int64_t begin = 0, end = 1;

  // The slots of `window` that alpha can reach in `frames` frames.
  Window after(int64_t frames, Window window, int64_t multiple) const {
    return {max_of(window.begin, begin), min_of(window.end, (end + frames + multiple - 1) / multiple * multiple)};
  }

  // Leaves out vectors of N slots at both ends, up to the first whose slots count, by counts(first slot). Calls
  // clear(first slot) for those at the right, which alpha could reach again. Returns whether there were any.
  template <int64_t N, class Counts, class Clear> bool narrow(Counts counts, Clear clear) {
    const Band before = *this;
    while (begin + N < end && !counts(begin)) begin += N;
    for (int64_t last = (end - 1) / N * N; last > begin && !counts(last); last -= N) clear(last), end = last;
    return begin > before.begin || end < before.end;
  }
};

// Of a vector of slots from i on, before frame t: 2 to the power of this is more than what the alignments through any
// one of the states add to the total. That is alpha times the sum of those states of beta that can follow it.
template <class V>
double largest_share(const GroupStates<kAlpha, V>& alpha, const StoredBeta<V>& beta, int64_t t, int64_t i) {
  const double *const of_beta = beta.labels_at(t) + 1 + i, *const blanks = beta.blanks_at(t) + i;
  const double* const exponents = beta.exponents_at(t) + i;
  const Doubles unit = load<Doubles>(exponents + 1), label = load<Doubles>(of_beta);
  // A blank of beta is what is stored, plus the labels that follow until then.
  Doubles labels = label, next_labels = load<Doubles>(of_beta + 1);
  for (int64_t k = 1; k < kTogether; ++k) {
    const double* const at = of_beta + k * beta.labels_size();
    labels += load<Doubles>(at), next_labels += load<Doubles>(at + 1);
  }
  const Doubles follow_blank = labels + load<Doubles>(blanks) * power_of_2(load<Doubles>(exponents) - unit);
  const Doubles follow_label =
      label + load<Doubles>(blanks + 1) + next_labels * power_of_2(load<Doubles>(exponents + 2) - unit);
  const auto share = [](Doubles alpha, Doubles follow) {
    return alpha == Doubles{} ? splat<Doubles>(-0x1p30) : exponent_of(alpha) + exponent_of(follow) + 2;
  };
  const Doubles largest =
      max_of(share(load<Doubles>(alpha.blank + i), follow_blank), share(load<Doubles>(alpha.label + i), follow_label));
  return max_of_lanes(largest + load<Doubles>(alpha.exponent + i) + unit);
}

}  // namespace
}  // namespace jax_ctc

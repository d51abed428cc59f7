// SPDX-License-Identifier: Apache-2.0
// One sequence of a batch, as the functions of an instruction set take it.
#pragma once

#include "labels.h"
#include "memory.h"

namespace jax_ctc {

template <class F>
Sequence<F> sequence_of(const Problem& p, int64_t sequence, const UnpaddedLabels& labels, KnownRows<F> known = {}) {
  const Shape& s = p.shape;
  const int64_t L = labels.values.size();
  const int32_t length = p.lengths[sequence];
  return {p.dtype,
          at(p.acts, first_row(s, sequence) * s.V, p.dtype),
          s.B * s.V,
          length,
          s.V,
          labels.values.data(),
          L,
          p.blank,
          p.softmax,
          frames_needed(labels.values.data(), L) <= length,
          &thread_scratch(),
          known};
}

}  // namespace jax_ctc

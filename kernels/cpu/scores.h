// SPDX-License-Identifier: Apache-2.0
// The gradient of log-scores, where there is no softmax: minus the occupancies, at the blank and at the labels. Other
// entries of acts, of a direction or of residuals are not looked at.
#pragma once

#include <cstring>

#include "../common/batch.h"
#include "memory.h"
#include "simd/half.h"

namespace jax_ctc {

// Sets frames [begin, end) of a result with V entries a row to NaN where acts are read, and to 0 elsewhere. The labels
// are valid.
inline void fill_scores_with_nan(const Batch& p, void* out, Dtype dtype, int64_t sequence, int64_t begin, int64_t end) {
  const Shape& s = p.shape;
  for (int64_t t = begin; t < end; ++t) {
    void* row = at(out, (s.first_row(sequence) + t * s.B) * s.V, dtype);
    // All bits set is a NaN in every dtype.
    const auto set_nan = [&](int32_t v) { std::memset(at(row, v, dtype), 0xff, element_size(dtype)); };
    std::memset(row, 0, s.V * element_size(dtype));
    set_nan(p.blank);
    for (int64_t i = sequence * s.L; i < (sequence + 1) * s.L; ++i)
      if (!is_padding(p.labels[i])) set_nan(p.labels[i]);
  }
}

// Compact: writes cotangent * gradient of one row.
template <class F>
void write_scores_gradient(const Batch& p, const F* occupancy, Corrections corrections, F cotangent, void* out) {
  std::memset(out, 0, p.shape.V * element_size(p.dtype));
  for (const Correction& c : corrections)
    if (occupancy[c.column] != 0) set_entry<F>(p.dtype, out, c.symbol, -cotangent * occupancy[c.column]);
}

// Compact: the product of one row of the gradient with a direction.
template <class F>
double scores_tangent(const Batch& p, const F* occupancy, Corrections corrections, const void* direction) {
  double sum = 0;
  for (const Correction& c : corrections)
    if (occupancy[c.column] != 0) sum -= double(occupancy[c.column]) * double(entry<F>(p.dtype, direction, c.symbol));
  return sum;
}

}  // namespace jax_ctc

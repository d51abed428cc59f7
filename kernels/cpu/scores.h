// SPDX-License-Identifier: Apache-2.0
// The gradient of log-scores, where there is no softmax: minus the occupancies, at the blank and at the labels. Other
// entries of acts, of a direction or of residuals are not looked at.
#pragma once

#include <cstring>

#include "../common/batch.h"
#include "memory.h"
#include "simd/half.h"

namespace jax_ctc {

// Calls use(class, column) for the blank and for each label of a sequence, which are valid. Equal labels come again.
template <class Use> void for_each_class_read(const Batch& p, int64_t sequence, Use use) {
  const int32_t* labels = p.labels + sequence * p.shape.L;
  use(p.blank, 0);
  for (int64_t i = 0; i < p.shape.L; ++i)
    if (!is_padding(labels[i])) use(labels[i], 1 + i);
}

// Sets frames [begin, end) of a result with V entries a row to NaN where acts are read, and to 0 elsewhere.
inline void fill_scores_with_nan(const Batch& p, void* out, Dtype dtype, int64_t sequence, int64_t begin, int64_t end) {
  const Shape& s = p.shape;
  for (int64_t t = begin; t < end; ++t) {
    void* row = at(out, (s.first_row(sequence) + t * s.B) * s.V, dtype);
    std::memset(row, 0, s.V * element_size(dtype));
    for_each_class_read(p, sequence, [&](int32_t v, int64_t) {
      std::memset(at(row, v, dtype), 0xff, element_size(dtype));  // a NaN in every dtype
    });
  }
}

// Compact: writes cotangent * gradient of one row. A class has its occupancy in one column only.
template <class F>
void write_scores_gradient(const Batch& p, const F* occupancy, int64_t sequence, F cotangent, void* out) {
  std::memset(out, 0, p.shape.V * element_size(p.dtype));
  for_each_class_read(p, sequence, [&](int32_t v, int64_t column) {
    if (occupancy[column] != 0) set_entry<F>(p.dtype, out, v, -cotangent * occupancy[column]);
  });
}

// Compact: the product of one row of the gradient with a direction.
template <class F> double scores_tangent(const Batch& p, const F* occupancy, int64_t sequence, const void* direction) {
  double sum = 0;
  for_each_class_read(p, sequence, [&](int32_t v, int64_t column) {
    if (occupancy[column] != 0) sum -= double(occupancy[column]) * double(entry<F>(p.dtype, direction, v));
  });
  return sum;
}

}  // namespace jax_ctc

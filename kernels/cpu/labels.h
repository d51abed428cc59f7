// SPDX-License-Identifier: Apache-2.0
// Which arguments of a sequence are valid, and its labels without padding.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../common/batch.h"
#include "memory.h"

namespace jax_ctc {

inline bool is_valid_length(const Shape& s, int32_t length) { return length >= 0 && length <= s.T; }

// Whether each sequence has a valid length and valid labels. The others have no gradient. Residuals say so too if
// `forward` made them of the same labels, but a program may hand in any residuals.
inline std::vector<char> valid_sequences(const Batch& p) {
  const Shape& s = p.shape;
  std::vector<char> valid(s.sequences());
  for (int64_t i = 0; i < s.sequences(); ++i) {
    const int32_t* row = p.labels + i * s.L;
    bool bad = !is_valid_length(s, p.lengths[i]);
    for (int64_t k = 0; k < s.L; ++k) bad |= is_bad_label(row[k], s.V, p.blank);
    valid[i] = !bad;
  }
  return valid;
}

// The labels of one sequence without padding, and the columns of the compact residual where they stand.
struct UnpaddedLabels {
  std::vector<int32_t> values, columns;
  std::vector<int32_t> repeated;  // indices of labels that share the column of an earlier one

  // Returns false if one of them is neither padding nor a valid label.
  bool read(const Batch& p, const int32_t* row) {
    const int64_t L = p.shape.L, V = p.shape.V;
    values.resize(L), columns.resize(L), repeated.clear();
    // Without branches, because nobody can predict where padding stands.
    int32_t* const value = values.data();
    int32_t* const column = columns.data();
    int64_t n = 0;
    bool bad = false;
    for (int64_t i = 0; i < L; ++i) {
      value[n] = row[i], column[n] = int32_t(1 + i);
      n += !is_padding(row[i]), bad |= is_bad_label(row[i], V, p.blank);
    }
    values.resize(n), columns.resize(n);
    return !bad;
  }
  void trim() { jax_ctc::trim(values), jax_ctc::trim(columns), jax_ctc::trim(repeated); }
  // Gives equal labels the column of their first occurrence.
  void share_columns() {
    const size_t n = values.size();
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] < values[b]; });
    for (size_t k = 1; k < n; ++k)
      if (values[order[k]] == values[order[k - 1]]) {
        columns[order[k]] = columns[order[k - 1]];
        repeated.push_back(order[k]);
      }
  }
};

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Which lengths are valid, and the labels of a sequence without padding.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/batch.h"
#include "memory.h"

namespace jax_ctc {

inline bool is_valid_length(const Shape& s, int32_t length) { return length >= 0 && length <= s.T; }

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
  void trim() {
    jax_ctc::trim(values), jax_ctc::trim(columns), jax_ctc::trim(repeated), jax_ctc::trim(column_of_class_);
  }
  // Gives equal labels the column of their first occurrence.
  void share_columns(int64_t V) {
    const size_t n = values.size();
    if (int64_t(column_of_class_.size()) < V) column_of_class_.resize(V);
    repeated.reserve(n);  // nothing is thrown below, where column_of_class_ is not 0
    for (size_t i = 0; i < n; ++i) {
      int32_t& first = column_of_class_[values[i]];
      if (first == 0) first = columns[i];
      if (first != columns[i]) columns[i] = first, repeated.push_back(i);
    }
    for (const int32_t value : values) column_of_class_[value] = 0;
  }

 private:
  std::vector<int32_t> column_of_class_;  // of each class; 0 between calls
};

}  // namespace jax_ctc

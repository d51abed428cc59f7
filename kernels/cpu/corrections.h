// SPDX-License-Identifier: Apache-2.0
// Of each sequence of a batch: whether its arguments are valid, and which classes its compact residuals correct.
#pragma once

#include <vector>

#include "labels.h"
#include "simd/interface.h"

namespace jax_ctc {

class BatchCorrections {
 public:
  // Lists corrections if `listed`: not where residuals are dense.
  BatchCorrections(const Batch& p, bool listed) : valid_(p.shape.sequences()), first_(p.shape.sequences() + 1) {
    UnpaddedLabels labels;
    if (listed) list_.reserve(p.shape.sequences() * (p.shape.L + 1));
    for (int64_t i = 0; i < p.shape.sequences(); ++i) {
      valid_[i] = is_valid_length(p.shape, p.lengths[i]) && labels.read(p, p.labels + i * p.shape.L);
      if (listed && valid_[i]) list(p, labels);
      first_[i + 1] = list_.size();
    }
  }

  // Whether the length and the labels are valid. Else there is no gradient. Residuals say so too if `forward` made them
  // of the same labels, but a program may hand in any residuals.
  bool valid(int64_t sequence) const { return valid_[sequence]; }
  Corrections of(int64_t sequence) const {
    return {list_.data() + first_[sequence], first_[sequence + 1] - first_[sequence]};
  }

 private:
  // The columns of first occurrences grow. An equal label has one of those before it.
  void list(const Batch& p, UnpaddedLabels& labels) {
    labels.share_columns(p.shape.V);
    int32_t last = 0;
    list_.push_back({p.blank, last});
    for (size_t i = 0; i < labels.values.size(); ++i)
      if (labels.columns[i] > last) last = labels.columns[i], list_.push_back({labels.values[i], last});
  }

  std::vector<char> valid_;
  std::vector<int64_t> first_;  // the place of each sequence in list_
  std::vector<Correction> list_;
};

}  // namespace jax_ctc

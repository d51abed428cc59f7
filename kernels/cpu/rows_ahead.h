// SPDX-License-Identifier: Apache-2.0
// What sequences need of wide rows. All threads read it before the first sequence is taken, each of some rows, if the
// sequences are too few to keep all threads busy. It has the bits that a sequence would read itself.
#pragma once

#include <memory>
#include <vector>

#include "dispatch.h"
#include "memory.h"
#include "schedule.h"

namespace jax_ctc {

template <class F> class RowsAhead {
 public:
  // Reads nothing if acts are not logits. The labels' logits are read if they are wanted.
  RowsAhead(const Problem& p, bool logits, bool of_labels, Executor& executor) : T_(p.shape.T) {
    const Shape& s = p.shape;
    const double work = row_work(s);
    // Logits of labels take at most a quarter of the memory of acts as floats. It pays from 100 us of rows on, even if
    // the other threads sleep. row_work says twice as much.
    const bool pays = s.V > kMostClasses && s.V >= 4 * (s.L + 1) && threads_for(p, work / 4) > 1;
    if (!logits || !pays || !sequences_leave_threads_idle(p, executor)) return;
    for (int64_t i = 0; i < s.sequences(); ++i) frames_.push_back(is_valid_length(s, p.lengths[i]) ? p.lengths[i] : 0);
    if (of_labels) read_labels(p);
    normalisers_.reset(new Normaliser<F>[s.rows()]);
    const auto read_used = [&](RowIndex row) {
      if (row.frame < frames_[row.sequence]) read(p, row);
    };
    for_each_row(p, work, executor, read_used, 8);  // nothing large is written, so blocks need no huge page
  }

  KnownRows<F> of_sequence(int64_t i) const {
    if (normalisers_ == nullptr) return {};
    return {normalisers_.get() + i * T_, logits_ == nullptr ? nullptr : logits_.get() + first_logit_[i]};
  }

 private:
  // The symbols of a sequence are its labels without padding, then the blank. One with invalid labels has no frames.
  void read_labels(const Problem& p) {
    const Shape& s = p.shape;
    int64_t logits = 0;
    UnpaddedLabels labels;
    for (int64_t i = 0; i < s.sequences(); ++i) {
      if (!labels.read(p, p.labels + i * s.L)) frames_[i] = 0;
      first_symbol_.push_back(symbols_.size()), first_logit_.push_back(logits);
      symbols_.insert(symbols_.end(), labels.values.begin(), labels.values.end());
      symbols_.push_back(p.blank);
      logits += frames_[i] * (int64_t(symbols_.size()) - first_symbol_[i]);
    }
    first_symbol_.push_back(symbols_.size());
    logits_.reset(new F[logits]);
  }

  void read(const Problem& p, RowIndex row) {
    const Shape& s = p.shape;
    const int64_t i = row.sequence, next = std::min(row.row + 1, s.rows() - 1);
    Slice<F> slice = {p.dtype, at(p.acts, row.row * s.V, p.dtype), s.V, nullptr, 0, &thread_scratch()};
    F* logits = nullptr;
    if (logits_ != nullptr) {
      slice.symbols = symbols_.data() + first_symbol_[i], slice.D = first_symbol_[i + 1] - first_symbol_[i];
      logits = logits_.get() + first_logit_[i] + row.frame * slice.D;
    }
    normalisers_[i * T_ + row.frame] = kernels<F>().read_row(slice, at(p.acts, next * s.V, p.dtype), logits);
  }

  const int64_t T_;
  std::vector<int32_t> symbols_;
  std::vector<int64_t> frames_, first_symbol_, first_logit_;  // of each sequence
  std::unique_ptr<Normaliser<F>[]> normalisers_;              // [sequence][frame]
  std::unique_ptr<F[]> logits_;                               // [sequence][frame][symbol]
};

}  // namespace jax_ctc

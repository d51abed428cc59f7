// SPDX-License-Identifier: Apache-2.0
// Normalisers and labels' logits of wide rows. If sequences are too few to keep all threads busy, all threads read
// these before the first sequence is taken. The bits are those that a sequence would compute itself.
#pragma once

#include <memory>
#include <vector>

#include "dispatch.h"
#include "memory.h"
#include "schedule.h"

namespace jax_ctc {

template <class F> class RowsAhead {
 public:
  // Reads nothing unless `wanted`: not where acts are log-scores, nor where a sequence reads all classes.
  RowsAhead(const Problem& p, bool wanted, Executor& executor) : T_(p.shape.T) {
    const Shape& s = p.shape;
    // Wide rows, whose labels' logits take at most an eighth of the memory of acts as F.
    if (!wanted || s.V <= kMostClasses || s.V < 8 * (s.L + 1)) return;
    const double work = work_of(p);
    // To fork once more pays from four times the work on for which threads fork at all.
    if (threads_for(p, work / 4) == 1 || !sequences_leave_threads_idle(p, executor)) return;
    list_symbols(p);
    normalisers_.reset(new Normaliser<F>[s.rows()]);
    const auto read_used = [&](RowIndex row) {
      if (row.frame < frames_[row.sequence]) read(p, row);
    };
    // Eight blocks for each thread even out padding. Nothing large is written, so a block needs no huge page.
    for_each_row(p, work, executor, read_used, 8);
  }

  KnownRows<F> of_sequence(int64_t i) const {
    if (normalisers_ == nullptr) return {};
    return {normalisers_.get() + i * T_, symbols_of(i) > 0 ? logits_.get() + first_logit_[i] : nullptr};
  }

 private:
  // Nanoseconds, roughly, as row_work says.
  static double work_of(const Problem& p) {
    double frames = 0;
    for (int64_t i = 0; i < p.shape.sequences(); ++i)
      if (is_valid_length(p.shape, p.lengths[i])) frames += p.lengths[i];
    return row_work(frames, p.shape.V);
  }

  // The symbols of a sequence are its labels without padding, then the blank. A sequence with too few frames has none:
  // only its normalisers are looked at. One with invalid arguments has no frames.
  void list_symbols(const Problem& p) {
    const Shape& s = p.shape;
    int64_t logits = 0;
    UnpaddedLabels labels;
    for (int64_t i = 0; i < s.sequences(); ++i) {
      const int32_t length = p.lengths[i];
      const bool valid = is_valid_length(s, length) && labels.read(p, p.labels + i * s.L);
      frames_.push_back(valid ? length : 0);
      first_symbol_.push_back(symbols_.size()), first_logit_.push_back(logits);
      const std::vector<int32_t>& values = labels.values;
      if (!valid || frames_needed(values.data(), values.size()) > length) continue;
      symbols_.insert(symbols_.end(), values.begin(), values.end());
      symbols_.push_back(p.blank);
      logits += length * (int64_t(values.size()) + 1);
    }
    first_symbol_.push_back(symbols_.size());
    logits_.reset(new F[logits]);
  }
  int64_t symbols_of(int64_t i) const { return first_symbol_[i + 1] - first_symbol_[i]; }

  void read(const Problem& p, RowIndex row) {
    const Shape& s = p.shape;
    const int64_t i = row.sequence, D = symbols_of(i), next = std::min(row.row + 1, s.rows() - 1);
    const Slice<F> slice = {
        p.dtype, at(p.acts, row.row * s.V, p.dtype), s.V, symbols_.data() + first_symbol_[i], D, &thread_scratch()};
    normalisers_[i * T_ + row.frame] =
        kernels<F>().read_row(slice, at(p.acts, next * s.V, p.dtype), logits_.get() + first_logit_[i] + row.frame * D);
  }

  const int64_t T_;
  std::vector<int32_t> symbols_;
  std::vector<int64_t> frames_, first_symbol_, first_logit_;  // of each sequence
  std::unique_ptr<Normaliser<F>[]> normalisers_;              // [sequence][frame]
  std::unique_ptr<F[]> logits_;                               // [sequence][frame][symbol]
};

}  // namespace jax_ctc

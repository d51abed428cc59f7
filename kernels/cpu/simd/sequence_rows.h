// SPDX-License-Identifier: Apache-2.0
// The rows of acts of one sequence: where they are, their normalisers, and the table through which narrow rows go.
//
// Wide rows are read one by one, from the last frame to the first. Each is streamed for its normaliser, and then the
// logits of its labels are read while the row is in cache. Of log-scores only the entries of the labels are read.
// Narrow rows are read four at a time through a table.
#pragma once

#include "arena.h"
#include "class_table.h"
#include "half.h"

namespace jax_ctc {
namespace {

template <class F> class SequenceRows {
 protected:
  static constexpr int N = kLanes<F>;

  const Sequence<F>& in;
  const int64_t pairs;

 public:
  const int64_t row_bytes, frame_step;  // of acts; from a frame to the next, in bytes
  const bool by_table;
  const bool by_label;    // the table has logits alone, and labels take theirs, because there are fewer of them
  const int64_t classes;  // of the table
  int32_t* places;        // in the table, of `pairs` labels
  F *shift, *scale;       // of the softmax, [T]
  Table<F> table;

  SequenceRows(const Sequence<F>& sequence, int64_t pairs, bool with_direction)
      : in(sequence),
        pairs(pairs),
        row_bytes(in.V * element_size(in.dtype)),
        frame_step(in.acts_stride * element_size(in.dtype)),
        // One float a lane adds up a row of a table, and is accurate enough for kMostClasses. Where rows are read for a
        // few labels alone, or a direction has a table too, a table pays if there are labels enough.
        by_table(N >= kFrames && in.V <= kMostClasses &&
                 ((in.softmax && !with_direction) || in.V <= (with_direction ? 3 : 8) * in.L)),
        by_label(by_table && in.softmax && in.V > 3 * in.L),
        classes(table_classes(in.V)) {}

  // A row of acts as F. A row of halves is valid until the next call with the same `place`.
  const F* row(int64_t t, int64_t place = 0) const { return widened(in.dtype, acts_at(t), in.V, wide + place * in.V); }

  const void* acts_at(int64_t t) const { return static_cast<const char*>(in.acts) + t * frame_step; }

  static int64_t whole_groups(int64_t frames) { return (frames + kFrames - 1) / kFrames * kFrames; }
  // The frames of a block, with those that fill up its last group.
  int64_t kept_frames(int64_t block) const { return whole_groups(min_of(block, in.length)); }

  // Takes shifts and scales of residuals, if there are any.
  Outcome take(const F* residuals, int64_t stride) {
    for (int64_t t = 0; residuals != nullptr && t < in.length; ++t, residuals += stride) {
      shift[t] = residuals[0], scale[t] = residuals[1];
      if (scale[t] != scale[t]) return Outcome::kNoSoftmax;
      if (scale[t] == 0) return Outcome::kNoAlignment;
    }
    return Outcome::kFinite;
  }

  bool all_rows_defined() const {
    for (int64_t t = 0; t < in.length; ++t)
      if (!(in.softmax ? normalise_row(t).defined() : scores_defined(acts_at(t)))) return false;
    return true;
  }

 protected:
  F* raw;   // of one frame, or of a group: logits of the labels, `behind` up to `pairs`, then a vector of the blank's
            // logit
  F* most;  // of log-scores, for the table: which classes are read

  void lay_out_rows(Arena& arena) {
    arena.take(shift, whole_groups(in.length)), arena.take(scale, whole_groups(in.length));
    arena.take(wide, is_half(in.dtype) ? kFrames * in.V : 0);
    arena.take(places, by_table ? pairs : 0);
    arena.take(table.x, by_table ? table_size<F>(in.V) : 0), arena.take(table.p, by_table ? kFrames * classes : 0);
    arena.take(most, by_table && !in.softmax ? kFrames * classes : 0);
    arena.take(raw, by_label ? kFrames * (pairs + N) : by_table ? 0 : pairs + N);
  }

  // Slots behind the labels get the class `behind` of the table, or the logit `logit_behind`.
  void initialise_rows(int64_t behind, F logit_behind) {
    if (!by_table)
      for (int64_t i = 0; i < pairs + N; ++i) raw[i] = logit_behind;
    if (by_table) {
      for (int64_t i = 0; i < in.L; ++i) places[i] = kFrames * in.labels[i];
      for (int64_t i = in.L; i < pairs; ++i) places[i] = kFrames * int32_t(behind);
    }
    if (by_table && !in.softmax) mark_classes();
  }

  // The rows of frames [begin, end) of a group. Beyond the last frame, the last frame again.
  void rows_of_group(int64_t begin, int64_t end, const F* (&rows)[kFrames]) const {
    const char* at = static_cast<const char*>(acts_at(begin));
    if (is_half(in.dtype) || end - begin < kFrames) {
      for (int k = 0; k < kFrames; ++k, at += begin + k < end ? frame_step : 0)
        rows[k] = widened(in.dtype, at, in.V, wide + k * in.V);
      return;
    }
    for (int k = 0; k < kFrames; ++k, at += frame_step) rows[k] = reinterpret_cast<const F*>(at);
  }

  // Whether the frames of a group may be alike (dither.h).
  bool group_may_be_alike(int64_t begin, int64_t end) const {
    const auto blank_at = [&](int64_t k) { return entry<F>(in.dtype, acts_at(begin + k), in.blank); };
    return end - begin == kFrames && may_be_alike(blank_at);
  }

  // Prefetches the group that is read after the one that begins at `begin`.
  void prefetch_next_group(int64_t begin) const {
    if (begin == 0 || in.acts_stride == in.V) return;
    prefetch_group(static_cast<const char*>(acts_at(begin)) - kFrames * frame_step, frame_step, row_bytes);
  }

  // Puts the rows of a group into the table, and returns the largest entry of each frame. The next group is prefetched
  // after that: if rows lie a multiple of 4 KB apart, two groups fill a set of the first-level cache.
  CTC_INLINE Lanes<F> tabulate_group(int64_t begin, int64_t end) const {
    const F* rows[kFrames];
    rows_of_group(begin, end, rows);
    const Lanes<F> top = tabulate(rows, in.V, -F(__builtin_inf()), table.x);
    prefetch_next_group(begin);
    return top;
  }

  // Of row t. The row before it is read next.
  Normaliser<F> normalise_row(int64_t t) const {
    if (in.known.normalisers != nullptr) return in.known.normalisers[t];
    return normalise<F>(in.dtype, acts_at(t), in.V, acts_at(t > 0 ? t - 1 : 0));
  }

  // Returns false if the row has no softmax.
  bool keep(int64_t t, Normaliser<F> n) {
    shift[t] = n.shift, scale[t] = F(1 / n.sum);
    return n.defined();
  }

  // Of labels [begin, end), and of the blank.
  void read_entries(int64_t t, int64_t begin, int64_t end) {
    if (in.known.logits != nullptr) {
      const F* const x = in.known.logits + t * (in.L + 1);
      for (int64_t i = begin; i < end; ++i) raw[i] = x[i];
      store(raw + pairs, splat<Lanes<F>>(x[in.L]));
      return;
    }
    const Dtype dtype = in.dtype;
    const void* const x = acts_at(t);
    if (!in.softmax) prefetch_entries(acts_at(t > 0 ? t - 1 : 0));
    for (int64_t i = begin; i < end; ++i) raw[i] = entry<F>(dtype, x, in.labels[i]);
    store(raw + pairs, splat<Lanes<F>>(entry<F>(dtype, x, in.blank)));
  }

 private:
  void prefetch_entries(const void* x) const {
    const int64_t size = element_size(in.dtype);
    for (int64_t i = 0; i < in.L; ++i) __builtin_prefetch(static_cast<const char*>(x) + in.labels[i] * size);
    __builtin_prefetch(static_cast<const char*>(x) + in.blank * size);
  }
  bool scores_defined(const void* x) const {
    const auto good = [&](int32_t v) { return entry<F>(in.dtype, x, v) < F(__builtin_inf()); };
    for (int64_t i = 0; i < in.L; ++i)
      if (!good(in.labels[i])) return false;
    return good(in.blank);
  }
  void mark_classes() {
    for (int64_t i = 0; i < kFrames * classes; ++i) most[i] = -F(__builtin_inf());
    const auto mark = [&](int32_t v) { store_quad<F>(most + kFrames * int64_t(v), Quad<F>{} + F(__builtin_inf())); };
    for (int64_t i = 0; i < in.L; ++i) mark(in.labels[i]);
    mark(in.blank);
  }

  F* wide;  // rows of halves as floats
};

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// What the lattice needs of acts: the normalisers of all frames, and the emissions of a block of frames.
//
// An emission is exp(x - shift), and a path through the frame is divided by `sum`. Of logits these are the largest
// entry of the row and its sum (normaliser.h). Of log-scores `sum` is 1, and the path is multiplied with exp(shift).
//
// Wide rows are read one by one. Each is streamed for its normaliser, and then the logits of its labels are read while
// the row is in cache. Of log-scores only the entries of the labels are read. Narrow rows are read four at a time
// through a table, or stay in registers.
#pragma once

#include "arena.h"
#include "half.h"
#include "row_registers.h"

namespace jax_ctc {
namespace {

template <class V> class EmissionSource {
 public:
  using Value = V;

 private:
  using F = typename Parts<Value>::F;
  static constexpr int N = kLanes<F>;
  static constexpr bool kDual = Parts<Value>::count > 2;
  // The largest V that goes through a table. One float a lane adds up the row, and is accurate enough for so many.
  // Where rows are read for a few labels alone, or the direction has a table too, it pays if there are labels enough.
  static constexpr int64_t kMostClasses = 256, kClassesPerLabel = kDual ? 3 : 8;
  static constexpr bool kRegisters = CTC_VECTOR_BYTES == 64 && sizeof(F) == 4 && !kDual;

 public:
  EmissionSource(const Sequence<F>& sequence, int64_t pairs)
      : in(sequence),
        pairs(pairs),
        row_bytes(in.V * element_size(in.dtype)),
        frame_step(in.acts_stride * element_size(in.dtype)),
        by_table(N >= kFrames && in.V <= kMostClasses && ((in.softmax && !kDual) || in.V <= kClassesPerLabel * in.L)),
        by_label(by_table && !kDual && in.softmax && in.V > 3 * in.L),
        by_registers(kRegisters && by_table && !by_label && in.softmax && in.V >= N && in.V <= 4 * N),
        classes(table_classes(in.V)) {}

  // The bytes of the emissions of one frame.
  int64_t frame_bytes() const { return frame_size() * sizeof(F); }

  void lay_out(Arena& arena, int64_t block_length) {
    block = block_length;
    const int64_t kept = whole_groups(min_of(block, max_of<int64_t>(in.length, 1)));
    arena.take(y, kept * frame_size());
    arena.take(shift, in.length), arena.take(scale, in.length);
    arena.take(wide, is_half(in.dtype) ? kFrames * in.V : 0);
    if (by_table) {
      arena.take(places, pairs);
      arena.take(table.x, table_size<F>(in.V)), arena.take(table.p, kFrames * classes);
      arena.take(table.q, kFrames * classes);
      arena.take(most, in.softmax ? 0 : kFrames * classes);
    }
    arena.take(raw, by_label ? kFrames * (pairs + N) : by_table ? 0 : pairs + N);
  }

  void initialise() {
    const int64_t kept = whole_groups(min_of(block, in.length));
    InLanes<Value> dead = InLanes<Value>::none();
    dead.e = splat<Integer<Lanes<F>>>(kDead);
    for (int64_t k = 0; k < kept; ++k) store_parts(y + k * frame_size(), width(), dead);  // sets the margins
    if (by_table) {
      for (int64_t i = 0; i < pairs; ++i) places[i] = kFrames * (i < in.L ? in.labels[i] : int32_t(in.V));
      if (!in.softmax) mark_classes();
    } else {
      for (int64_t i = 0; i < pairs + N; ++i) raw[i] = -F(__builtin_inf());
    }
  }

  // Computes the emissions of frames [begin, end), which must lie in one block. In the first pass `product` is not
  // null, and what divides the paths through each frame is multiplied into it, always from the last frame to the first.
  // So the product has the same bits for every block length. The first pass returns false if a row has no softmax. In
  // the second pass `product` is null.
  bool read(int64_t begin, int64_t end, RunningProduct* product) {
    block_begin = begin - begin % block;
    if constexpr (N >= kFrames) {
      if (by_table) {
        for (int64_t t = (end - 1) / kFrames * kFrames; t >= begin; t -= kFrames)
          if (!read_group(t, min_of(t + kFrames, end), product)) return false;
        return true;
      }
    }
    for (int64_t t = end - 1; t >= begin; --t) {
      const bool first = product != nullptr;
      if (first && in.softmax && !keep(t, normalise(row(t), in.V, row_ahead(t)), product)) return false;
      read_entries(t);
      if (first && !in.softmax && !keep(t, reference_of_scores(raw, pairs + N), product)) return false;
      if (!first) stay_below(shift[t]);
      const Emissions<Value> at = emissions(t);
      split_emissions(raw, pairs + N, shift[t], at.mantissas(), at.exponents());
    }
    return true;
  }

  // The emissions of a frame in the block that was read last.
  Emissions<Value> emissions(int64_t t) const { return {y + (t - block_begin) * frame_size() + N, width(), pairs}; }

  // A row of acts as F. A row of halves is valid until the next call with the same `place`.
  const F* row(int64_t t, int64_t place = 0) const { return widened(in.dtype, acts_at(t), in.V, wide + place * in.V); }

  const void* acts_at(int64_t t) const { return static_cast<const char*>(in.acts) + t * frame_step; }

  bool all_rows_defined() const {
    for (int64_t t = 0; t < in.length; ++t)
      if (!(in.softmax ? normalise(row(t), in.V, row_ahead(t)).defined() : scores_defined(acts_at(t)))) return false;
    return true;
  }

 private:
  const Sequence<F>& in;
  const int64_t pairs;

 public:
  const int64_t row_bytes, frame_step;  // of acts; from a frame to the next, in bytes
  const bool by_table;

 private:
  const bool by_label;  // a table of logits alone: each label's emission is computed, because there are fewer of them
  const bool by_registers;  // no table, unless logits are far apart

 public:
  const int64_t classes;  // of the table
  int32_t* places;        // in the table, of `pairs` labels. Behind the labels, of a class that no row has
  F *shift, *scale;       // of the softmax, [T]
  Table<F> table;

 private:
  F* most;  // of log-scores, for the table: which classes are read

  int64_t width() const { return Emissions<Value>::width(pairs); }
  int64_t frame_size() const { return Parts<Value>::count * width(); }
  static int64_t whole_groups(int64_t frames) { return (frames + kFrames - 1) / kFrames * kFrames; }

  // The row that is read after row t, to be prefetched. Halves are not prefetched here.
  const F* row_ahead(int64_t t) const { return is_half(in.dtype) ? wide : row(t > 0 ? t - 1 : 0); }

  bool keep(int64_t t, Normaliser<F> n, RunningProduct* product) {
    if (!n.defined()) return false;
    product->multiply(n.sum);
    if (!in.softmax) product->log_of_others -= n.shift;
    shift[t] = n.shift, scale[t] = F(1 / n.sum);
    return true;
  }

  void read_entries(int64_t t) {
    const Dtype dtype = in.dtype;
    const void* const x = acts_at(t);
    if (!in.softmax) prefetch_entries(acts_at(t > 0 ? t - 1 : 0));
    for (int64_t i = 0; i < in.L; ++i) raw[i] = entry<F>(dtype, x, in.labels[i]);
    store(raw + pairs, splat<Lanes<F>>(entry<F>(dtype, x, in.blank)));
  }
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

  // A shift in the residuals is the largest logit of its frame, but a program may pass in any number. With this bound
  // no emission is more than 1, and sums of exponents stay inside an int32.
  void stay_below(F most) {
    for (int64_t i = 0; i < pairs + N; ++i) raw[i] = min_of(raw[i], most);
  }

  bool read_group(int64_t begin, int64_t end, RunningProduct* product) {
    const F* rows[kFrames];
    Emissions<Value> at[kFrames];
    for (int k = 0; k < kFrames; ++k) {  // beyond the last frame, the last frame again
      rows[k] = row(min_of(begin + k, end - 1), k);
      at[k] = emissions(begin), at[k].parts += k * frame_size();
      if (begin > 0 && in.acts_stride > in.V) prefetch(acts_at(begin - kFrames + k), row_bytes);
    }
    if constexpr (kRegisters) {
      if (by_registers && (in.V <= 2 * N ? read_registers<2>(rows, in.V, places, pairs, in.blank, at, table)
                                         : read_registers<4>(rows, in.V, places, pairs, in.blank, at, table)))
        return keep_group(begin, end, product);
    }
    if (by_label)
      table.read_logits(rows, in.V);
    else if (in.softmax)
      table.read(rows, in.V);
    else
      table.read_scores(rows, in.V, most);
    if (!keep_group(begin, end, product)) return false;
    if (by_label)
      split_labels(at);
    else
      gather(table, places, pairs, in.blank, at);
    return true;
  }

  bool keep_group(int64_t begin, int64_t end, RunningProduct* product) {
    for (int64_t t = end - 1; t >= begin; --t)
      if (product != nullptr && !keep(t, {table.shift[t - begin], table.sum[t - begin]}, product)) return false;
    return true;
  }

  void split_labels(const Emissions<Value> (&at)[kFrames]) {
    const int64_t n = pairs + N;
    gather(table.x, places, pairs, {raw, raw + n, raw + 2 * n, raw + 3 * n});
    for (int k = 0; k < kFrames; ++k) {
      F* const x = raw + k * n;
      store(x + pairs, splat<Lanes<F>>(table.x[kFrames * int64_t(in.blank) + k]));
      split_emissions(x, n, table.shift[k], at[k].mantissas(), at[k].exponents());
    }
  }

  int64_t block = 1, block_begin = 0;  // frames of a block; the first one of the block that was read last
  F* y;                                // emissions of a block of frames, [frame][part][Emissions::width]
  F* raw;   // one frame: logits of the labels, -inf up to `pairs`, then a vector of the blank's logit
  F* wide;  // rows of halves as floats
};

}  // namespace
}  // namespace jax_ctc

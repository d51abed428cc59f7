// SPDX-License-Identifier: Apache-2.0
// What each label adds to a path at four frames, relative to the blank (docs/ctc.md, section 7).
#pragma once

#include "arena.h"
#include "class_table.h"
#include "half.h"

namespace jax_ctc {
namespace {

constexpr double kImpossible = -__builtin_inf();

// x - reference exactly for floats, and -inf for an impossible class. Doubles are bounded, so that no sum overflows.
template <class F> CTC_FN double relative(F x, double reference) {
  const double d = double(x) - reference;
  if constexpr (sizeof(F) == 4) return d;
  constexpr double kMost = 1e290;
  return d > kMost ? kMost : d < -kMost ? kImpossible : d;
}

// The entries of four slots of a table [slot][frame], by frame.
CTC_FN void gather_quads(const double* table, const int32_t* slots, Quad<double> (&to)[kFrames]) {
  const auto entry = [&](int i) { return load_quad(table + kFrames * int64_t(slots[i])); };
  const Quad<double> a = entry(0), b = entry(1), c = entry(2), d = entry(3);
  const Quad<double> ab = __builtin_shufflevector(a, b, 0, 4, 2, 6), AB = __builtin_shufflevector(a, b, 1, 5, 3, 7);
  const Quad<double> cd = __builtin_shufflevector(c, d, 0, 4, 2, 6), CD = __builtin_shufflevector(c, d, 1, 5, 3, 7);
  to[0] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5), to[1] = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
  to[2] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7), to[3] = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

// The same for as many slots as a vector has lanes.
template <class Vec> CTC_FN void gather_lanes(const double* table, const int32_t* slots, Vec (&to)[kFrames]) {
  if constexpr (kCount<Vec> == 2) {
    const double *a = table + kFrames * int64_t(slots[0]), *b = table + kFrames * int64_t(slots[1]);
    for (int k = 0; k < kFrames; ++k) to[k] = Vec{a[k], b[k]};
  } else if constexpr (kCount<Vec> == 4) {
    gather_quads(table, slots, to);
  } else {
    Quad<double> low[kFrames], high[kFrames];
    gather_quads(table, slots, low), gather_quads(table, slots + 4, high);
    for (int k = 0; k < kFrames; ++k) to[k] = __builtin_shufflevector(low[k], high[k], 0, 1, 2, 3, 4, 5, 6, 7);
  }
}

// The largest logit of all classes but one; -inf if there is no other. A NaN is passed over.
template <class F> F largest_but(const F* x, int64_t V, int64_t left_out) {
  return max_of(largest(x, left_out), largest(x + left_out + 1, V - left_out - 1));
}

template <class F> class AlignEmissions {
  static constexpr int64_t kMostClasses = 256;  // of a table, as in emissions.h
  static constexpr bool kTables = kLanes<F> >= kFrames;

 public:
  AlignEmissions(const Sequence<F>& sequence, const SequenceAlignment& alignment)
      : in(sequence), out(alignment), by_table(kTables && out.softmax && in.V <= kMostClasses) {}

  void lay_out(Arena& arena, int64_t pairs) {
    arena.take(slots, pairs);
    arena.take(table, kFrames * (out.D + 1));
    const int64_t entries = by_table ? kFrames * table_classes(in.V) : 0;
    arena.take(classes.x, entries), arena.take(classes.p, entries), arena.take(classes.q, entries);
    arena.take(wide, is_half(in.dtype) ? kFrames * in.V : 0);
  }

  void initialise(int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) slots[i] = i < in.L ? out.slots[i] : int32_t(out.D);
    for (int64_t i = 0; i < kFrames * (out.D + 1); ++i) table[i] = kImpossible;
  }

  // Computes the table of four frames from `begin` on, at least for labels `first` to `last`. Frames below 0 are there
  // to fill up a group. The first pass adds up what the score needs, and returns false if a row is undefined.
  template <bool kFirstPass> bool read(int64_t begin, int64_t first, int64_t last) {
    if constexpr (kFirstPass && kTables)
      if (by_table) {
        const F* rows[kFrames];
        for (int k = 0; k < kFrames; ++k) rows[k] = row(max_of<int64_t>(begin + k, 0), k);
        classes.read(rows, in.V);
      }
    for (int k = 0; k < kFrames; ++k) {
      const int64_t t = begin + k;
      of_blanks[k] = 0;
      if (t < 0) {
        for (int64_t d = 0; d < out.D; ++d) table[kFrames * d + k] = kImpossible;
        continue;
      }
      const F* x = row(t, k);
      const bool impossible = x[in.blank] == F(kImpossible);
      const double reference = impossible ? 0 : double(x[in.blank]);
      if (impossible) of_blanks[k] = kImpossible;
      if (kFirstPass && !count(x, t, k, reference)) return false;
      if (last - first < out.D)
        for (int64_t i = first; i <= last; ++i)
          table[kFrames * int64_t(slots[i]) + k] = relative(x[out.classes[i]], reference);
      else
        for (int64_t d = 0; d < out.D; ++d) table[kFrames * d + k] = relative(x[out.symbols[d]], reference);
      if (out.star >= 0) table[kFrames * int64_t(out.star) + k] = relative(largest_but(x, in.V, in.blank), reference);
    }
    return true;
  }

  // Whether every row in use is defined, for a sequence that is not aligned.
  bool all_rows_defined() {
    for (int64_t t = 0; t < in.length; ++t)
      if (!(out.softmax ? normalise(row(t, 0), in.V, row_ahead(t)).defined() : has_scores(row(t, 0)))) return false;
    return true;
  }

  // The sum over frames of what emissions are relative to: the log-probability of the blank, mostly.
  double of_references() const {
    return references - (__builtin_log(sums.m) + double(sums.e) * 0.69314718055994530942);
  }

  // The class that the star stands for at a frame: the first one of the largest.
  int32_t class_of_star(int64_t t) const {
    const F* x = row(t, 0);
    const F most = largest_but(x, in.V, in.blank);
    int64_t v = 0;
    while (v == in.blank || x[v] != most) ++v;
    return int32_t(v);
  }

  int32_t* slots;  // of the table. Pairs without a label have the last one, which is impossible
  double* table;   // emissions relative to the blank's, [slot][frame]
  double of_blanks[kFrames];

 private:
  bool count(const F* x, int64_t t, int k, double reference) {
    if (!out.softmax) {
      references += reference;
      return has_scores(x);
    }
    const Normaliser<F> n =
        by_table ? Normaliser<F>{classes.shift[k], classes.sum[k]} : normalise(x, in.V, row_ahead(t));
    if (!n.defined()) return false;
    sums.multiply(n.sum), references += reference - double(n.shift);
    return true;
  }

  // Whether the scores that a path may take are numbers or -inf.
  bool has_scores(const F* x) const {
    const F infinity = __builtin_inf();
    bool defined = x[in.blank] < infinity;
    for (int64_t d = 0; d < out.D; ++d) defined &= x[out.symbols[d]] < infinity;
    if (out.star >= 0)
      for (int64_t v = 0; v < in.V; ++v) defined &= x[v] < infinity;
    return defined;
  }

  const void* acts_at(int64_t t) const {
    return static_cast<const char*>(in.acts) + t * in.acts_stride * element_size(in.dtype);
  }
  const F* row(int64_t t, int64_t place) const {
    F* const buffer = wide + place * in.V;
    if (out.softmax || out.star >= 0 || !is_half(in.dtype)) return widened(in.dtype, acts_at(t), in.V, buffer);
    for (int64_t d = 0; d < out.D; ++d) buffer[out.symbols[d]] = entry<F>(in.dtype, acts_at(t), out.symbols[d]);
    buffer[in.blank] = entry<F>(in.dtype, acts_at(t), in.blank);
    return buffer;
  }
  // The row that is read after row t, to be prefetched. Halves are not prefetched.
  const F* row_ahead(int64_t t) const { return is_half(in.dtype) ? wide : row(min_of(t + 1, in.length - 1), 0); }

  const Sequence<F>& in;
  const SequenceAlignment& out;
  const bool by_table;  // rows are so narrow that four are normalised at once
  Table<F> classes;
  F* wide;  // rows of halves as floats
  double references = 0;
  RunningProduct sums;
};

}  // namespace
}  // namespace jax_ctc

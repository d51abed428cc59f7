// SPDX-License-Identifier: Apache-2.0
// What each label adds to a path at four frames, relative to the blank (docs/ctc.md, section 7).
#pragma once

#include "../../common/best_path.h"
#include "arena.h"
#include "class_table.h"
#include "half.h"

namespace jax_ctc {
namespace {

constexpr double kImpossible = -__builtin_inf();

// x - reference exactly for floats, and -inf for an impossible class. Doubles are bounded, so that no sum overflows.
// Works on doubles and on vectors of them.
template <class F, class D> CTC_FN D relative(D x, D reference) {
  const D d = x - reference;
  if constexpr (sizeof(F) == 4) return d;
  const D most = D{} + 1e290;
  return d > most ? most : d < -most ? D{} + kImpossible : d;
}

// The entries of as many labels as a vector has lanes, by frame, from a table [slot][frame].
template <class Vec> CTC_FN void gather_lanes(const double* table, const int32_t* places, Vec (&to)[kFrames]) {
  if constexpr (kCount<Vec> >= kFrames) {
    join_groups<double>([&](int i) { return table + places[i]; }, to, Groups<double>{});
  } else {
    const double *a = table + places[0], *b = table + places[1];
    for (int k = 0; k < kFrames; ++k) to[k] = Vec{a[k], b[k]};
  }
}

// The largest logit of all classes but one; -inf if there is no other. A NaN is passed over.
template <class F> F largest_but(const F* x, int64_t V, int64_t left_out) {
  return max_of(largest(x, left_out), largest(x + left_out + 1, V - left_out - 1));
}

template <class F> class AlignEmissions {
  static constexpr int64_t kAhead = 16;  // frames, to be prefetched
  static constexpr bool kTables = kLanes<F> >= kFrames;

 public:
  AlignEmissions(const Sequence<F>& sequence, const SequenceAlignment& alignment)
      : in(sequence), out(alignment), by_table(kTables && in.softmax && in.V <= kMostClasses) {}

  void lay_out(Arena& arena, int64_t pairs) {
    arena.take(places, pairs);
    arena.take(table, kFrames * (impossible_slot() + 1));
    arena.take(classes.x, by_table ? table_size<F>(in.V) : 0);
    arena.take(wide, is_half(in.dtype) ? kFrames * in.V : 0);
  }

  void initialise(int64_t pairs) {
    const int64_t none = impossible_slot();
    for (int64_t i = 0; i < pairs; ++i)
      places[i] = int32_t(kFrames * (i >= in.L ? none : by_table ? in.labels[i] : out.slots[i]));
    for (int64_t i = 0; i < kFrames * (none + 1); ++i) table[i] = kImpossible;
  }

  // Computes the table of four frames from `begin` on, at least for labels `first` to `last`. Frames below 0 are there
  // to fill up a group. The first pass adds up what the score needs, and returns false if a row is undefined.
  template <bool kFirstPass> bool read(int64_t begin, int64_t first, int64_t last) {
    if constexpr (kTables)
      if (by_table) return read_classes<kFirstPass>(begin);
    for (int k = 0; k < kFrames; ++k) {
      const int64_t t = begin + k;
      if (t < 0) {
        fill_up(k);
        continue;
      }
      if (in.known.logits != nullptr) {
        const F* const x = in.known.logits + t * (in.L + 1);
        const double reference = set_blank(k, x[in.L]);
        if (kFirstPass && !count(in.known.normalisers[t], reference)) return false;
        for (int64_t i = first; i <= last; ++i) table[places[i] + k] = relative<F>(double(x[i]), reference);
        continue;
      }
      const F* x = row(t, k);
      const double reference = set_blank(k, x[in.blank]);
      if (kFirstPass && !count(x, t, reference)) return false;
      if (last - first < out.D)
        for (int64_t i = first; i <= last; ++i)
          table[places[i] + k] = relative<F>(double(x[out.classes[i]]), reference);
      else
        for (int64_t d = 0; d < out.D; ++d) table[kFrames * d + k] = relative<F>(double(x[out.symbols[d]]), reference);
      if (out.star >= 0) set_star(k, out.star, x, reference);
    }
    return true;
  }

  // Whether every row in use is defined, for a sequence that is not aligned.
  bool all_rows_defined() {
    for (int64_t t = 0; t < in.length; ++t)
      if (!(in.softmax ? normalise_row(t).defined() : has_scores(row(t, 0)))) return false;
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
    while (v < in.V - 1 && (v == in.blank || x[v] != most)) ++v;
    return int32_t(v);
  }

  bool blanks_possible() const { return of_blanks[0] + of_blanks[1] + of_blanks[2] + of_blanks[3] == 0; }

  int32_t* places;            // in the table: kFrames times the slot
  double* table;              // emissions relative to the blank's, [slot][frame]
  double of_blanks[kFrames];  // 0 mostly; what a blank adds that is no reference; -inf

 private:
  // The same from a table of all classes.
  template <bool kFirstPass> bool read_classes(int64_t begin) {
    const F* rows[kFrames];
    Quad<double> reference;
    for (int k = 0; k < kFrames; ++k) {
      rows[k] = row(max_of<int64_t>(begin + k, 0), k);
      prefetch(acts_at(min_of(begin + k + kAhead, in.length - 1)), in.V * element_size(in.dtype));
      reference[k] = set_blank(k, rows[k][in.blank]);
    }
    const Lanes<F> top = tabulate(rows, in.V, -F(__builtin_inf()), classes.x);
    if (kFirstPass) {
      classes.read_logits(top, in.V);
      for (int k = 0; k < kFrames; ++k)
        if (begin + k >= 0 && !count({classes.shift[k], classes.sum[k]}, reference[k])) return false;
    }
    const F* from = classes.x;
    double* to = table;
    for (const F* const end = from + kFrames * in.V; from < end; from += kFrames, to += kFrames)
      store_quad<double>(to, relative<F>(__builtin_convertvector(load_quad(from), Quad<double>), reference));
    if (out.star >= 0)
      for (int k = 0; k < kFrames; ++k) set_star(k, in.V, rows[k], reference[k]);
    for (int k = 0; begin + k < 0; ++k) fill_up(k);
    return true;
  }

  // Slots are the different labels, or all classes and the star. One more slot, for pairs without a label, is
  // impossible.
  int64_t impossible_slot() const { return by_table ? in.V + 1 : out.D; }
  void set_star(int k, int64_t slot, const F* x, double reference) {
    table[kFrames * slot + k] = relative<F>(double(largest_but(x, in.V, in.blank)), reference);
  }

  // At a frame before the first one, the blank alone is possible and costs nothing.
  void fill_up(int k) {
    of_blanks[k] = 0;
    for (int64_t i = 0; i < impossible_slot(); ++i) table[kFrames * i + k] = kImpossible;
  }

  // Returns what the emissions of a frame are relative to.
  double set_blank(int k, F x) {
    const double reference = reference_of(double(x));
    of_blanks[k] = relative<F>(double(x), reference);
    return reference;
  }

  bool count(const F* x, int64_t t, double reference) {
    if (in.softmax) return count(normalise_row(t), reference);
    references += reference;
    return has_scores(x);
  }
  bool count(const Normaliser<F>& n, double reference) {
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
    if (in.softmax || out.star >= 0 || !is_half(in.dtype)) return widened(in.dtype, acts_at(t), in.V, buffer);
    for (int64_t d = 0; d < out.D; ++d) buffer[out.symbols[d]] = entry<F>(in.dtype, acts_at(t), out.symbols[d]);
    buffer[in.blank] = entry<F>(in.dtype, acts_at(t), in.blank);
    return buffer;
  }
  // Of row t. The row after it is read next.
  Normaliser<F> normalise_row(int64_t t) const {
    if (in.known.normalisers != nullptr) return in.known.normalisers[t];
    return normalise<F>(in.dtype, acts_at(t), in.V, acts_at(min_of(t + 1, in.length - 1)));
  }

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

// SPDX-License-Identifier: Apache-2.0
// One sequence: acts -> its best path (docs/ctc.md, section 7).
//
// The recursion is that of alpha with max for +, on logarithms in double. It takes additions and comparisons only, so
// its bits depend on no vector width.
//
// The states before every `block`-th frame are stored on the way to the last frame. On the way back each block runs
// again and keeps its choices, but only for the pairs that a path to the state that was reached can come from. These
// are at most as many as the block has frames. So the second pass is short where labels are many.
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

// Pairs that lie on a path: those that can be reached from the first frame, and from which a path can reach `target`
// or a later pair at the last frame. A path takes at most one pair a frame. Beyond `top` no path ends.
struct PairWindow {
  int64_t target, top, end;
  int64_t first(int64_t t) const { return max_of<int64_t>(0, target - (end - 1 - t)); }
  int64_t last(int64_t t) const { return min_of(top, t); }
};

// What chose the state of a pair, three bits a frame. If none is set, the path stayed in its state.
enum Choice { kBlankAfterLabel = 1, kLabelAfterBlank = 2, kLabelAfterLabel = 4 };
constexpr int kChoiceBits = 3;

// Frames are in groups of four. The first group is filled up with frames before the first one, in which only the first
// blank is possible and costs nothing. So no group is partial.
template <class F> class AlignRun {
  using Vec = Lanes<double>;
  using Mask = Integer<Vec>;
  static constexpr int N = kLanes<double>;
  static constexpr int64_t kMostClasses = 256;  // of a table, as in emissions.h
  static constexpr bool kTables = kLanes<F> >= kFrames;

 public:
  AlignRun(const Sequence<F>& sequence, const SequenceAlignment& alignment)
      : in(sequence),
        out(alignment),
        L(in.L),
        before((kFrames - in.length % kFrames) % kFrames),
        frames(before + in.length),
        pairs(padded<double>(L + 1)),
        block(block_length(frames)),
        width(min_of(pairs, padded<double>(block + 2 * N))),
        by_table(kTables && in.softmax && in.V <= kMostClasses) {
    take_from(*in.scratch, [this](Arena& arena) { lay_out(arena); });
  }

  Outcome run(F* score) {
    if (!in.feasible) return all_rows_defined() ? Outcome::kNoAlignment : Outcome::kNoSoftmax;
    initialise();
    const PairWindow window = {L - 1, L, frames};
    for (int64_t t = 0; t < frames; t += kFrames) {
      if (t > 0 && t % block == 0) save(checkpoint(t));
      if (!read_group<true>(t, window)) return Outcome::kNoSoftmax;
      step<false>(t, window, nullptr);
    }
    // Of two equal ends, the last label.
    pair = L > 0 && label[L - 1] >= blank[L] ? L - 1 : L;
    in_label = pair < L;
    const double best = in_label ? label[pair] : blank[pair];
    const double nats = best + of_blank - (__builtin_log(sums.m) + double(sums.e) * 0.69314718055994530942);
    *score = F(nats < 0 || !in.softmax ? nats : 0);
    if (*score == F(kImpossible)) return Outcome::kNoAlignment;
    for (int64_t begin = (frames - 1) / block * block; begin >= 0; begin -= block)
      trace(begin, min_of(begin + block, frames));
    return Outcome::kFinite;
  }

 private:
  // About 2 sqrt(T). Checkpoints take O(sqrt(T) * L) memory, and choices O(T).
  static int64_t block_length(int64_t frames) {
#if defined(JAX_CTC_TEST)
    if (tested::block_length > 0) return tested::block_length;
#endif
    return max_of<int64_t>(32, int64_t(__builtin_sqrt(double(frames)) / 2) * kFrames);
  }

  void lay_out(Arena& arena) {
    arena.take(blank, pairs);
    arena.take(labels_with_margin, N + pairs);
    arena.take(limit, pairs), arena.take(slots, pairs);
    arena.take(table, kFrames * (out.D + 1));
    arena.take(checkpoints, (frames > 0 ? (frames - 1) / block : 0) * 2 * pairs);
    arena.take(choices, min_of(block, frames) / kFrames * width);
    const int64_t entries = by_table ? kFrames * table_classes(in.V) : 0;
    arena.take(classes.x, entries), arena.take(classes.p, entries), arena.take(classes.q, entries);
    arena.take(wide, is_half(in.dtype) ? kFrames * in.V : 0);
  }

  void initialise() {
    label = labels_with_margin + N;
    for (int64_t i = 0; i < pairs; ++i) {
      limit[i] = i < L && may_skip(in.labels, i) ? -kImpossible : kImpossible;
      slots[i] = i < L ? out.slots[i] : int32_t(out.D);
    }
    for (int64_t i = 0; i < kFrames * (out.D + 1); ++i) table[i] = kImpossible;
    for (int64_t i = -N; i < 0; ++i) label[i] = kImpossible;
    start(0, pairs);
  }

  // The states before the first frame, of pairs [begin, end).
  void start(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) blank[i] = i == 0 ? 0 : kImpossible, label[i] = kImpossible;
  }

  double* checkpoint(int64_t t) const { return checkpoints + (t / block - 1) * 2 * pairs; }
  void save(double* to) const {
    for (int64_t i = 0; i < pairs; ++i) to[i] = blank[i], to[pairs + i] = label[i];
  }
  void restore(const double* from, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) blank[i] = from[i], label[i] = from[pairs + i];
  }

  const void* acts_at(int64_t t) const {
    return static_cast<const char*>(in.acts) + t * in.acts_stride * element_size(in.dtype);
  }
  const F* row(int64_t t, int64_t place) const {
    F* const buffer = wide + place * in.V;
    if (in.softmax || !is_half(in.dtype)) return widened(in.dtype, acts_at(t), in.V, buffer);
    for (int64_t d = 0; d < out.D; ++d) buffer[out.symbols[d]] = entry<F>(in.dtype, acts_at(t), out.symbols[d]);
    buffer[in.blank] = entry<F>(in.dtype, acts_at(t), in.blank);
    return buffer;
  }
  // Whether no entry of log-scores that is read is NaN or +inf.
  bool scores_defined(const F* x) const {
    bool good = x[in.blank] < F(-kImpossible);
    for (int64_t d = 0; d < out.D; ++d) good &= x[out.symbols[d]] < F(-kImpossible);
    return good;
  }
  // The row that is read after row t, to be prefetched. Halves are not prefetched.
  const F* row_ahead(int64_t t) const { return is_half(in.dtype) ? wide : row(min_of(t + 1, in.length - 1), 0); }

  bool all_rows_defined() const {
    for (int64_t t = 0; t < in.length; ++t)
      if (!(in.softmax ? normalise(row(t, 0), in.V, row_ahead(t)).defined() : scores_defined(row(t, 0)))) return false;
    return true;
  }

  // Computes the table of four frames. The first pass adds up what the score needs, and returns false if a row has no
  // softmax.
  template <bool kFirstPass> bool read_group(int64_t begin, PairWindow window) {
    const int64_t first = window.first(begin), last = min_of(window.last(begin + kFrames - 1), L - 1);
    if constexpr (kFirstPass && kTables)
      if (by_table) {
        const F* rows[kFrames];
        for (int k = 0; k < kFrames; ++k) rows[k] = row(max_of<int64_t>(begin + k - before, 0), k);
        classes.read(rows, in.V);
      }
    for (int k = 0; k < kFrames; ++k) {
      const int64_t t = begin + k - before;
      of_blanks[k] = 0;
      if (t < 0) {
        for (int64_t d = 0; d < out.D; ++d) table[kFrames * d + k] = kImpossible;
        continue;
      }
      const F* x = row(t, k);
      const bool impossible = x[in.blank] == F(kImpossible);
      const double reference = impossible ? 0 : double(x[in.blank]);
      if (impossible) of_blanks[k] = kImpossible;
      if (kFirstPass && !in.softmax) {
        if (!scores_defined(x)) return false;
        of_blank += reference;
      } else if (kFirstPass) {
        const Normaliser<F> n =
            by_table ? Normaliser<F>{classes.shift[k], classes.sum[k]} : normalise(x, in.V, row_ahead(t));
        if (!n.defined()) return false;
        sums.multiply(n.sum), of_blank += reference - double(n.shift);
      }
      if (last - first < out.D)
        for (int64_t i = first; i <= last; ++i)
          table[kFrames * int64_t(slots[i]) + k] = relative(x[in.labels[i]], reference);
      else
        for (int64_t d = 0; d < out.D; ++d) table[kFrames * d + k] = relative(x[out.symbols[d]], reference);
    }
    return true;
  }

  // Takes the states from before frame t to after frame t + 3. Pairs outside the window may become anything, because
  // no pair inside it reads them. If kKeep, `to` gets the choices of pair `base` and those after it.
  template <bool kKeep> void step(int64_t t, PairWindow window, int16_t* to, int64_t base = 0) {
    const int64_t begin = window.first(t) / N * N, end = padded<double>(window.last(t + kFrames - 1) + 1);
    const Vec left_of_all = load<Vec>(label + begin - N);
    Vec below[kFrames], of_blank_at[kFrames];
    for (int k = 0; k < kFrames; ++k) below[k] = left_of_all, of_blank_at[k] = splat<Vec>(of_blanks[k]);
    for (int64_t i = begin; i < end; i += N) {
      Vec b = load<Vec>(blank + i), l = load<Vec>(label + i), emission[kFrames];
      const Vec most = load<Vec>(limit + i);
      gather_lanes(table, slots + i, emission);
      Mask choice = {};
      for (int k = 0; k < kFrames; ++k) {
        const Vec left = shift_up(below[k], l), skip = min_of(left, most), either = max_of(b, l);
        if (kKeep)
          choice |= ((left > b) & (kBlankAfterLabel << kChoiceBits * k)) |
                    ((b > l) & (kLabelAfterBlank << kChoiceBits * k)) |
                    ((skip > either) & (kLabelAfterLabel << kChoiceBits * k));
        below[k] = l;
        l = max_of(skip, either) + emission[k];
        b = max_of(left, b) + of_blank_at[k];
      }
      store(blank + i, b), store(label + i, l);
      if (kKeep) {
        const QuarterLanes narrow = __builtin_convertvector(choice, QuarterLanes);
        __builtin_memcpy(to + i - base, &narrow, sizeof narrow);
      }
    }
  }

  // Writes the path at frames [begin, end), from the state that it has at the last of them, and goes on to the state
  // that it has at the frame before.
  void trace(int64_t begin, int64_t end) {
    const PairWindow window = {pair, pair, end};
    const int64_t base = window.first(begin) / N * N, after = padded<double>(pair + 1);
    const int64_t from = max_of<int64_t>(base - N, 0);
    if (begin == 0)
      start(from, after);
    else
      restore(checkpoint(begin), from, after);
    for (int64_t t = begin; t < end; t += kFrames) {
      read_group<false>(t, window);
      step<true>(t, window, choices + (t - begin) / kFrames * width, base);
    }
    for (int64_t t = end - 1; t >= max_of(begin, before); --t) {
      const int64_t at = (t - before) * out.stride;
      out.path[at] = in_label ? in.labels[pair] : in.blank;
      out.label_index[at] = in_label ? out.position[pair] - 1 : -1;
      const int choice = choices[(t - begin) / kFrames * width + pair - base] >> kChoiceBits * (t % kFrames);
      if (!in_label)
        in_label = choice & kBlankAfterLabel, pair -= in_label;
      else if (choice & kLabelAfterLabel)
        --pair;
      else
        in_label = !(choice & kLabelAfterBlank);
    }
  }

  const Sequence<F>& in;
  const SequenceAlignment& out;
  const int64_t L;
  const int64_t before, frames;  // frames that fill up the first group; all frames
  const int64_t pairs, block, width;
  const bool by_table;  // rows are so narrow that four are normalised at once
  Table<F> classes;
  double *blank, *label;       // states
  double* labels_with_margin;  // of one vector, on the left
  double* limit;               // the most that a skip into each label may bring: -inf where none is allowed
  int32_t* slots;              // of the table. Pairs without a label have the last one, which is impossible
  double* table;               // emissions relative to the blank's, [slot][frame]
  double of_blanks[kFrames];
  double* checkpoints;
  int16_t* choices;  // of a block, [group][pair]
  F* wide;           // rows of halves as floats
  double of_blank = 0;
  RunningProduct sums;
  int64_t pair = 0;
  bool in_label = false;
};

template <class F> Outcome sequence_alignment(const Sequence<F>& sequence, const SequenceAlignment& out, F* score) {
  return AlignRun<F>(sequence, out).run(score);
}

}  // namespace
}  // namespace jax_ctc

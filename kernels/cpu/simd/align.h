// SPDX-License-Identifier: Apache-2.0
// One sequence: acts -> its best path (docs/ctc.md, section 7).
//
// The recursion is that of alpha with max for +, on logarithms in double. It takes additions and comparisons only, so
// its bits depend on no vector width.
//
// The states before every `block`-th frame are stored on the way to the last frame. On the way back each block runs
// again and keeps its choices, but only for the pairs that a path to the state that was reached can come from. These
// are at most as many as the block has frames. So the second pass is short where labels are many. Where they are few,
// the first pass keeps the choices of all frames.
#pragma once

#include "../../common/best_path.h"
#include "align_emissions.h"

namespace jax_ctc {
namespace {

// Pairs that lie on a path: those that can be reached from the first frame, and from which a path can reach `target`
// or a later pair at the last frame. A path takes at most one pair a frame. Beyond `top` no path ends.
struct PairWindow {
  int64_t target, top, end;
  int64_t first(int64_t t) const { return max_of<int64_t>(0, target - (end - 1 - t)); }
  int64_t last(int64_t t) const { return min_of(top, t); }
};

constexpr int kChoiceBits = 3;  // of a pair and frame

// Frames are in groups of four. The first group is filled up with frames before the first one, in which only the first
// blank is possible and costs nothing. So no group is partial.
template <class F> class AlignRun {
  using Vec = Lanes<double>;
  using Mask = Integer<Vec>;
  static constexpr int N = kLanes<double>;

 public:
  AlignRun(const Sequence<F>& sequence, const SequenceAlignment& alignment)
      : in(sequence),
        out(alignment),
        L(in.L),
        before((kFrames - in.length % kFrames) % kFrames),
        frames(before + in.length),
        pairs(padded<double>(L + 1)),
        block(block_length(frames, pairs)),
        width(min_of(pairs, padded<double>(block + 2 * N))),
        emissions(in, out) {
    take_from(*in.scratch, [this](Arena& arena) { lay_out(arena); });
  }

  Outcome run(F* score) {
    if (!in.feasible) return emissions.all_rows_defined() ? Outcome::kNoAlignment : Outcome::kNoSoftmax;
    initialise();
    const bool one_pass = frames <= block;
    if (!(one_pass ? forward<true>() : forward<false>())) return Outcome::kNoSoftmax;
    // Of two equal ends, the last label.
    pair = L > 0 && label[L - 1] >= blank[L] ? L - 1 : L;
    in_label = pair < L;
    const double best = in_label ? label[pair] : blank[pair];
    if (!(best > kImpossible)) return *score = F(kImpossible), Outcome::kNoAlignment;
    const double nats = best + emissions.of_references();
    *score = F(in.softmax ? min_of(nats, 0.0) : nats);
    if (*score == F(kImpossible)) return Outcome::kNoAlignment;
    for (int64_t begin = (frames - 1) / block * block; begin >= 0; begin -= block) {
      const int64_t end = min_of(begin + block, frames);
      trace(begin, end, one_pass ? 0 : repeat(begin, end));
    }
    return Outcome::kFinite;
  }

 private:
  // Frames whose choices are kept at once. Checkpoints take O(sqrt(T) * L) memory, and choices O(T). All frames are one
  // block where the second pass would take about as long as the first, if the choices stay in the second-level cache.
  static int64_t block_length(int64_t frames, int64_t pairs) {
#if defined(JAX_CTC_TEST)
    if (tested::block_length > 0) return tested::block_length;
#endif
    constexpr int64_t kMostBytes = 256 * 1024;
    const int64_t block =
        max_of<int64_t>(32, int64_t(__builtin_sqrt(double(frames)) / 2) * kFrames);  // about 2 sqrt(T)
    const bool all = pairs <= 2 * block && frames / kFrames * pairs * int64_t(sizeof *choices) <= kMostBytes;
    return all ? max_of(frames, block) : block;
  }

  void lay_out(Arena& arena) {
    arena.take(blank, pairs);
    arena.take(labels_with_margin, N + pairs);
    arena.take(limit, pairs);
    emissions.lay_out(arena, pairs);
    arena.take(checkpoints, (frames > 0 ? (frames - 1) / block : 0) * 2 * pairs);
    arena.take(choices, min_of(block, frames) / kFrames * width);
  }

  void initialise() {
    label = labels_with_margin + N;
    for (int64_t i = 0; i < pairs; ++i) limit[i] = i < L && may_skip(in.labels, i) ? -kImpossible : kImpossible;
    emissions.initialise(pairs);
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

  template <bool kFirstPass> bool read_group(int64_t begin, PairWindow window) {
    const int64_t last = min_of(window.last(begin + kFrames - 1), L - 1);
    return emissions.template read<kFirstPass>(begin - before, window.first(begin), last);
  }

  // Takes the states from before the first frame to after the last one. Returns false if a row is undefined.
  template <bool kKeep> bool forward() {
    const PairWindow window = {L - 1, L, frames};
    for (int64_t t = 0; t < frames; t += kFrames) {
      if (t > 0 && t % block == 0) save(checkpoint(t));
      if (!read_group<true>(t, window)) return false;
      step<kKeep>(t, window, choices + t / kFrames * width);
    }
    return true;
  }

  // Takes the states from before frame t to after frame t + 3. Pairs outside the window may become anything, because
  // no pair inside it reads them. If kKeep, `to` gets the choices of pair `base` and those after it.
  template <bool kKeep> void step(int64_t t, PairWindow window, int32_t* to, int64_t base = 0) {
    if (emissions.blanks_possible())
      step<kKeep, true>(t, window, to, base);
    else
      step<kKeep, false>(t, window, to, base);
  }
  // What the blanks add is 0 where they are possible.
  template <bool kKeep, bool kBlanksPossible> void step(int64_t t, PairWindow window, int32_t* to, int64_t base) {
    const int64_t begin = window.first(t) / N * N, end = padded<double>(window.last(t + kFrames - 1) + 1);
    // The stores below do not change these.
    double* const blank = this->blank;
    double* const label = this->label;
    const double *const limit = this->limit, *const table = emissions.table;
    const int32_t* const places = emissions.places;
    const Vec left_of_all = load<Vec>(label + begin - N);
    Vec below[kFrames], of_blank_at[kFrames];
    for (int k = 0; k < kFrames; ++k) below[k] = left_of_all, of_blank_at[k] = splat<Vec>(emissions.of_blanks[k]);
    for (int64_t i = begin; i < end; i += N) {
      Vec b = load<Vec>(blank + i), l = load<Vec>(label + i), emission[kFrames];
      const Vec most = load<Vec>(limit + i);
      gather_lanes(table, places + i, emission);
      Mask choice = {}, choice_of_label = {};  // two chains, because each frame's waits for the last frame's
      for (int k = 0; k < kFrames; ++k) {
        const Vec left = shift_up(below[k], l), skip = min_of(left, most), either = max_of(b, l);
        if (kKeep) {
          set_where(left > b, kBlankAfterLabel << kChoiceBits * k, choice);
          set_where(b > l, kLabelAfterBlank << kChoiceBits * k, choice_of_label);
          set_where(skip > either, kLabelAfterLabel << kChoiceBits * k, choice);
        }
        below[k] = l;
        l = max_of(skip, either) + emission[k];
        b = kBlanksPossible ? max_of(left, b) : max_of(left, b) + of_blank_at[k];
      }
      store(blank + i, b), store(label + i, l);
      if (kKeep) {
        const HalfLanes narrow = low_halves(choice | choice_of_label);
        __builtin_memcpy(to + i - base, &narrow, sizeof narrow);
      }
    }
  }

  // Runs the frames [begin, end) again for the pairs that a path to the present state can come from, and keeps their
  // choices. Returns the first of these pairs.
  int64_t repeat(int64_t begin, int64_t end) {
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
    return base;
  }

  // Writes the path at frames [begin, end), from the state that it has at the last of them, and goes on to the state
  // that it has at the frame before. The choices are those of pair `base` and of pairs after it.
  void trace(int64_t begin, int64_t end, int64_t base) {
    for (int64_t t = end - 1; t >= max_of(begin, before); --t) {
      const int64_t at = (t - before) * out.stride;
      out.path[at] = in_label ? class_of(in.labels[pair], t - before) : in.blank;
      out.label_index[at] = in_label ? out.position[pair] - 1 : -1;
      const int choice = choices[(t - begin) / kFrames * width + pair - base] >> kChoiceBits * (t % kFrames);
      go_back(choice, pair, in_label);
    }
  }

  int32_t class_of(int32_t label, int64_t t) const { return label < in.V ? label : emissions.class_of_star(t); }

  const Sequence<F>& in;
  const SequenceAlignment& out;
  const int64_t L;
  const int64_t before, frames;  // frames that fill up the first group; all frames
  const int64_t pairs, block, width;
  AlignEmissions<F> emissions;
  double *blank, *label;       // states
  double* labels_with_margin;  // of one vector, on the left
  double* limit;               // the most that a skip into each label may bring: -inf where none is allowed
  double* checkpoints;
  int32_t* choices;  // of a block, [group][pair]
  int64_t pair = 0;
  bool in_label = false;
};

template <class F> Outcome sequence_alignment(const Sequence<F>& sequence, const SequenceAlignment& out, F* score) {
  return AlignRun<F>(sequence, out).run(score);
}

}  // namespace
}  // namespace jax_ctc

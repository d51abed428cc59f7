// SPDX-License-Identifier: Apache-2.0
// What the lattice of scaled values needs of acts: the normalisers of all frames, and the emissions of a block of
// frames.
//
// An emission is exp(x - shift), and a path through the frame is divided by `sum`. Of logits these are the largest
// entry of the row and its sum (normaliser.h). Of log-scores `sum` is 1, and the path is multiplied with exp(shift).
#pragma once

#include "sequence_rows.h"

namespace jax_ctc {
namespace {

template <class V> class EmissionSource : public SequenceRows<typename Parts<V>::F> {
 public:
  using Value = V;

 private:
  using F = typename Parts<Value>::F;
  using Rows = SequenceRows<F>;
  using Rows::in, Rows::pairs, Rows::raw, Rows::most, Rows::N;

 public:
  using Rows::by_table, Rows::table, Rows::classes, Rows::places, Rows::shift, Rows::row;

  EmissionSource(const Sequence<F>& sequence, int64_t pairs) : Rows(sequence, pairs, Parts<Value>::count > 2) {}

  // The bytes of the emissions of one frame.
  int64_t frame_bytes() const { return frame_size() * sizeof(F); }

  void lay_out(Arena& arena, int64_t block_length) {
    block = block_length;
    arena.take(y, Rows::kept_frames(block) * frame_size());
    Rows::lay_out_rows(arena);
    arena.take(table.q, by_table ? kFrames * classes : 0);
  }

  void initialise() {
    InLanes<Value> dead = InLanes<Value>::none();
    dead.e = splat<Integer<Lanes<F>>>(kDead);
    for (int64_t k = 0, n = Rows::kept_frames(block); k < n; ++k)
      store_parts(y + k * frame_size(), width(), dead);  // sets the margins
    Rows::initialise_rows(in.V, -F(__builtin_inf()));
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
      if (first && in.softmax && !keep(t, Rows::normalise_row(t), product)) return false;
      Rows::read_entries(t, 0, in.L);
      if (first && !in.softmax && !keep(t, reference_of_scores(raw, pairs + N), product)) return false;
      if (!first) stay_below(shift[t]);
      const int64_t group = t / kFrames * kFrames;
      split_row(raw, shift[t], are_dithered(group, min_of(group + kFrames, in.length)), t, emissions(t));
    }
    return true;
  }

  // The emissions of a frame in the block that was read last.
  Emissions<Value> emissions(int64_t t) const { return {y + (t - block_begin) * frame_size() + N, width(), pairs}; }

 private:
  int64_t width() const { return Emissions<Value>::width(pairs); }
  int64_t frame_size() const { return Parts<Value>::count * width(); }

  // Multiplies what divides the paths through frame t into the product.
  bool keep(int64_t t, Normaliser<F> n, RunningProduct* product) {
    product->multiply(n.sum);
    if (!in.softmax) product->log_of_others -= n.shift;
    return Rows::keep(t, n);
  }

  // A shift in the residuals is the largest logit of its frame, but a program may pass in any number. With this bound
  // no emission is more than 1, and sums of exponents stay inside an int32.
  void stay_below(F most) {
    for (int64_t i = 0; i < pairs + N; ++i) raw[i] = min_of(raw[i], most);
  }

  bool read_group(int64_t begin, int64_t end, RunningProduct* product) {
    Emissions<Value> at[kFrames];
    const Lanes<F> top = Rows::tabulate_group(begin, end);
    for (int k = 0; k < kFrames; ++k) at[k] = emissions(begin), at[k].parts += k * frame_size();
    const bool dithered = are_dithered(begin, end);
    if (Rows::by_label)
      table.read_logits(top, in.V);
    else if (in.softmax)
      table.read(top, in.V);
    else
      table.read_scores(in.V, most);
    if (dithered && !Rows::by_label)
      in.softmax ? table.template round_with_dither<true>(in.V, begin)
                 : table.template round_with_dither<false>(in.V, begin);
    for (int64_t t = end - 1; product != nullptr && t >= begin; --t)
      if (!keep(t, {table.shift[t - begin], table.sum[t - begin]}, product)) return false;
    if (Rows::by_label)
      split_labels(at, dithered, begin);
    else
      gather(table, places, pairs, in.blank, at);
    return true;
  }

  // Emissions of floats are rounded with a dither in frames that are alike.
  bool are_dithered(int64_t begin, int64_t end) const {
    return sizeof(F) == sizeof(float) && Rows::group_may_be_alike(begin, end);
  }

  // The emissions of a frame from the logits of its labels and of its blank.
  void split_row(const F* x, F shift, bool dithered, int64_t t, const Emissions<Value>& at) {
    if (dithered)
      split_any_emissions(x, pairs + N, shift, at.mantissas(), at.exponents(), dither_of(t));
    else
      split_emissions(x, pairs + N, shift, at.mantissas(), at.exponents());
  }

  void split_labels(const Emissions<Value> (&at)[kFrames], bool dithered, int64_t begin) {
    const int64_t n = pairs + N;
    gather(table.x, places, {0, pairs}, {raw, raw + n, raw + 2 * n, raw + 3 * n});
    for (int k = 0; k < kFrames; ++k) {
      F* const x = raw + k * n;
      store(x + pairs, splat<Lanes<F>>(table.x[kFrames * int64_t(in.blank) + k]));
      split_row(x, table.shift[k], dithered, begin + k, at[k]);
    }
  }

  int64_t block = 1, block_begin = 0;  // frames of a block; the first one of the block that was read last
  F* y;                                // emissions of a block of frames, [frame][part][Emissions::width]
};

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// What the lattice in groups of frames needs of acts and of a direction: ratios (ratios.h) and their derivatives.
//
// The derivative of a ratio, divided by the ratio, is the change of the direction from the blank to the label (eq. 12).
// So one number that is added to the direction of a whole frame changes nothing, and costs no digits.
#pragma once

#include "ratios.h"

namespace jax_ctc {
namespace {

class DirectedRatios {
  using F = float;
  using Vec = Lanes<F>;
  static constexpr int N = kLanes<F>;

 public:
  using Value = Number<Doubles>;

  DirectedRatios(const Sequence<F>& in, const HvpArguments<F>& arguments, int64_t pairs)
      : source(in, pairs, true, true), in(in), arguments(arguments), pairs(pairs) {}

  RatioSource source;
  F* base;  // [T] the direction at the blank
  F* mean;  // [T] the mean of the direction under the softmax, minus `base`

  int64_t frame_bytes() const { return source.frame_bytes() + (source.frame_size() + kept_classes()) * sizeof(F); }

  void lay_out(Arena& arena, int64_t block_length) {
    source.lay_out(arena, block_length);
    block = block_length;
    const int64_t frames = source.kept_frames(block);
    arena.take(changes, frames * source.frame_size()), arena.take(kept, frames * kept_classes());
    arena.take(base, source.whole_groups(in.length)), arena.take(mean, source.whole_groups(in.length));
    arena.take(wide, is_half(in.dtype) ? kFrames * in.V : 0);
  }

  void initialise() {
    source.initialise();
    const int64_t frames = source.kept_frames(block);
    for (int64_t k = 0; k < frames; ++k) store(changes + k * source.frame_size(), Vec{});  // the margins
  }

  // As RatioSource::read. Returns false also if a direction does not fit.
  bool read(int64_t begin, int64_t end, RunningProduct* product, Window slots) {
    const bool first = product != nullptr;
    if (arguments.rows != nullptr && !source.by_table) product = nullptr;  // the residuals have the normalisers
    block_begin = begin - begin % block;
    for (int64_t t = (end - 1) / kFrames * kFrames; t >= begin; t -= kFrames) {
      const int64_t after = min_of(t + kFrames, end);
      if (!source.read(t, after, product, slots)) return false;
      if (!(source.by_table ? change_group(t, after, first) : change_rows(t, after, first))) return false;
    }
    return true;
  }

  Ratios ratios(int64_t t) const {
    Ratios y = source.ratios(t);
    y.pitch = changes_at(t) - y.first;
    return y;
  }
  Growth growth(int64_t t) const { return source.growth(t); }

  // Of a table: the direction minus `base`, of all classes at a group of frames, [class][frame].
  const F* directions_at(int64_t t) const { return kept + (t - block_begin) * kept_classes(); }

  // Whether derivatives may be so small beside their numbers that doubles lose them.
  bool is_too_flat() const { return steepest > 0 && steepest < F(1) / kSteepest; }

  // A row of the direction. A row of halves is valid until the next call with the same `place`.
  const F* direction(int64_t t, int64_t place = 0) const {
    return widened(in.dtype, direction_at(t), in.V, wide + place * in.V);
  }
  const void* direction_at(int64_t t) const {
    return static_cast<const char*>(arguments.direction) + t * source.frame_step;
  }

  // Frame t, or the nearest frame in use, to be prefetched. Within a longer row the hardware does it.
  NextRows next_rows(int64_t t) const {
    if (source.row_bytes > (1 << 16)) return {};
    t = max_of<int64_t>(min_of(t, in.length - 1), 0);
    return {static_cast<const char*>(source.acts_at(t)), static_cast<const char*>(direction_at(t)),
            element_size(in.dtype)};
  }

  // With that many frames no derivative is too large (kMostChange).
  static constexpr int64_t kMostFrames = 1 << 24;

 private:
  static constexpr F kSteepest = F(int64_t(1) << 39);

  int64_t kept_classes() const { return source.by_table ? padded<F>(source.classes) : 0; }
  F* changes_at(int64_t t) const { return changes + (t - block_begin) * source.frame_size() + N; }

  bool change_group(int64_t begin, int64_t end, bool first) {
    const F* rows[kFrames];
    F* to[kFrames];
    for (int k = 0; k < kFrames; ++k) {
      rows[k] = direction(min_of(begin + k, end - 1), k);
      to[k] = changes_at(begin) + k * source.frame_size();
      base[begin + k] = rows[k][in.blank];
    }
    if (begin > 0) prefetch_group(direction_at(begin - kFrames), source.frame_step, source.row_bytes);
    F* const u = kept + (begin - block_begin) * kept_classes();
    tabulate(rows, in.V, F(0), u);
    const F* const y = source.class_ratios(begin);
    const Vec origin = tiled<F>(load_quad(base + begin));
    Vec sum = {}, least = {}, most = {};
    for (int64_t i = 0, n = kFrames * in.V; i < n; i += N) {
      const Vec ratio = load<Vec>(y + i), change = load<Vec>(u + i) - origin;
      const Vec possible = ratio == Vec{} ? Vec{} : change;  // not so behind the last class
      least = min_of(least, possible), most = max_of(most, possible), sum += ratio * change;
      store(u + i, change);
    }
    gather(u, source.places, source.labels_of(begin, end), to);
    if (first) {
      const Vec sums = sum_over<kFrames, N>(sum);
      for (int k = 0; k < kFrames; ++k)
        mean[begin + k] =
            in.softmax ? sums[k] * source.softmax_factors_at(begin)[min_of<int64_t>(k, end - 1 - begin)] : 0;
    }
    return is_finite(sum_of_lanes(sum)) && fits(max_of_lanes(max_of(most, -least)));
  }

  bool change_rows(int64_t begin, int64_t end, bool first) {
    const Window labels = source.labels_of(begin, end);
    F largest = 0;
    bool finite = true;
    for (int64_t t = end - 1; t >= begin; --t) {
      const F* u = direction(t);
      F* to = changes_at(t);
      base[t] = u[in.blank];
      for (int64_t i = labels.begin; i < labels.end; ++i) {
        const F change = i < in.L ? u[in.labels[i]] - base[t] : 0;
        largest = max_of(largest, max_of(change, -change)), finite = finite && is_finite(change);
        to[i] = change;
      }
      if (!first) continue;
      mean[t] =
          in.softmax
              ? F(softmax_dot(source.row(t), in.V, source.shift[t], source.scale[t], u, base[t], next_rows(t - 1)))
              : 0;
      finite = finite && is_finite(mean[t]);
    }
    // Alpha takes whole groups.
    for (int64_t t = end; t < begin + kFrames; ++t)
      __builtin_memcpy(changes_at(t), changes_at(end - 1), pairs * sizeof(F));
    return finite && fits(largest);
  }

  bool fits(F largest) {
    steepest = max_of(steepest, largest);
    return largest < kSteepest;
  }

  const Sequence<F>& in;
  const HvpArguments<F>& arguments;
  const int64_t pairs;
  int64_t block = 1, block_begin = 0;  // frames of a block; the first one of the block that was read last
  F steepest = 0;                      // the largest change from a blank to a class
  F* changes;                          // from the blank to each label, of a block of frames, laid out as ratios
  F* kept;                             // see directions_at
  F* wide;                             // rows of halves as floats
};

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// One sequence: rows -> lattice -> cost and, for training, residuals (docs/kernels.md has the drawing).
//
// Beta sweeps from the last frame to the first and gives the cost. For training it leaves its states behind, and alpha
// sweeps forward and multiplies. Where the states of all frames would not stay in cache, beta leaves a checkpoint every
// `block` frames and each block is computed again when alpha reaches it. The loss alone is the first half of that, so
// its cost has the same bits.
#pragma once

#include "frames.inl"
#include "stream.inl"

namespace jax_ctc {
namespace {

template <class F> class SequenceRun {
  using Z = Integer<F>;

 public:
  SequenceRun(const Sequence<F>& sequence, const Residuals<F>& residuals)
      : in(sequence),
        out(residuals),
        T(in.length),
        L(in.L),
        pairs(padded<F>(L + 1)),
        training(out.columns != nullptr),
        frames(in, pairs) {
    block = block_length();
    Arena arena;
    lay_out(arena);
    arena.cursor = reinterpret_cast<uintptr_t>(in.scratch->reserve(arena.cursor));
    lay_out(arena);
  }

  Verdict run(F* cost) {
    if (!in.feasible) return frames.all_rows_defined() ? Verdict::kImpossible : Verdict::kUndefined;
    initialise();
    if (!sweep_beta()) return Verdict::kUndefined;
    if (z.e < kNoPath) return Verdict::kImpossible;
    // -log p(labels) = sum over frames of log sum exp(x - shift), less log Z of the emissions relative to shift (eq.
    // 7).
    const double ln2 = 0.69314718055994530942;
    const double nats = (__builtin_log(row_sums.m) - __builtin_log(double(z.m))) + double(row_sums.e - z.e) * ln2;
    *cost = F(nats > 0 ? nats : 0);
    if (training) sweep_alpha();
    return Verdict::kFine;
  }

 private:
  // Frames whose states are kept at once: all of them while they fit the second-level cache, else blocks of a quarter
  // of it; for the loss only the emissions are kept. A multiple of kFrames, or all.
  int64_t block_length() const {
    if (!training) return kFoldEvery;
    const int64_t frame = States<F>::size(pairs) * sizeof(F) + frames.frame_bytes();
    if (frame * T <= (3 << 19)) return max_of<int64_t>(T, 1);
    return max_of<int64_t>(kFoldEvery, (1 << 18) / frame / kFrames * kFrames);
  }
  int64_t blocks() const { return (T + block - 1) / block; }

  void lay_out(Arena& arena) {
    const int64_t states = States<F>::size(pairs);
    arena.take(skip, pairs);
    frames.lay_out(arena, block);
    arena.take(work[0], states), arena.take(work[1], states);
    if (training) {
      arena.take(stored, min_of(block, max_of<int64_t>(T, 1)) * states), arena.take(checkpoints, blocks() * states);
      arena.take(gamma, kFrames * pairs);
      arena.take(sums, kFrames * frames.classes), arena.take(by_class, kFrames * frames.classes);
    }
  }

  void initialise() {
    for (int64_t i = 0; i < pairs; ++i) skip[i] = i < L && may_skip(in.labels, i) ? -1 : 0;
    frames.initialise();
    states(work[0]).start(L);
  }

  States<F> states(F* base) const { return States<F>::at(base, pairs); }
  States<F> stored_at(int64_t t) const { return states(stored + t % block * States<F>::size(pairs)); }
  States<F> checkpoint(int64_t k) const { return states(checkpoints + k * States<F>::size(pairs)); }

  void step_beta(int64_t t, States<F> from, States<F> to) {
    step_at<kBeta, false, F>(t, window<F>(t, T, L, pairs), skip, frames.emissions(t), from, to, nullptr);
  }

  bool sweep_beta() {
    States<F> at = states(work[0]), next = states(work[1]);
    for (int64_t k = blocks() - 1; k >= 0; --k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (!frames.read(begin, end, &row_sums)) return false;
      if (training) checkpoint(k).copy(at);
      for (int64_t t = end - 1; t >= begin; --t) {
        const States<F> to = training && k == 0 ? stored_at(t) : next;  // alpha begins with this block
        step_beta(t, at, to);
        next = at, at = to;
      }
    }
    z = total_of(L, at);
    return true;
  }

  void sweep_alpha() {
    States<F> at = states(work[0]), next = states(work[1]);
    at.start(0), next.start(0);
    for (int64_t i = 0; i < kFrames * pairs; ++i) gamma[i] = 0;
    for (int64_t k = 0; k < blocks(); ++k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (k > 0) {
        frames.read(begin, end, nullptr);
        States<F> beta = checkpoint(k);
        for (int64_t t = end - 1; t >= begin; --t) {
          step_beta(t, beta, stored_at(t));
          beta = stored_at(t);
        }
      }
      for (int64_t t = begin; t < end; ++t) {
        // What beta holds after frame t, its emission included.
        Posterior<F> posterior = {stored_at(t), z.e, gamma + t % kFrames * pairs, {}, {}};
        step_at<kAlpha, true>(t, window<F>(t, T, L, pairs), skip, frames.emissions(t), at, next, &posterior);
        keep(t, sum_of_lanes(posterior.blank_sum), sum_of_lanes(posterior.label_sum));
        const States<F> spare = at;
        at = next, next = spare;
      }
    }
  }

  // The residuals of frame t. Occupancies are normalised by the frame's own total: what rounding did to alpha and beta
  // along the way cancels (4e-6 at T = 10,000 by the total of the sequence, 5e-7 so).
  void keep(int64_t t, F blank, F of_labels) {
    const F unit = 1 / (blank + of_labels);
    if (!out.dense) return keep_compact(t, gamma + t % kFrames * pairs, blank, unit);
    blanks[t % kFrames] = blank, units[t % kFrames] = unit;
    if (t % kFrames == kFrames - 1 || t == T - 1) keep_dense(t / kFrames * kFrames, t + 1);
  }

  void keep_dense(int64_t begin, int64_t end) {
    const int64_t classes = frames.classes;
    if constexpr (kLanes<F> >= kFrames) {
      if (frames.by_table) scatter(gamma, pairs, frames.labels, pairs, classes, sums, by_class);
    }
    for (int64_t t = begin; t < end; ++t) {
      F* taken = by_class + t % kFrames * classes;
      if (!frames.by_table) {
        for (int64_t v = 0; v < classes; ++v) taken[v] = 0;
        for (int64_t i = 0; i < L; ++i) taken[in.labels[i]] += gamma[t % kFrames * pairs + i];
      }
      taken[in.blank] = blanks[t % kFrames];
      softmax_less(frames.row(t), in.V, frames.shift[t], frames.scale[t], taken, units[t % kFrames],
                   out.columns + t * out.columns_stride);
    }
  }

  void keep_compact(int64_t t, const F* of_labels, F blank, F unit) {
    F* columns = out.columns + t * out.columns_stride;
    columns[0] = blank * unit;
    if (out.padded) {
      for (int64_t i = 1; i < out.width; ++i) columns[i] = 0;
      for (int64_t i = 0; i < L; ++i) columns[out.slot[i]] += of_labels[i] * unit;
    } else {
      for (int64_t i = 0; i < L; ++i) columns[1 + i] = of_labels[i] * unit;
      for (int64_t i = 1 + L; i < out.width; ++i) columns[i] = 0;
      for (int64_t r = 0; r < out.repeats; ++r) {
        const int64_t i = out.repeated[r];
        columns[out.slot[i]] += columns[1 + i];
        columns[1 + i] = 0;
      }
    }
    out.rows[t * out.rows_stride] = frames.shift[t];
    out.rows[t * out.rows_stride + 1] = frames.scale[t];
  }

  const Sequence<F>& in;
  const Residuals<F>& out;
  const int64_t T, L, pairs;
  const bool training;
  Frames<F> frames;
  int64_t block;
  Product row_sums;
  Scaled<F> z = {};

  Z* skip;              // per pair
  F* work[2];           // states of the frame before and of this one
  F* stored = nullptr;  // beta's states of a block, and of the frame after each block
  F* checkpoints = nullptr;
  F* gamma = nullptr;                 // occupancies of the labels at kFrames frames, not yet normalised,
  F blanks[kFrames], units[kFrames];  // those of the blank, and what normalises them
  F* sums = nullptr;                  // occupancies by class
  F* by_class = nullptr;
};

template <class F> Verdict sequence_cost(const Sequence<F>& sequence, const Residuals<F>& residuals, F* cost) {
  return SequenceRun<F>(sequence, residuals).run(cost);
}

template <class F>
constexpr Kernels<F> kKernels = {sequence_cost<F>, gradient_row<F>, tangent_row<F>, scale_row<F>, dot_row<F>};

}  // namespace
}  // namespace jax_ctc

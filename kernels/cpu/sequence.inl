// SPDX-License-Identifier: Apache-2.0
// One sequence: rows -> lattice -> cost and, for training, residuals (docs/kernels.md has the drawing).
//
// Beta sweeps from the last frame to the first and gives the cost. For training it leaves its states behind, and alpha
// sweeps forward and multiplies. Where the states of all frames would not stay in cache, beta leaves a checkpoint every
// `block` frames and each block is computed again when alpha reaches it. The loss alone is the first half of that, so
// its cost has the same bits.
#pragma once

#include "rows.inl"
#include "stream.inl"
#include "sweep.inl"

namespace jax_ctc {
namespace {

template <class F> class SequenceRun {
  using Z = Integer<F>;
  static constexpr int N = kLanes<F>;

 public:
  SequenceRun(const Sequence<F>& sequence, const Residuals<F>& residuals)
      : in(sequence), out(residuals), T(in.length), L(in.L), pairs(padded<F>(L + 1)), training(out.columns != nullptr) {
    block = block_length();
    lay_out();
    cursor = reinterpret_cast<uintptr_t>(in.scratch->reserve(cursor));
    lay_out();
  }

  Verdict run(F* cost) {
    if (!in.feasible) return all_rows_defined() ? Verdict::kImpossible : Verdict::kUndefined;
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
  // of it; for the loss only the emissions are kept.
  int64_t block_length() const {
    if (!training) return kFoldEvery;
    const int64_t frame = (States<F>::size(pairs) + 2 * Emissions<F>::width(pairs)) * sizeof(F);
    if (frame * T <= (3 << 19)) return T > 0 ? T : 1;
    return max_of<int64_t>(kFoldEvery, (1 << 18) / frame);
  }
  int64_t blocks() const { return (T + block - 1) / block; }

  // Hands out the scratch memory from `cursor` on; from 0 it only measures.
  void lay_out() {
    const int64_t states = States<F>::size(pairs), emissions = Emissions<F>::width(pairs);
    const int64_t kept = min_of(block, max_of<int64_t>(T, 1));
    take(skip[kAlpha], pairs), take(skip[kBeta], pairs);
    take(raw, pairs + N);
    take(p, kept * emissions), take(q, kept * emissions);
    take(shift, T), take(scale, T);
    take(work[0], states), take(work[1], states);
    take(widened_row, is_half(in.dtype) ? in.V : 0);
    if (training) {
      take(stored, kept * states), take(checkpoints, blocks() * states);
      take(gamma, pairs), take(by_class, out.dense ? in.V : 0);
    }
  }
  template <class A> void take(A*& array, int64_t n) {
    array = reinterpret_cast<A*>(cursor);
    cursor += (n * sizeof(A) + 63) / 64 * 64;
  }

  void initialise() {
    const F none = -__builtin_inf();
    for (int64_t i = 0; i < pairs; ++i) {
      skip[kAlpha][i] = i < L && may_skip(in.labels, i) ? -1 : 0;
      // Beta's label i is label L - 1 - i, and its neighbour on the left is the one after that.
      skip[kBeta][i] = i < L && i > 0 && may_skip(in.labels, L - i) ? -1 : 0;
    }
    for (int64_t i = 0; i < pairs + N; ++i) raw[i] = none;
    const int64_t width = Emissions<F>::width(pairs), kept = min_of(block, T);
    for (int64_t k = 0; k < kept; ++k)
      for (int64_t i = 0; i < N; ++i) p[k * width + i] = 1, q[k * width + i] = kDead;
    if (training)
      for (int64_t k = 0; k < kept; ++k) stored_at(k).clear_margin();
  }

  const F* row(int64_t t) const {
    const char* acts = static_cast<const char*>(in.acts) + t * in.acts_stride * size_of(in.dtype);
    return widened(in.dtype, acts, in.V, widened_row);
  }
  Emissions<F> emissions(int64_t t) const {
    const int64_t at = t % block * Emissions<F>::width(pairs) + N;
    return {p + at, q + at, pairs};
  }
  States<F> states(F* base) const { return States<F>::at(base, pairs); }
  States<F> stored_at(int64_t t) const { return states(stored + t % block * States<F>::size(pairs)); }
  States<F> checkpoint(int64_t k) const { return states(checkpoints + k * States<F>::size(pairs)); }

  bool all_rows_defined() const {
    for (int64_t t = 0; t < T; ++t)
      if (!normalise(row(t), in.V).defined()) return false;
    return true;
  }

  bool normalise_row(int64_t t) {
    const Normaliser<F> n = normalise(row(t), in.V);
    if (!n.defined()) return false;
    row_sums.multiply(n.sum);
    shift[t] = n.shift, scale[t] = F(1 / n.sum);
    return true;
  }

  void gather_emissions(int64_t t) {
    const F* x = row(t);
    for (int64_t i = 0; i < L; ++i) raw[i] = x[in.labels[i]];
    raw[pairs] = x[in.blank];
    const Emissions<F> y = emissions(t);
    split_emissions(raw, pairs + N, shift[t], y.p, y.q);
  }

  void step_beta(int64_t t, States<F> from, States<F> to) {
    step_at<kBeta, false, F>(t, L, pairs, skip[kBeta], emissions(t), from, to, nullptr);
  }

  // Rows are taken strictly from the last to the first, so that the blocks do not show in the bits of their product.
  bool sweep_beta() {
    States<F> at = states(work[0]), next = states(work[1]);
    at.start();
    for (int64_t k = blocks() - 1; k >= 0; --k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      for (int64_t t = end - 1; t >= begin; --t) {
        if (!normalise_row(t)) return false;
        gather_emissions(t);
      }
      if (training) checkpoint(k).copy(at);
      for (int64_t t = end - 1; t >= begin; --t) {
        step_beta(t, at, next);
        const States<F> spare = at;
        at = next, next = spare;
      }
    }
    z = total_of(L, at);
    return true;
  }

  void sweep_alpha() {
    States<F> at = states(work[0]), next = states(work[1]);
    at.start();
    for (int64_t k = 0; k < blocks(); ++k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      States<F> beta = checkpoint(k);
      for (int64_t t = end - 1; t >= begin; --t) {
        if (k > 0) gather_emissions(t);
        step_beta(t, beta, stored_at(t));
        beta = stored_at(t);
      }
      for (int64_t t = begin; t < end; ++t) {
        Posterior<F> posterior = {stored_at(t), z.e, gamma, {}, {}};
        step_at<kAlpha, true>(t, L, pairs, skip[kAlpha], emissions(t), at, next, &posterior);
        keep(t, sum_of_lanes(posterior.blank_sum), sum_of_lanes(posterior.label_sum));
        const States<F> spare = at;
        at = next, next = spare;
      }
    }
  }

  // The residuals of frame t. Occupancies are normalised by the frame's own total: what rounding did to alpha and beta
  // along the way cancels (4e-6 at T = 10,000 by the total of the sequence, 5e-7 so).
  void keep(int64_t t, F blank, F labels) {
    const F unit = 1 / (blank + labels);
    F* columns = out.columns + t * out.columns_stride;
    if (out.dense) {
      for (int64_t v = 0; v < in.V; ++v) by_class[v] = 0;
      for (int64_t i = 0; i < L; ++i) by_class[in.labels[i]] += gamma[i];
      by_class[in.blank] = blank;
      scaled_softmax(row(t), in.V, shift[t], scale[t], columns);
      for (int64_t v = 0; v < in.V; ++v) columns[v] -= by_class[v] * unit;
    } else {
      for (int64_t i = 0; i < out.width; ++i) columns[i] = 0;
      columns[0] = blank * unit;
      for (int64_t i = 0; i < L; ++i) columns[out.slot[i]] += gamma[i] * unit;
      out.rows[t * out.rows_stride] = shift[t];
      out.rows[t * out.rows_stride + 1] = scale[t];
    }
  }

  const Sequence<F>& in;
  const Residuals<F>& out;
  const int64_t T, L, pairs;
  const bool training;
  int64_t block;
  uintptr_t cursor = 0;
  Product row_sums;
  Scaled<F> z = {};

  Z* skip[2];  // [direction][pair]
  F* raw;      // one frame's logits of the labels, then, a vector on, of the blank; -inf elsewhere
  F* p;        // emissions of a block of frames
  Z* q;
  F *shift, *scale;     // [T]
  F* work[2];           // states of the frame before and of this one
  F* stored = nullptr;  // beta's states of a block, and of the frame after each block
  F* checkpoints = nullptr;
  F* gamma = nullptr;  // one frame's occupancies of the labels, not yet normalised
  F* by_class = nullptr;
  F* widened_row;
};

template <class F> Verdict sequence_cost(const Sequence<F>& sequence, const Residuals<F>& residuals, F* cost) {
  return SequenceRun<F>(sequence, residuals).run(cost);
}

template <class F>
constexpr Kernels<F> kKernels = {sequence_cost<F>, gradient_row<F>, tangent_row<F>, scale_row<F>, dot_row<F>};

}  // namespace
}  // namespace jax_ctc

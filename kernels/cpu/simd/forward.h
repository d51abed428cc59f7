// SPDX-License-Identifier: Apache-2.0
// One sequence: acts -> its cost and, for training, its residuals. docs/kernels.md has a drawing.
#pragma once

#include "gradient.h"
#include "group_sweep.h"

namespace jax_ctc {
namespace {

// `Sweeps` is a Lattice of the source, or GroupLattice.
template <class F, class Source, class Sweeps> class ForwardRun {
 public:
  ForwardRun(const Sequence<F>& sequence, const SequenceResiduals<F>& residuals)
      : in(sequence),
        out(residuals),
        T(in.length),
        L(in.L),
        pairs(padded<F>(L + 1)),
        training(out.columns != nullptr),
        source(in, pairs),
        lattice(in, source, training) {
    take_from(*in.scratch, [this](Arena& arena) { lay_out(arena); });
  }

  // With GroupLattice. Returns false if numbers do not fit it. The cost is set even so if only alpha's do not.
  bool run_in_groups(F* cost, bool& has_cost) {
    source.initialise(), lattice.initialise();
    if (!lattice.sweep_beta()) return false;
    *cost = cost_of_total(), has_cost = true;
    return !training || lattice.sweep_alpha([this](int64_t t, F blank, F of_labels) { keep(t, blank, of_labels); });
  }

  // With Lattice. `cost` is null if it is set already.
  Outcome run(F* cost) {
    if (!in.feasible) return source.all_rows_defined() ? Outcome::kNoAlignment : Outcome::kNoSoftmax;
    source.initialise(), lattice.initialise();
    if (!lattice.sweep_beta()) return Outcome::kNoSoftmax;
    if (!lattice.has_path()) return Outcome::kNoAlignment;
    if (cost != nullptr) *cost = cost_of_total();
    if (training) lattice.sweep_alpha([this](int64_t t, F blank, F of_labels) { keep(t, blank, of_labels); });
    return Outcome::kFinite;
  }

 private:
  F cost_of_total() const {
    // eq. 7: -log p(labels) = (sum over frames of log sum exp(x - shift)) - log Z, with emissions relative to shift. Of
    // log-scores, -shift takes the place of log sum.
    const double ln2 = 0.69314718055994530942;
    const RunningProduct& sums = lattice.row_sums;
    const auto z = lattice.z;
    const double nats =
        ((__builtin_log(sums.m) - __builtin_log(double(z.m))) + double(sums.e - z.e) * ln2) + sums.log_of_others;
    return F(nats > 0 || !in.softmax ? nats : 0);
  }

  void lay_out(Arena& arena) {
    source.lay_out(arena, lattice.block);
    lattice.lay_out(arena);
    if (training) by_class.lay_out(arena, source.classes);
  }

  // Writes the residuals of frame t.
  void keep(int64_t t, F blank, F of_labels) {
    const Share<F> share(blank + of_labels);
    if (!out.dense) return keep_compact(t, lattice.products(t), blank, share);
    blanks[t % kFrames] = blank, scales[t % kFrames] = share.scale;
    if (t % kFrames == kFrames - 1 || t == T - 1) keep_dense(t / kFrames * kFrames, t + 1);
  }

  void keep_dense(int64_t begin, int64_t end) {
    if (source.by_table) by_class.gather(lattice.products(begin), source.places, pairs, in.blank, blanks);
    for (int64_t t = begin; t < end; ++t) {
      F* taken = by_class.at(t);
      if (!source.by_table) {
        for (int64_t v = 0; v < in.V; ++v) taken[v] = 0;
        for (int64_t i = 0; i < L; ++i) taken[in.labels[i]] += lattice.products(t)[i];
        taken[in.blank] = blanks[t % kFrames];
      }
      F* to = out.columns + t * out.columns_stride;
      if (in.softmax)
        softmax_less(source.row(t), in.V, source.shift[t], source.scale[t], taken, scales[t % kFrames], to);
      else
        minus(taken, in.V, scales[t % kFrames], to);
    }
  }

  void keep_compact(int64_t t, const F* of_labels, F blank, Share<F> share) {
    F* columns = out.columns + t * out.columns_stride;
    columns[0] = share(blank);
    if (out.has_gaps) {
      for (int64_t i = 1; i < out.width; ++i) columns[i] = 0;
      for (int64_t i = 0; i < L; ++i) columns[out.column_of_label[i]] += share(of_labels[i]);
    } else {
      for (int64_t i = 0; i < L; ++i) columns[1 + i] = share(of_labels[i]);
      for (int64_t i = 1 + L; i < out.width; ++i) columns[i] = 0;
      for (int64_t r = 0; r < out.repeats; ++r) {
        const int64_t i = out.repeated[r];
        columns[out.column_of_label[i]] += columns[1 + i];
        columns[1 + i] = 0;
      }
    }
    if (out.rows == nullptr) return;
    out.rows[t * out.rows_stride] = source.shift[t];
    out.rows[t * out.rows_stride + 1] = source.scale[t];
  }

  const Sequence<F>& in;
  const SequenceResiduals<F>& out;
  const int64_t T, L, pairs;
  const bool training;
  Source source;
  Sweeps lattice;
  ByClass<F> by_class;
  F blanks[kFrames], scales[kFrames];  // of each frame: the blank's alpha * beta, and the scale of Share
};

template <class F> Outcome sequence_cost(const Sequence<F>& sequence, const SequenceResiduals<F>& residuals, F* cost) {
  if constexpr (sizeof(F) == 4) {
    bool has_cost = false;
    if (sequence.feasible &&
        ForwardRun<F, RatioSource, GroupLattice>(sequence, residuals).run_in_groups(cost, has_cost))
      return Outcome::kFinite;
    // A cost from beta stays, because the loss alone has the same.
    if (has_cost) cost = nullptr;
  }
  using Source = EmissionSource<Scaled<F>>;
  return ForwardRun<F, Source, Lattice<Source>>(sequence, residuals).run(cost);
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// One sequence: acts -> its cost and, for training, its residuals. docs/kernels.md has a drawing.
#pragma once

#include "class_gradient.h"
#include "group_sweep.h"
#include "residuals.h"

namespace jax_ctc {
namespace {

// eq. 7: -log p(labels) = (sum over frames of log sum exp(x - shift)) - log Z, with emissions relative to shift. Of
// log-scores, -shift takes the place of log sum. `Sweeps` is a Lattice or a GroupLattice after beta's sweep.
template <class F, class Sweeps> F cost_of(const Sequence<F>& in, const Sweeps& lattice) {
  const double ln2 = 0.69314718055994530942;
  const RunningProduct& sums = lattice.row_sums;
  const auto z = lattice.z;
  const double nats = (__builtin_log(sums.m / double(z.m)) + double(sums.e - z.e) * ln2) + sums.log_of_others;
  return F(nats > 0 || !in.softmax ? nats : 0);
}

// In scaled.h's values, which fit any input.
template <class F> class ForwardRun {
 public:
  ForwardRun(const Sequence<F>& sequence, const SequenceResiduals<F>& out)
      : in(sequence),
        training(out.columns != nullptr),
        pairs(padded<F>(in.L + 1)),
        source(in, pairs),
        lattice(in, source, training),
        residuals(in, out, source, pairs) {
    take_from(*in.scratch, [this](Arena& arena) {
      source.lay_out(arena, lattice.block), lattice.lay_out(arena);
      if (training) residuals.lay_out(arena);
    });
  }

  // `cost` is null if it is set already.
  Outcome run(F* cost) {
    if (!in.feasible) return source.all_rows_defined() ? Outcome::kNoAlignment : Outcome::kNoSoftmax;
    source.initialise(), lattice.initialise();
    if (!lattice.sweep_beta()) return Outcome::kNoSoftmax;
    if (!lattice.has_path()) return Outcome::kNoAlignment;
    if (cost != nullptr) *cost = cost_of(in, lattice);
    if (training)
      lattice.sweep_alpha(
          [this](int64_t t, F blank, F of_labels) { residuals.keep(t, lattice.products(0), blank, of_labels); });
    return Outcome::kFinite;
  }

 private:
  using Source = EmissionSource<Scaled<F>>;

  const Sequence<F>& in;
  const bool training;
  const int64_t pairs;
  Source source;
  Lattice<Source> lattice;
  ResidualWriter<F> residuals;
};

// In doubles, where numbers fit them.
class GroupRun {
  using F = float;

 public:
  GroupRun(const Sequence<F>& sequence, const SequenceResiduals<F>& out)
      : in(sequence),
        training(out.columns != nullptr),
        pairs(padded<F>(in.L + 1)),
        source(in, pairs, out.dense),
        lattice(in, source, training),
        gradient(in, out, source, pairs),
        residuals(in, out, source, pairs) {
    take_from(*in.scratch, [this](Arena& arena) {
      source.lay_out(arena, lattice.block), lattice.lay_out(arena);
      if (training) source.keeps_classes ? gradient.lay_out(arena) : residuals.lay_out(arena);
    });
  }

  // Returns false if numbers do not fit. The cost is set even so if only alpha's do not.
  bool run(F* cost, bool& has_cost) {
    source.initialise(), lattice.initialise();
    if (!lattice.sweep_beta()) return false;
    *cost = cost_of(in, lattice), has_cost = true;
    return !training || (source.keeps_classes ? lattice.sweep_alpha(gradient) : lattice.sweep_alpha(residuals));
  }

 private:
  const Sequence<F>& in;
  const bool training;
  const int64_t pairs;
  RatioSource source;
  GroupLattice<RatioSource> lattice;
  ClassGradient gradient;
  GroupResiduals residuals;
};

template <class F> Outcome sequence_cost(const Sequence<F>& sequence, const SequenceResiduals<F>& residuals, F* cost) {
  if constexpr (sizeof(F) == 4) {
    bool has_cost = false;
    if (sequence.feasible && GroupRun(sequence, residuals).run(cost, has_cost)) return Outcome::kFinite;
    // A cost from beta stays, because the loss alone has the same.
    if (has_cost) cost = nullptr;
  }
  return ForwardRun<F>(sequence, residuals).run(cost);
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// A Hessian-vector product of one sequence. The lattice computes the derivative of the occupancies along a direction
// when its values are Duals (docs/ctc.md, eq. 11 to 13), or in groups of frames when its numbers have derivatives.
#pragma once

#include "class_sums.h"
#include "directed_emissions.h"
#include "forward.h"
#include "group_hvp.h"
#include "hvp_writer.h"
#include "sweep.h"

namespace jax_ctc {
namespace {

// In scaled.h's values, which fit any input.
template <class F> class HvpRun {
 public:
  HvpRun(const Sequence<F>& sequence, const HvpArguments<F>& arguments)
      : in(sequence),
        arguments(arguments),
        pairs(padded<F>(in.L + 1)),
        directed(in, arguments, pairs),
        lattice(in, directed, true),
        writer(in, arguments, directed.source) {
    take_from(*in.scratch, [this](Arena& arena) { lay_out(arena); });
  }

  Outcome run() {
    const Outcome taken = directed.source.take(arguments.rows, arguments.rows_stride);
    if (taken != Outcome::kFinite) return taken;
    if (!in.feasible) return directed.source.all_rows_defined() ? Outcome::kNoAlignment : Outcome::kNoSoftmax;
    directed.initialise(), lattice.initialise();
    if (!lattice.sweep_beta()) return Outcome::kNoSoftmax;
    if (!lattice.has_path()) return Outcome::kNoAlignment;
    lattice.sweep_alpha([this](int64_t t, Number<F> blank, Number<F> of_labels) { keep(t, blank, of_labels); });
    return Outcome::kFinite;
  }

 private:
  void lay_out(Arena& arena) {
    directed.lay_out(arena, lattice.block);
    lattice.lay_out(arena);
    if (directed.source.by_table) changes_by_class.lay_out(arena, directed.source.classes);
    writer.lay_out(arena);
  }

  void keep(int64_t t, Number<F> blank, Number<F> of_labels) {
    using V = Lanes<F>;
    const Share<Number<F>> share(blank + of_labels);
    const F* gamma = lattice.products(t);
    F* changes = lattice.products(t, 1);
    for (int64_t i = 0; i < pairs; i += kLanes<F>)
      store(changes + i, share(Number<V>{load<V>(gamma + i), load<V>(changes + i)}));
    of_blank[t % kFrames] = share(blank);
    finite[t % kFrames] = is_finite(share.mean);
    if (!directed.source.by_table) return write(t, nullptr);
    if (t % kFrames < kFrames - 1 && t < in.length - 1) return;
    const int64_t begin = t / kFrames * kFrames;
    prefetch_rows(t + 1);
    if constexpr (kLanes<F> >= kFrames)
      changes_by_class.gather(lattice.products(begin, 1), directed.source.places, pairs, in.blank, load_quad(of_blank));
    for (int64_t k = begin; k <= t; ++k) write(k, changes_by_class.row(k));
  }

  // What the next group of frames reads and writes, from frame t on.
  void prefetch_rows(int64_t t) const {
    const SequenceRows<F>& source = directed.source;
    for (int64_t k = t; k < min_of(t + kFrames, in.length); ++k) {
      prefetch(source.acts_at(k), source.row_bytes), prefetch(directed.direction_at(k), source.row_bytes);
      prefetch<true>(writer.out_at(k), source.row_bytes);
    }
  }

  // Writes row t of the result. `changes`, if not null, are those of the occupancies by class.
  void write(int64_t t, const F* changes) {
    const bool ordinary = is_finite(arguments.cotangent) && finite[t % kFrames] && is_finite(directed.centre[t]) &&
                          is_finite(directed.mean[t]);
    F* y = writer.begin(t);
    writer.write(t, directed.direction(t), directed.centre[t], directed.mean[t], ordinary ? arguments.cotangent : F(1),
                 changes, lattice.products(t, 1), of_blank[t % kFrames], y);
    if (!ordinary) {
      // The result is 0 at a logit of -inf, because nothing changes with it. Like any 0 it stays 0 whatever the
      // cotangent.
      const F* x = directed.source.row(t);
      for (int64_t v = 0; v < in.V; ++v)
        if (x[v] == -F(__builtin_inf())) y[v] = 0;
      multiply(y, in.V, arguments.cotangent, y);
    }
    writer.finish(t);
  }

  const Sequence<F>& in;
  const HvpArguments<F>& arguments;
  const int64_t pairs;
  DirectedSource<F> directed;
  Lattice<DirectedSource<F>> lattice;
  HvpWriter<F> writer;
  ClassSums<F> changes_by_class;
  F of_blank[kFrames];   // changes of the blank's occupancy
  bool finite[kFrames];  // whether the changes of the frame's occupancies are finite
};

template <class F> Outcome sequence_hvp(const Sequence<F>& sequence, const HvpArguments<F>& arguments) {
  if constexpr (sizeof(F) == 4) {
    if (!sequence.feasible) return HvpRun<F>(sequence, arguments).run();
    if (GroupHvpRun(sequence, arguments).run()) return Outcome::kFinite;
    if (arguments.columns == nullptr) {  // the gradient is computed again, where the result will stand
      SequenceResiduals<F> gradient;
      gradient.dense = true;
      gradient.columns = static_cast<F*>(arguments.out), gradient.columns_stride = sequence.acts_stride;
      F cost;
      const Outcome outcome = sequence_cost(sequence, gradient, &cost);
      if (outcome != Outcome::kFinite) return outcome;
      HvpArguments<F> again = arguments;
      again.columns = gradient.columns, again.columns_stride = gradient.columns_stride;
      return HvpRun<F>(sequence, again).run();
    }
  }
  return HvpRun<F>(sequence, arguments).run();
}

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// A Hessian-vector product of one sequence: softmax * (u - softmax . u), minus the derivative of the occupancies along
// u. The lattice computes that derivative when its values are Duals (docs/ctc.md, eq. 11 to 13). Of log-scores there is
// no softmax, and the first term is 0.
#pragma once

#include "class_sums.h"
#include "directed_emissions.h"
#include "sweep.h"

namespace jax_ctc {
namespace {

template <class F> class HvpRun {
 public:
  HvpRun(const Sequence<F>& sequence, const HvpArguments<F>& arguments)
      : in(sequence),
        arguments(arguments),
        pairs(padded<F>(in.L + 1)),
        directed(in, arguments, pairs),
        lattice(in, directed, true) {
    take_from(*in.scratch, [this](Arena& arena) { lay_out(arena); });
  }

  Outcome run() {
    if (arguments.rows != nullptr) {
      for (int64_t t = 0; t < in.length; ++t) {
        const F* row = arguments.rows + t * arguments.rows_stride;
        if (row[1] != row[1]) return Outcome::kNoSoftmax;
        if (row[1] == 0) return Outcome::kNoAlignment;
        directed.source.shift[t] = row[0], directed.source.scale[t] = row[1];
      }
    }
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
    arena.take(buffer, is_half(in.dtype) ? in.V : 0);
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
    for (int64_t k = t + 1; k < min_of(t + 1 + kFrames, in.length); ++k) {
      prefetch(directed.source.acts_at(k), directed.source.row_bytes);
      prefetch(directed.direction_at(k), directed.source.row_bytes);
      prefetch<true>(out_at(k), directed.source.row_bytes);
    }
    if constexpr (kLanes<F> >= kFrames)
      changes_by_class.gather(lattice.products(begin, 1), directed.source.places, pairs, in.blank, load_quad(of_blank));
    for (int64_t k = begin; k <= t; ++k) write(k, changes_by_class.row(k));
  }

  char* out_at(int64_t t) const { return static_cast<char*>(arguments.out) + t * directed.source.frame_step; }

  // Writes row t of the result. `changes`, if not null, are those of the occupancies by class.
  void write(int64_t t, const F* changes) {
    const EmissionSource<Dual<F>>& source = directed.source;
    const bool ordinary = is_finite(arguments.cotangent) && finite[t % kFrames] && is_finite(directed.centre[t]) &&
                          is_finite(directed.mean[t]);
    const F factor = ordinary ? arguments.cotangent : F(1);
    char* out = out_at(t);
    F* y = is_half(in.dtype) ? buffer : reinterpret_cast<F*>(out);
    if (in.softmax)
      softmax_change(source.row(t), in.V, source.shift[t], source.scale[t], directed.direction(t), directed.centre[t],
                     directed.mean[t], factor, changes, y);
    else if (changes != nullptr)
      minus(changes, in.V, factor, y);
    else
      for (int64_t v = 0; v < in.V; ++v) y[v] = 0;
    if (changes == nullptr) {
      const F* of_labels = lattice.products(t, 1);
      for (int64_t i = 0; i < in.L; ++i) y[in.labels[i]] -= factor * of_labels[i];
      y[in.blank] -= factor * of_blank[t % kFrames];
    }
    if (!ordinary) {
      // The result is 0 at a logit of -inf, because nothing changes with it. Like any 0 it stays 0 whatever the
      // cotangent.
      const F* x = source.row(t);
      for (int64_t v = 0; v < in.V; ++v)
        if (x[v] == -F(__builtin_inf())) y[v] = 0;
      multiply(y, in.V, arguments.cotangent, y);
    }
    if constexpr (sizeof(F) == 4)
      if (is_half(in.dtype)) narrow(in.dtype, y, in.V, reinterpret_cast<uint16_t*>(out));
  }

  const Sequence<F>& in;
  const HvpArguments<F>& arguments;
  const int64_t pairs;
  DirectedSource<F> directed;
  Lattice<DirectedSource<F>> lattice;
  ClassSums<F> changes_by_class;
  F of_blank[kFrames];   // changes of the blank's occupancy
  bool finite[kFrames];  // whether the changes of the frame's occupancies are finite
  F* buffer;             // a row of the result, for halves
};

template <class F> Outcome sequence_hvp(const Sequence<F>& sequence, const HvpArguments<F>& arguments) {
  return HvpRun<F>(sequence, arguments).run();
}

}  // namespace
}  // namespace jax_ctc

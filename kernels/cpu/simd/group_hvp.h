// SPDX-License-Identifier: Apache-2.0
// A Hessian-vector product of one sequence, in groups of frames.
#pragma once

#include "class_rows.h"
#include "directed_ratios.h"
#include "group_sweep.h"
#include "hvp_writer.h"

namespace jax_ctc {
namespace {

// Takes changes of occupancies from GroupLattice::sweep_alpha, and writes rows that go through a table.
class ClassHvp {
  using F = float;
  using Vec = Lanes<F>;

 public:
  ClassHvp(const Sequence<F>& in, const HvpArguments<F>& arguments, const DirectedRatios& directed,
           const HvpWriter<F>& writer, int64_t pairs)
      : in(in), arguments(arguments), directed(directed), source(directed.source), writer(writer), rows(pairs) {}

  void lay_out(Arena& arena) { rows.lay_out(arena, source.classes); }
  void start(int64_t t, Window window) {
    rows.start(t, window);
    for (int64_t k = t; k < min_of(t + kFrames, in.length); ++k) prefetch<true>(writer.out_at(k), source.row_bytes);
  }
  auto adder(int frame) { return rows.adder(frame, source.places); }

  void finish(int64_t t, int64_t count, const double (&of_blank)[kFrames], double total) {
    const Vec share = splat<Vec>(F(1 / total)), cotangent = splat<Vec>(arguments.cotangent);
    const Vec factor = in.softmax ? tiled<F>(load_quad(source.softmax_factors_at(t))) : Vec{};
    const Vec mean = tiled<F>(load_quad(directed.mean + t));
    F* to[kFrames];
    for (int k = 0; k < kFrames; ++k) to[k] = k < count ? writer.begin(t + k) : spare;
    const F *const ratios = source.class_ratios(t), *const u = directed.directions_at(t);
    rows.write(source.places, in.blank, of_blank, in.V, to, [=](int64_t i, Vec taken) {
      return (load<Vec>(ratios + i) * factor * (load<Vec>(u + i) - mean) - taken * share) * cotangent;
    });
    for (int64_t k = 0; k < count; ++k) writer.finish(t + k);
  }

 private:
  const Sequence<F>& in;
  const HvpArguments<F>& arguments;
  const DirectedRatios& directed;
  const RatioSource& source;
  const HvpWriter<F>& writer;
  ClassRows rows;
  F spare[kMostClasses];  // for frames behind the last one
};

// The same for rows that do not.
class RowHvp {
  using F = float;

 public:
  RowHvp(const HvpArguments<F>& arguments, const DirectedRatios& directed, const HvpWriter<F>& writer, int64_t pairs)
      : arguments(arguments), directed(directed), writer(writer), pairs(pairs) {}

  void lay_out(Arena& arena) { products.lay_out(arena, pairs); }
  void start(int64_t t, Window window) { products.start(t, window); }
  auto adder(int frame) const { return products.adder(frame); }

  void finish(int64_t t, int64_t count, const double (&of_blank)[kFrames], double total) {
    const F share = F(1 / total);
    for (int64_t k = 0; k < count; ++k) {
      F* const changes = products.at + k * pairs;
      for (int64_t i = 0; i < pairs; i += kLanes<F>) store(changes + i, load<Lanes<F>>(changes + i) * share);
      writer.write(t + k, directed.direction(t + k), directed.base[t + k], directed.mean[t + k], arguments.cotangent,
                   nullptr, changes, F(of_blank[k]) * share, writer.begin(t + k), directed.next_rows(t + k + 1));
      writer.finish(t + k);
    }
  }

 private:
  const HvpArguments<F>& arguments;
  const DirectedRatios& directed;
  const HvpWriter<F>& writer;
  const int64_t pairs;
  GroupProducts products;
};

// In doubles, where numbers, directions and the cotangent fit them.
class GroupHvpRun {
  using F = float;

 public:
  GroupHvpRun(const Sequence<F>& sequence, const HvpArguments<F>& arguments)
      : in(sequence),
        arguments(arguments),
        pairs(padded<F>(in.L + 1)),
        directed(in, arguments, pairs),
        lattice(in, directed, true),
        writer(in, arguments, directed.source),
        by_class(in, arguments, directed, writer, pairs),
        by_row(arguments, directed, writer, pairs) {
    take_from(*in.scratch, [this](Arena& arena) {
      directed.lay_out(arena, lattice.block), lattice.lay_out(arena), writer.lay_out(arena);
      directed.source.by_table ? by_class.lay_out(arena) : by_row.lay_out(arena);
    });
  }

  // Returns false if something does not fit. What has been written is then to be written again.
  bool run() {
    if (!is_finite(arguments.cotangent) || in.length > DirectedRatios::kMostFrames) return false;
    if (directed.source.take(arguments.rows, arguments.rows_stride) != Outcome::kFinite) return false;
    directed.initialise(), lattice.initialise();
    if (!lattice.sweep_beta() || directed.is_too_flat()) return false;
    return directed.source.by_table ? lattice.sweep_alpha(by_class) : lattice.sweep_alpha(by_row);
  }

 private:
  const Sequence<F>& in;
  const HvpArguments<F>& arguments;
  const int64_t pairs;
  DirectedRatios directed;
  GroupLattice<DirectedRatios> lattice;
  HvpWriter<F> writer;
  ClassHvp by_class;
  RowHvp by_row;
};

}  // namespace
}  // namespace jax_ctc

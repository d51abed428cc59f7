// SPDX-License-Identifier: Apache-2.0
// The gradient where rows go through a table, four frames at a time as alpha sweeps.
//
// The softmax needs no exp here: it is the ratio of a class (ratios.h), which beta's sweep has kept, times one number
// for each frame.
#pragma once

#include "class_rows.h"
#include "ratios.h"

namespace jax_ctc {
namespace {

class ClassGradient {
  using F = float;
  using Vec = Lanes<F>;

 public:
  ClassGradient(const Sequence<F>& in, const SequenceResiduals<F>& out, const RatioSource& source, int64_t pairs)
      : in(in), out(out), source(source), rows(pairs) {}

  void lay_out(Arena& arena) { rows.lay_out(arena, source.classes); }
  void start(int64_t t, Window window) { rows.start(t, window); }
  auto adder(int frame) { return rows.adder(frame, source.places); }

  // Writes the gradient of `count` frames. alpha * beta of all states add up to `total`.
  void finish(int64_t t, int64_t count, const double (&of_blank)[kFrames], double total) {
    const Vec share = splat<Vec>(Share<F>(F(total)).scale);
    const Vec factor = in.softmax ? tiled<F>(load_quad(source.softmax_factors_at(t))) : Vec{};
    F* to[kFrames];
    for (int k = 0; k < kFrames; ++k) to[k] = k < count ? out.columns + (t + k) * out.columns_stride : spare;
    const F* const ratios = source.class_ratios(t);
    rows.write(source.places, in.blank, of_blank, in.V, to,
               [=](int64_t i, Vec taken) { return load<Vec>(ratios + i) * factor - taken * share; });
  }

 private:
  const Sequence<F>& in;
  const SequenceResiduals<F>& out;
  const RatioSource& source;
  ClassRows rows;
  F spare[kMostClasses];  // for frames behind the last one
};

}  // namespace
}  // namespace jax_ctc

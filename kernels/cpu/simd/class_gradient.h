// SPDX-License-Identifier: Apache-2.0
// The gradient where rows go through a table, four frames at a time as alpha sweeps.
//
// The softmax needs no exp here: it is the ratio of a class (ratios.h), which beta's sweep has kept, times one number
// for each frame.
#pragma once

#include "class_sums.h"
#include "group_sweep.h"

namespace jax_ctc {
namespace {

class ClassGradient {
  using F = float;
  using Vec = Lanes<F>;
  static constexpr int N = kLanes<F>;
  static constexpr bool kAtOnce = kTogether == kFrames;  // whether products are added as alpha sweeps

 public:
  ClassGradient(const Sequence<F>& in, const SequenceResiduals<F>& out, const RatioSource& source, int64_t pairs)
      : in(in), out(out), source(source), pairs(pairs) {}

  void lay_out(Arena& arena) {
    sums.lay_out(arena, source.classes);
    if constexpr (!kAtOnce) products.lay_out(arena, pairs);
  }

  void start(int64_t t, Window window) {
    sums.clear();
    if constexpr (!kAtOnce) products.start(t, window);
  }

  template <bool kSums = kAtOnce> auto adder(int frame) {  // a template, so that one branch is compiled alone
    if constexpr (kSums) {
      return [sums = sums.adder(source.places)](int64_t i, const Doubles(&of_labels)[kTogether]) {
        HalfFloats at[kFrames];
#pragma GCC unroll 4
        for (int k = 0; k < kFrames; ++k) at[k] = narrowed(of_labels[k]);
        sums.add(at, i);
      };
    } else {
      return products.adder(frame);
    }
  }

  // Writes the gradient of `count` frames. alpha * beta of all states add up to `total`.
  void finish(int64_t t, int64_t count, const double (&of_blank)[kFrames], double total) {
    if constexpr (!kAtOnce) sums.add(products.at, source.places, pairs);
    sums.set(in.blank, Quad<F>{F(of_blank[0]), F(of_blank[1]), F(of_blank[2]), F(of_blank[3])});
    const Vec share = splat<Vec>(Share<F>(F(total)).scale);
    const Vec factor = in.softmax ? tiled<F>(load_quad(source.softmax_factors_at(t))) : Vec{};
    F* to[kFrames];
    for (int k = 0; k < kFrames; ++k) to[k] = k < count ? out.columns + (t + k) * out.columns_stride : spare;
    const F* const ratios = source.class_ratios(t);
    const F* const taken = sums.by_class();
    const auto at = [&](int64_t v, Vec(&y)[kFrames]) {
      Vec by_class[kFrames];
      for (int k = 0; k < kFrames; ++k) {
        const int64_t i = kFrames * v + k * N;
        by_class[k] = load<Vec>(ratios + i) * factor - load<Vec>(taken + i) * share;
      }
      from_groups(by_class, y);
      transpose_groups(y);
    };
    Vec y[kFrames];
    for (int64_t v = 0; v + N <= in.V; v += N) {
      at(v, y);
      for (int k = 0; k < kFrames; ++k) store(to[k] + v, y[k]);
    }
    if (in.V % N == 0) return;
    at(in.V >= N ? in.V - N : 0, y);
    for (int k = 0; k < kFrames; ++k) in.V >= N ? store(to[k] + in.V - N, y[k]) : store_first(to[k], y[k], in.V);
  }

 private:
  const Sequence<F>& in;
  const SequenceResiduals<F>& out;
  const RatioSource& source;
  const int64_t pairs;
  ClassSums<F> sums;
  GroupProducts products;
  F spare[kMostClasses];  // for frames behind the last one
};

}  // namespace
}  // namespace jax_ctc

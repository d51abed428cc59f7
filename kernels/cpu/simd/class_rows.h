// SPDX-License-Identifier: Apache-2.0
// Rows of all classes, four frames at a time as alpha sweeps, where rows go through a table: numbers of the labels are
// added up by class.
#pragma once

#include "class_sums.h"
#include "group_products.h"

namespace jax_ctc {
namespace {

class ClassRows {
  using F = float;
  using Vec = Lanes<F>;
  static constexpr int N = kLanes<F>;
  static constexpr bool kAtOnce = kTogether == kFrames;  // whether numbers are added as alpha sweeps

 public:
  explicit ClassRows(int64_t pairs) : pairs(pairs) {}

  void lay_out(Arena& arena, int64_t table_classes) {
    sums.lay_out(arena, table_classes);
    if constexpr (!kAtOnce) products.lay_out(arena, pairs);
  }

  void start(int64_t t, Window window) {
    sums.clear();
    if constexpr (!kAtOnce) products.start(t, window);
  }

  // As GroupLattice::sweep_alpha asks for. A template, so that one branch is compiled alone.
  template <bool kSums = kAtOnce> auto adder(int frame, const int32_t* places) {
    if constexpr (kSums) {
      return [sums = sums.adder(places)](int64_t i, const auto& of_labels) {
        HalfFloats at[kFrames];
#pragma GCC unroll 4
        for (int k = 0; k < kFrames; ++k) at[k] = narrowed(of_labels[k]);
        sums.add(at, i);
      };
    } else {
      return products.adder(frame);
    }
  }

  // Writes `classes` numbers of each frame. at(i, taken) is what to write in place i of [class][frame], where `taken`
  // are the sums.
  template <class At> void write(const int32_t* places, int32_t blank, const double (&of_blank)[kFrames],
                                 int64_t classes, F* const (&to)[kFrames], At at) {
    if constexpr (!kAtOnce) sums.add(products.at, places, pairs);
    sums.set(blank, Quad<F>{F(of_blank[0]), F(of_blank[1]), F(of_blank[2]), F(of_blank[3])});
    const F* const taken = sums.by_class();
    const auto rows_at = [&](int64_t v, Vec(&y)[kFrames]) {
      Vec by_class[kFrames];
      for (int k = 0; k < kFrames; ++k) {
        const int64_t i = kFrames * v + k * N;
        by_class[k] = at(i, load<Vec>(taken + i));
      }
      from_groups(by_class, y);
      transpose_groups(y);
    };
    Vec y[kFrames];
    for (int64_t v = 0; v + N <= classes; v += N) {
      rows_at(v, y);
      for (int k = 0; k < kFrames; ++k) store(to[k] + v, y[k]);
    }
    if (classes % N == 0) return;
    const int64_t last = max_of<int64_t>(classes - N, 0);
    rows_at(last, y);
    for (int k = 0; k < kFrames; ++k) classes >= N ? store(to[k] + last, y[k]) : store_first(to[k], y[k], classes);
  }

 private:
  const int64_t pairs;
  ClassSums<F> sums;
  GroupProducts products;
};

}  // namespace
}  // namespace jax_ctc

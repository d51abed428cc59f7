// SPDX-License-Identifier: Apache-2.0
// Products alpha * beta of the labels at a group of frames, as GroupLattice::sweep_alpha gives them.
#pragma once

#include "arena.h"
#include "group_numbers.h"
#include "step.h"

namespace jax_ctc {
namespace {

class GroupProducts {
 public:
  float* at = nullptr;  // [frame][pair]

  void lay_out(Arena& arena, int64_t slots) { pairs = slots, arena.take(at, kFrames * pairs); }

  // Those outside the window become 0.
  void start(int64_t t, Window window) {
    if (t == 0) written = {0, pairs};
    const Window before = written;
    written = window;
    if (window.begin == before.begin && window.end >= before.end) return;
    clear(before.begin, min_of(window.begin, before.end)), clear(max_of(window.end, before.begin), before.end);
  }

  // A function of (i, products): products in a vector of slots from i on, at successive frames from `frame` on.
  auto adder(int frame) const {
    return [to = at + frame * pairs, pairs = pairs](int64_t i, const auto& of_labels) {
      int64_t row = i;
      for (const Doubles& products : of_labels) store_narrowed(to + row, products), row += pairs;
    };
  }

 private:
  void clear(int64_t begin, int64_t end) {
    for (int f = 0; f < kFrames; ++f)
      for (int64_t i = begin; i < end; ++i) at[f * pairs + i] = 0;
  }

  int64_t pairs = 0;
  Window written = {};  // products may be other than 0 there
};

}  // namespace
}  // namespace jax_ctc

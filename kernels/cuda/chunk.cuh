// SPDX-License-Identifier: Apache-2.0
// The states of a chunk's frames, computed again from the two that training has kept: by a warp those of 56 pairs, and
// what is made of them, the products of alpha and beta.
//
// A pair depends on the pair on its left, so with each frame one more of a warp's leftmost pairs is wrong. A warp loads
// the states of 64 pairs, and after seven frames 57 are right. So it waits for no other warp. It computes alpha first
// and stores it in shared memory. Then it computes beta, from the last frame to the first one, and overwrites each
// alpha with the product. The operations are the lattice's own, so the states have the same values. A compiler may
// contract sums and products differently here, which can change a last bit.
#pragma once

#include "../common/occupancy.h"
#include "warp.cuh"
#include "workspace.h"

namespace jax_ctc {
namespace cuda {

constexpr int kWindow = 2 * kWarp;           // pairs of a warp, two a lane
constexpr int kOfWindow = kWindow - kChunk;  // that it has products of: even, so that lanes store two cells at once

// alpha before a frame's emission, times beta after it; in shared memory it takes alpha's place.
template <class F> CTC_DEVICE void put_product(Scaled<F>* cell, F product) { cell->m = product; }
template <class F> CTC_DEVICE void put_product(DualCell<F>* cell, Number<F> product) {
  cell->m = product.value, cell->d = product.change;
}
template <class F> CTC_DEVICE F product_in(const Scaled<F>* cell) { return cell->m; }
template <class F> CTC_DEVICE Number<F> product_in(const DualCell<F>* cell) { return {cell->m, cell->d}; }

// Shared memory of a chunk: blanks and labels of `pitch` pairs, an even number, at each frame.
template <class Value> struct Slots {
  Cell<Value>* first;
  int32_t spare;  // from `first` on: what is read in the place of a pair that is not in use
  int32_t pitch;

  static constexpr int64_t cells(int64_t pitch) { return 2 * kChunk * pitch; }
  CTC_DEVICE int32_t step() const { return 2 * pitch; }  // from frame to frame
  CTC_DEVICE Cell<Value>* blank(int d) const { return first + d * step(); }
  CTC_DEVICE Cell<Value>* label(int d) const { return blank(d) + pitch; }
};

template <class Value> struct Chunk {
  using F = decltype(Value::m);
  using State = Pair<Value>;
  // Emissions of so many frames are on their way at the same time: what registers there are for.
  static constexpr int kAhead = sizeof(Value) == 8 ? 4 : 2;

  const Workspace<Value>& ws;
  int32_t count;         // labels
  Integer<F> reference;  // exponent of all products
  int32_t index, begin, frames;

  // Leaves in `slots`, whose first pair is `base`, the products of the pairs from `first` on that are in use.
  CTC_DEVICE void products(const Slots<Value>& slots, int32_t base, int32_t first) const {
    const int32_t end = min_of(first + kOfWindow, count + 1);
    const int32_t k = first - kChunk + 2 * lane_index();
    const bool used = k >= first && k < end;  // the second pair may be one too many, for which there is a slot
    struct alignas(16) Two {
      Cell<Value> at[2];
    };
    Cell<Value>* to = slots.first + (k - base);
    states<kAlpha>(k, [&](const State(&before)[2]) {
      Two blanks, labels;
      store(&blanks.at[0], before[0].blank), store(&blanks.at[1], before[1].blank);
      store(&labels.at[0], before[0].label), store(&labels.at[1], before[1].label);
      if (used) *reinterpret_cast<Two*>(to) = blanks, *reinterpret_cast<Two*>(to + slots.pitch) = labels;
      to += slots.step();
    });
    __syncwarp();
    // Beta's pair k is (blank count - k, label count - 1 - k). The first that is right has a lane's first label.
    const int32_t own = count - first - (kWindow - 1) + 2 * lane_index();
    int32_t at[4], step[4];
    bool here[4];  // blank, label, blank, label
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t is_label = i % 2, k = count - (own + i / 2) - is_label;
      here[i] = k >= first && k < min_of(end, count + 1 - is_label);
      at[i] = here[i] ? (frames - 1) * slots.step() + is_label * slots.pitch + (k - base) : slots.spare;
      step[i] = here[i] ? slots.step() : 0;
    }
    states<kBeta>(own, [&](const State(&after)[2]) {
      Value before[4];  // all are loaded first: the compiler cannot know that no store changes another one
#pragma unroll
      for (int i = 0; i < 4; ++i) before[i] = load(slots.first + at[i]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto of_both = product(before[i], i % 2 == 0 ? after[i / 2].blank : after[i / 2].label, reference);
        if (here[i]) put_product(slots.first + at[i], of_both);
        at[i] -= step[i];
      }
    });
  }

 private:
  // Calls use(states) with the pairs k and k + 1 of a recursion, as it counts them, at each of the chunk's frames:
  // alpha before their emissions, from the first frame on; beta after them, from the last one back. Of the warp's first
  // pair they are of no use after the first frame, of the next one after the second, and so on.
  template <Recursion recursion, class Use> CTC_DEVICE void states(int32_t k, Use use) const {
    constexpr bool kForward = recursion == kAlpha;
    const auto label_at = [&](int32_t i) { return max_of(min_of(i, count - 1), 0); };
    const auto natural = [&](int32_t own) { return kForward ? own : count - 1 - own; };
    int32_t value[3];  // of the labels of pairs k - 1, k, k + 1
#pragma unroll
    for (int i = 0; i < 3; ++i) value[i] = ws.value[label_at(natural(k + i - 1))];
    State at[2];
    Integer<F> skip[2];
    const Cell<Value>* at_label[2];  // emissions of the frame that comes next
    const int64_t step = kForward ? ws.columns : -ws.columns;
    const Cell<Value>* row = ws.emissions + (kForward ? begin : begin + frames - 2) * ws.columns;
    const Pair<Cell<Value>>* const kept = ws.states_of(recursion, index) + k;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int32_t own = k + i;
      at[i] = {Value::none(), Value::none()};
      if (own >= 0 && own <= count) at[i] = {load(&kept[i].blank), load(&kept[i].label)};
      const bool has_label = own >= 0 && own < count;
      skip[i] = has_label && own > 0 && value[i + 1] != value[i] ? -1 : 0;
      at_label[i] = row + (has_label ? ws.column[natural(own)] : 0);
    }
    const auto one = [&](Value blank, const Value(&label)[2]) {
      const auto emit_all = [&] {
#pragma unroll
        for (int i = 0; i < 2; ++i) at[i] = emit(at[i], blank, label[i]);
      };
      if (kForward) emit_all();
      const Value left = from_lane_below(at[1].label);
      at[1] = advance_left_last(at[1], at[0].label, skip[1]);
      at[0] = advance_left_last(at[0], left, skip[0]);
      if (!kForward) emit_all();
      use(at);
    };
    constexpr int kSteps = kChunk - 1;
    Value blank[kSteps], label[kSteps][2];
    const auto fetch = [&](int d) {
      blank[d] = load(row), row += step;
#pragma unroll
      for (int i = 0; i < 2; ++i) label[d][i] = load(at_label[i]), at_label[i] += step;
    };
    use(at);
    if (frames == kChunk) {
#pragma unroll
      for (int d = 0; d < kAhead; ++d) fetch(d);
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        if (d + kAhead < kSteps) fetch(d + kAhead);
        one(blank[d], label[d]);
      }
    } else {
#pragma unroll 1
      for (int d = 1; d < frames; ++d) {
        fetch(0);
        one(blank[0], label[0]);
      }
    }
  }
};

}  // namespace cuda
}  // namespace jax_ctc

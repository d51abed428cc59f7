// SPDX-License-Identifier: Apache-2.0
// Where the products of alpha and beta wait from when a warp has computed those of a window until they are shares: in
// shared memory, or, of sequences with too many pairs for it, in the place of the emissions that they are made of.
#pragma once

#include "../common/batch.h"
#include "chunk.cuh"
#include "launch.cuh"
#include "tuning.h"

namespace jax_ctc {
namespace cuda {

template <class Value> struct Products {
  using Product = StateProduct<Value>;
  using Kept = Pair<Product>;
  static_assert(sizeof(Kept) == sizeof(Cell<Value>), "products take the place of emissions");
  static constexpr int kSpare = 2;  // cells
  static constexpr int kHere =
      kChunk;  // products of the first pairs stay in shared memory: of row element 0 is the blank

  const Workspace<Value>& ws;
  bool whole;  // all are in shared memory
  int32_t pitch;
  Cell<Value>* slots;  // of each chunk; kSpare before
  Kept* here;          // not whole: of each frame

  static constexpr int64_t bytes(int64_t chunks, int64_t pitch, bool whole) {
    return (chunks * Slots<Value>::cells(pitch) + kSpare) * int64_t(sizeof(Cell<Value>)) +
           (whole ? 0 : kChunk * kHere * int64_t(sizeof(Kept)));
  }
  CTC_DEVICE Products(const Workspace<Value>& ws, const OccupancyPlan& plan)
      : ws(ws),
        whole(plan.whole),
        pitch(plan.pitch),
        slots(reinterpret_cast<Cell<Value>*>(shared_memory()) + kSpare),
        here(reinterpret_cast<Kept*>(slots + plan.together * Slots<Value>::cells(plan.pitch))) {}

  // Of the block's chunk c.
  CTC_DEVICE Slots<Value> slots_of(int32_t c) const {
    const int32_t begin = c * int32_t(Slots<Value>::cells(pitch));
    return {slots + begin, -kSpare - begin, pitch};
  }

  CTC_DEVICE Product of_blank(const Chunk<Value>& chunk, const Slots<Value>& slots, int d, int32_t k) const {
    return whole ? product_in(slots.blank(d) + k) : kept(chunk, d, k)->blank;
  }
  CTC_DEVICE Product of_label(const Chunk<Value>& chunk, const Slots<Value>& slots, int d, int32_t k) const {
    return whole ? product_in(slots.label(d) + k) : kept(chunk, d, k)->label;
  }

  // Moves those of `pitch` pairs from `base` on out of shared memory. By all warps of the block, each some frames.
  CTC_DEVICE void keep(const Chunk<Value>& chunk, int32_t base, int warps) const {
    const int32_t pairs = min_of(pitch, chunk.count + 1 - base);
    const Slots<Value> slots = slots_of(0);
    for (int d = warp_index(); d < chunk.frames; d += warps)
      for (int32_t i = lane_index(); i < pairs; i += kWarp)
        *kept(chunk, d, base + i) = {product_in(slots.blank(d) + i), product_in(slots.label(d) + i)};
  }

 private:
  // The product of pair k goes to element k - 7 of the frame's row of emissions. That of label k is at element k + 1 or
  // later. The windows to come begin at pair k + 1 or later, and need emissions of labels from k - 7 on, and the
  // blank's at element 0. So no product overwrites an emission that is still needed.
  CTC_DEVICE Kept* kept(const Chunk<Value>& chunk, int d, int32_t k) const {
    if (k < kHere) return here + d * kHere + k;
    return reinterpret_cast<Kept*>(ws.emissions + (chunk.begin + d) * ws.columns) + (k - kHere + 1);
  }
};

// Shared memory of a block, behind the products.
template <class Value> struct BlockMemory {
  using SharesOf = Share<StateProduct<Value>>;
  SharesOf* shares;  // of each frame of each chunk
  int32_t* next;     // whole: of each label the next one equal to it, or -1
  int32_t* head;     // whole: of each label where its class has its result, or -1 if an equal label is before it

  static constexpr int64_t bytes(int64_t L, int64_t chunks, int64_t pitch, bool whole) {
    return Products<Value>::bytes(chunks, pitch, whole) + chunks * kChunk * int64_t(sizeof(SharesOf)) +
           (whole ? 2 * L * int64_t(sizeof(int32_t)) : 0);
  }
  CTC_DEVICE BlockMemory(int64_t L, const OccupancyPlan& plan)
      : shares(reinterpret_cast<SharesOf*>(shared_memory() +
                                           Products<Value>::bytes(plan.together, plan.pitch, plan.whole))),
        next(reinterpret_cast<int32_t*>(shares + plan.together * kChunk)),
        head(next + L) {}
};

// How the occupancies are launched on the current device.
template <class Value> OccupancyPlan occupancy_plan_of(const Shape& s) {
  const int most_threads = sizeof(Value) == 8 ? 512 : 256;
  const auto bytes = [&](int64_t chunks, int64_t pitch, bool whole) {
    return BlockMemory<Value>::bytes(s.L, chunks, pitch, whole);
  };
  return occupancy_plan(s.L, s.rows(), Chunks::most_frames(s.T) / kChunk, kOfWindow, most_threads, bytes,
                        shared_memory_limit());
}

// Whether a row has an emission for each class, the blank's first, and not one for each label: where classes are fewer,
// because emissions are most of what training moves. Not where products take the place of emissions.
template <class Value> bool emits_classes(const Batch& p) {
  return !Workspace<Value>::kHvp && p.softmax && p.shape.dense() && occupancy_plan_of<Value>(p.shape).whole;
}

}  // namespace cuda
}  // namespace jax_ctc

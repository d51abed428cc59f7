// SPDX-License-Identifier: Apache-2.0
// The recursion over the frames of one sequence, of alpha or of beta, by some warps of a block: kPairs pairs of states
// a lane, kTile frames a tile. All that it reads is in shared memory (strip.cuh): nothing in the chain of dependent
// instructions waits for global memory.
#pragma once

#include "feed.cuh"

namespace jax_ctc {
namespace cuda {

template <class Value, int kPairs, int kTile, bool kTogether> struct Sweep : Strip<Value, kPairs, kTile, kTogether> {
  using Base = Strip<Value, kPairs, kTile, kTogether>;
  using F = typename Workspace<Value>::F;
  using State = Pair<Value>;
  using Base::count, Base::half, Base::memory, Base::recursion, Base::ws, Base::kFed, Base::kSlots, Base::kPairsOfWarp;
  using typename Base::Memory;

  int warp;

  // The pairs of the strip from `base` on, through the frames up to `end`. Leaves the states after `half` of them in
  // ws.ends.
  template <bool kStore> CTC_DEVICE void strip(int32_t base) const {
    const int lane = lane_index();
    const int active = this->active(base);
    if (warp >= active) return;
    const int32_t k = base + warp * kPairsOfWarp + lane * kPairs;  // the lane's first pair
    const bool more = this->more(base), last = warp + 1 == active;

    State at[kPairs];
    Integer<F> skip[kPairs];
    bool used[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      at[i] = {Value::none(), Value::none()};
      if (k + i == 0) at[i].blank.e = 0;  // before the first frame: all weight on the first blank
      used[i] = k + i <= count;
      skip[i] = k + i < count && skips_to(k + i) ? -1 : 0;
    }
    // The label at the right edge goes to the next warp, or by way of global memory to the next strip.
    Memory& mine = memory[warp];
    Cell<Value>* edge_out = last ? &mine.outgoing[0][0].edge : &memory[warp + 1].common[0][0].edge;
    if constexpr (!kFed)  // else the compiler computes it again for each tile: 30 instructions
      edge_out = reinterpret_cast<Cell<Value>*>(computed_again(reinterpret_cast<char*>(edge_out)));
    const Tile begin = {SharedArray<Value>(&mine.label[0][0][lane * kPairs]),
                        SharedArray<Value>(&mine.common[0][0].blank), EdgeOut(edge_out),
                        lane == kWarp - 1 && (!last || more), used};
    Pair<Cell<Value>>* state = kStore ? states_at(0, k) : nullptr;
    Feed<Value, kPairs, kTile, kTogether> feed = {*this, warp};
    if constexpr (!kFed) feed.begin(base, active);
    this->meet(active);
    int32_t turn = 0;
    int slot = 0;  // of the tile
    const auto take_turn = [&](auto work) {
      if constexpr (!kFed) feed.start(turn);
      work();
      if constexpr (!kFed) feed.wait();
      this->meet(active);
      ++turn;
    };
    const auto take_turns = [&](int32_t n) {
#pragma unroll 1
      for (int32_t i = 0; i < n; ++i) take_turn([] {});
    };
    const auto work_on = [&](int32_t first, int n) {
      Tile tile = begin.in(slot);
      if constexpr (!kFed) {
        if (last) tile.edge_out = ws.edges_of(recursion) + 2 * first;
        __syncwarp();  // lanes may have parted
      }
      if (n == kTile)
        whole<kStore>(at, skip, tile, state);
      else
        part<kStore>(at, skip, tile, state, n, half - first);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) at[i] = {fold(at[i].blank), fold(at[i].label)};
      slot = slot + 1 < kSlots ? slot + 1 : 0;
    };
    // A warp works on a tile at each turn, from turn `warp` on. Whole tiles have a loop of their own, which runs up to
    // the frame where the recursions meet and then on from it. In one loop with partial tiles, branches and their
    // conditions took a fifth of a turn.
    take_turns(warp);
    const int32_t before = half % kTile, after = (this->end - half) % kTile;
    if (before > 0) take_turn([&] { work_on(0, before); });
    int32_t first = before, stop = half;
#pragma unroll 1
    for (;;) {
#pragma unroll 1
      for (; first < stop; first += kTile) take_turn([&] { work_on(first, kTile); });
      if (first == half) leave(at, used, k);
      if (stop == this->end - after) break;
      stop = this->end - after;
    }
    if (kStore && after > 0) take_turn([&] { work_on(first, after); });
    take_turns(active - 1 - warp);
    this->meet_before_next_strip(base, active);
  }

 private:
  using EdgeOut = std::conditional_t<kFed, SharedArray<Value>, Cell<Value>*>;
  struct Tile {
    SharedArray<Value> label, common;  // of frame d: at d * kPairsOfWarp; the blank at 2 * d, the edge after it
    EdgeOut edge_out;                  // where the warp's last label goes, frame d at 2 * d
    bool goes_out;                     // if this lane has it, and anybody needs it
    const bool (&used)[kPairs];
    CTC_DEVICE Tile in(int slot) const {
      const auto from = [](auto array, int i) {
        if constexpr (std::is_pointer_v<decltype(array)>)
          return array + i;
        else
          return array.from(i);
      };
      return {from(label, slot * kTile * kPairsOfWarp), from(common, slot * kTile * 2),
              from(edge_out, slot * kTile * 2), goes_out, used};
    }
  };
  struct Frame {
    Value blank, edge, label[kPairs];
  };

  CTC_DEVICE bool skips_to(int32_t k) const {
    return recursion == kAlpha ? may_skip(ws.value, k) : k > 0 && may_skip(ws.value, count - k);
  }
  CTC_DEVICE Pair<Cell<Value>>* states_at(int32_t step, int32_t k) const {
    // The array's place is computed again for each strip: kept in registers it would spill.
    const Workspace<Value> again(computed_again(reinterpret_cast<char*>(ws.summary)), ws.T, ws.columns - 1, true);
    return again.states_of(recursion, Chunks(this->frames).of(int32_t(this->frame(step)))) + k;
  }
  CTC_DEVICE int64_t state_step() const { return 2 * this->frame_step(); }

  CTC_DEVICE void leave(const State (&at)[kPairs], const bool (&used)[kPairs], int32_t k) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (used[i]) {
        Pair<Cell<Value>>* const end_state = ws.ends_of(recursion) + k + i;
        store(&end_state->blank, at[i].blank), store(&end_state->label, at[i].label);
      }
  }

  CTC_DEVICE Frame read(const Tile& tile, int d) const {
    Frame now;
    tile.common.read(2 * d, now.blank, now.edge);
    if constexpr (kPairs == 2)
      tile.label.read(d * kPairsOfWarp, now.label[0], now.label[1]);
    else
      now.label[0] = tile.label[d * kPairsOfWarp];
    return now;
  }

  // One frame, the first of a chunk or not.
  template <bool kStore> CTC_DEVICE void one(State (&at)[kPairs], const Integer<F> (&skip)[kPairs], const Frame& now,
                                             const Tile& tile, int d, Pair<Cell<Value>>*& state, bool first) const {
    const int lane = lane_index();
    if constexpr (kFed)
      tile.edge_out.store_if(tile.goes_out, 2 * d, at[kPairs - 1].label);
    else
      store_if(tile.goes_out, tile.edge_out + 2 * d, at[kPairs - 1].label);
    const Value below = from_lane_below(at[kPairs - 1].label);
    State before[kPairs];
#pragma unroll
    for (int i = kPairs - 1; i >= 0; --i) {
      const Value left = i > 0 ? at[i > 0 ? i - 1 : 0].label : lane == 0 ? now.edge : below;
      before[i] = advance_left_last(at[i], left, skip[i]);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      at[i] = emit(before[i], now.blank, now.label[i]);
      if (kStore && first) {
        store_pair_if(tile.used[i] && recursion == kAlpha, state + i, before[i].blank, before[i].label);
        store_pair_if(tile.used[i] && recursion == kBeta, state + i, at[i].blank, at[i].label);
      }
    }
    if (kStore && first) state += state_step();
  }
  // A tile's frames, each read while the one before is worked on. Eight at a time, written out: the loss's loop over
  // frames was not unrolled by `#pragma unroll`.
  template <bool kStore> CTC_DEVICE void whole(State (&at)[kPairs], const Integer<F> (&skip)[kPairs], const Tile& tile,
                                               Pair<Cell<Value>>*& state) const {
    Frame next = read(tile, 0);
#pragma unroll 1
    for (int first = 0; first < kTile; first += 8) {
      // `more`: the tile has a frame after it, which the compiler can only know if it is told.
      const auto frame_of = [&](int d, bool more = true) {
        const Frame now = next;
        if (more) next = read(tile, d + 1);
        one<kStore>(at, skip, now, tile, d, state, d == first);
      };
      frame_of(first), frame_of(first + 1), frame_of(first + 2), frame_of(first + 3);
      frame_of(first + 4), frame_of(first + 5), frame_of(first + 6), frame_of(first + 7, first + 8 < kTile);
    }
  }
  template <bool kStore> CTC_DEVICE void part(State (&at)[kPairs], const Integer<F> (&skip)[kPairs], const Tile& tile,
                                              Pair<Cell<Value>>*& state, int n, int32_t to_half) const {
#pragma unroll 1
    for (int d = 0; d < n; ++d)
      one<kStore>(at, skip, read(tile, d), tile, d, state, d == 0 || (to_half - d) % kChunk == 0);
  }
};

}  // namespace cuda
}  // namespace jax_ctc

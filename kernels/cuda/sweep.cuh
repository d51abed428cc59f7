// SPDX-License-Identifier: Apache-2.0
// The recursion over the frames of one sequence, in one direction, by some warps of a block: a pair of states a lane.
//
// Beta is alpha on reversed frames and reversed labels: "own" pair k is then (blank count - k, label count - 1 - k),
// and one piece of code serves both. States depend on their left neighbours only, so warp w works one tile of kTile
// frames behind warp w - 1, which leaves its last label of every frame for it in shared memory; once a tile they meet
// at a barrier. Sequences with more pairs than lanes are swept in strips, one after another; what a strip passes on to
// the next goes through global memory. Emissions come in by asynchronous copies, a tile ahead: nothing in the chain of
// dependent instructions waits for global memory.
#pragma once

#include "device.cuh"
#include "workspace.h"

namespace jax_ctc {
namespace cuda {

// Shared memory of one warp; two tiles, by turns.
template <class Value, int kTile> struct WarpMemory {
  Cell<Value> label[2][kTile][kWarp];  // emissions
  Cell<Value> blank[2][kTile];
  Cell<Value> edge[2][kTile];  // the label left of the warp's first pair, before each frame
};

template <class Value> struct Sweep {
  using F = typename Workspace<Value>::F;
  using State = Pair<Value>;
  // Values twice as large come in tiles of half as many frames: the same shared memory.
  static constexpr int kTile = kFoldEvery * int(sizeof(Scaled<F>)) / int(sizeof(Cell<Value>));
  using Memory = WarpMemory<Value, kTile>;

  Direction direction;
  const Workspace<Value>& ws;
  Memory* memory;         // of the warps of this direction
  int warps, warp;        // how many there are; this one
  int32_t count, frames;  // labels and frames in use

  // The pairs [base + 32 * warp, ...) of the strip from `base` on, through frames [begin, end) as this direction counts
  // them. Starts and ends with the states in ws.ends.
  template <bool kStore> CTC_DEVICE void strip(int32_t base, int32_t begin, int32_t end) const {
    const int lane = lane_index();
    const int active = min_of<int>(warps, (count + 1 - base + kWarp - 1) / kWarp);  // warps with a pair in use
    if (warp >= active) return;
    const int32_t k = base + warp * kWarp + lane;
    const bool used = k <= count, more = base + warps * kWarp <= count;
    Memory& mine = memory[warp];

    State at = {Value::none(), Value::none()};
    Pair<Cell<Value>>* const end_state = ws.ends_of(direction) + k;
    if (used && begin > 0) at = {load(&end_state->blank), load(&end_state->label)};
    if (k == 0 && begin == 0) at.blank.e = 0;  // before the first frame: all weight on the first blank
    const Integer<F> skip = k < count && skips_to(k) ? -1 : 0;
    // A lane without a label takes the blank's emission: what it computes flows nowhere.
    const int32_t column = k < count ? ws.column[natural(k)] : 0;
    if (warp == 0 && base == 0)
      for (int i = lane; i < 2 * kTile; i += kWarp) store(&mine.edge[i / kTile][i % kTile], Value::none());

    const int32_t tiles = (end - begin + kTile - 1) / kTile;
#pragma unroll 1
    for (int32_t turn = -1; turn < tiles + active - 1; ++turn) {
      const int32_t j = turn - warp;
      if (j + 1 >= 0 && j + 1 < tiles) fetch(mine, column, base > 0, begin, end, j + 1);
      copy_commit();
      if (j >= 0 && j < tiles) {
        copy_wait<1>();  // all but those just started
        __syncwarp();
        const int32_t first = begin + j * kTile;
        const bool last_lane = lane == kWarp - 1;
        const Tile tile = {SharedArray<Value>(&mine.label[j & 1][0][lane]),
                           SharedArray<Value>(mine.blank[j & 1]),
                           SharedArray<Value>(mine.edge[j & 1]),
                           edge_out(j, first, active),
                           last_lane && (warp + 1 < active || more),
                           states_at(first, k),
                           state_step(),
                           used};
        if (end - first >= kTile)
          whole<kStore>(at, skip, tile);
        else
          part<kStore>(at, skip, tile, end - first);
        at = {fold(at.blank), fold(at.label)};
      }
      if (active == 1)
        __syncwarp();
      else
        barrier(1 + direction, active * kWarp);
    }
    if (used) store(&end_state->blank, at.blank), store(&end_state->label, at.label);
  }

 private:
  struct Tile {
    SharedArray<Value> label, blank, edge;  // this lane's are kWarp apart
    Cell<Value>* edge_out;                  // where the warp's last label goes
    bool goes_out;                          // if this lane has it, and anybody needs it
    Pair<Cell<Value>>* state;               // of the first frame
    int64_t state_step;
    bool used;
  };
  struct Frame {
    Value label, blank, edge;
  };

  CTC_DEVICE int32_t natural(int32_t own_label) const {
    return direction == kAlpha ? own_label : count - 1 - own_label;
  }
  CTC_DEVICE bool skips_to(int32_t k) const {
    return direction == kAlpha ? may_skip(ws.value, k) : k > 0 && may_skip(ws.value, count - k);
  }
  CTC_DEVICE int64_t frame(int32_t step) const { return direction == kAlpha ? step : frames - 1 - step; }
  CTC_DEVICE Pair<Cell<Value>>* states_at(int32_t step, int32_t k) const {
    return ws.states_of(direction) + frame(step) * ws.columns + k;
  }
  CTC_DEVICE int64_t state_step() const { return direction == kAlpha ? ws.columns : -ws.columns; }

  // The label at the right edge goes to the next warp, or by way of global memory to the next strip's first.
  CTC_DEVICE Cell<Value>* edge_out(int32_t j, int32_t first, int active) const {
    return warp + 1 < active ? memory[warp + 1].edge[j & 1] : ws.edges_of(direction) + first;
  }

  // Starts copying what tile j needs.
  CTC_DEVICE void fetch(Memory& mine, int32_t column, bool strip_before, int32_t begin, int32_t end, int32_t j) const {
    const int lane = lane_index(), slot = j & 1;
    const int32_t first = begin + j * kTile, n = min_of<int32_t>(kTile, end - first);
    const Cell<Value>* const row = ws.emissions + frame(first) * ws.columns;
    const int64_t step = state_step();
    const Cell<Value>* from = row + column;
#pragma unroll 4
    for (int d = 0; d < n; ++d, from += step) copy_async(&mine.label[slot][d][lane], from);
    if (lane >= n) return;
    copy_async(&mine.blank[slot][lane], row + lane * step);
    if (warp == 0 && strip_before) copy_async(&mine.edge[slot][lane], ws.edges_of(direction) + first + lane);
  }

  CTC_DEVICE Frame read(const Tile& tile, int d) const { return {tile.label[d * kWarp], tile.blank[d], tile.edge[d]}; }

  template <bool kStore> CTC_DEVICE void one(State& at, Integer<F> skip, const Frame& now, const Tile& tile, int d,
                                             Pair<Cell<Value>>*& state) const {
    const int lane = lane_index();
    store_if(tile.goes_out, tile.edge_out + d, at.label);
    const Value below = from_lane_below(at.label);
    const State before = advance_left_last(at, lane == 0 ? now.edge : below, skip);
    at = emit(before, now.blank, now.label);
    if (kStore) {
      store_pair_if(tile.used && direction == kAlpha, state, before.blank, before.label);
      store_pair_if(tile.used && direction == kBeta, state, at.blank, at.label);
      state += tile.state_step;
    }
  }
  // A tile's frames, each read while the one before is worked on.
  template <bool kStore> CTC_DEVICE void whole(State& at, Integer<F> skip, const Tile& tile) const {
    Frame next = read(tile, 0);
    Pair<Cell<Value>>* state = tile.state;
#pragma unroll 8  // 16 would need more registers than there are
    for (int d = 0; d < kTile; ++d) {
      const Frame now = next;
      if (d + 1 < kTile) next = read(tile, d + 1);
      one<kStore>(at, skip, now, tile, d, state);
    }
  }
  template <bool kStore> CTC_DEVICE void part(State& at, Integer<F> skip, const Tile& tile, int n) const {
    Pair<Cell<Value>>* state = tile.state;
#pragma unroll 1
    for (int d = 0; d < n; ++d) one<kStore>(at, skip, read(tile, d), tile, d, state);
  }
};

}  // namespace cuda
}  // namespace jax_ctc

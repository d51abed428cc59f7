// SPDX-License-Identifier: Apache-2.0
// The recursion over the frames of one sequence, of alpha or of beta, by some warps of a block: kPairs pairs of states
// a lane, kTile frames a tile.
//
// Beta is alpha on reversed frames and reversed labels: "own" pair k is then (blank count - k, label count - 1 - k),
// and one piece of code serves both. States depend on their left neighbours only, so warp w works one tile of kTile
// frames behind warp w - 1, which leaves its last label of every frame for it in shared memory; once a tile they meet
// at a barrier. Sequences with more pairs than lanes have are swept in strips: by one block, one after another, or
// (kTogether) by a block each, at the same time. What a strip passes on to the next goes through global memory. One
// tile begins where the recursions meet, so the first may be shorter, as the last: kChunk frames of a tile are then the
// frames of a chunk (workspace.h). Emissions come in by asynchronous copies, a tile ahead: nothing in the chain of
// dependent instructions waits for global memory. (Copies started between the operations of a frame, and not all of a
// tile's together, made the chain 15 % longer.)
#pragma once

#include "tuning.h"
#include "warp.cuh"
#include "workspace.h"

namespace jax_ctc {
namespace cuda {

// Blocks that sweep at the same time hand edges over by their values alone: no flag, no fence. A cell is 8 bytes, which
// are stored and loaded at once, and its exponent says which strip it comes from. Exponents fill less than 2^29 of the
// 2^32 numbers, so there is room for seven strips that pass something on. Before the first one's it is 0.
static_assert(kStripsTogether <= 8);
CTC_FN int32_t stamp_of(int32_t strip) { return int32_t(uint32_t(strip + 1) << 29); }
CTC_FN int32_t stamped(int32_t e, int32_t stamp) { return int32_t(uint32_t(e) + uint32_t(stamp)); }
CTC_FN int32_t unstamped(int32_t e, int32_t stamp) { return int32_t(uint32_t(e) - uint32_t(stamp)); }
CTC_FN bool has_stamp(int32_t e, int32_t stamp) {
  const int32_t own = unstamped(e, stamp);
  return own >= kNone && own < -kNone;
}

template <class Value, int kPairs, int kTile, bool kTogether> struct Sweep {
  using F = typename Workspace<Value>::F;
  using State = Pair<Value>;
  static constexpr int kSlots = 2;  // tiles: one at work, one on its way
  static constexpr int kPairsOfWarp = kPairs * kWarp;
  static_assert(kTile <= kFoldEvery, "mantissas are folded once a tile");
  static_assert(kTile % kChunk == 0 && kChunk == 8, "whole() works off a chunk at a time");

  // What all lanes of a warp need of a frame: the blank's emission; the label left of the warp's first pair, before it.
  struct Common {
    Cell<Value> blank, edge;
  };
  struct Memory {                                    // shared, of one warp
    Cell<Value> label[kSlots][kTile][kPairsOfWarp];  // emissions
    Common common[kSlots][kTile];
    Common outgoing[kTogether ? kTile : 1];  // the edge of the last warp, before it goes to the next strip
  };

  Recursion recursion;
  const Workspace<Value>& ws;
  Memory* memory;         // of all warps
  int warps, warp;        // how many sweep; this one
  int32_t count, frames;  // labels and frames in use
  int32_t half;           // frames of this recursion up to where both meet

  // The pairs of the strip from `base` on, through the first `end` frames as this recursion counts them. Leaves the
  // states after `half` of them in ws.ends.
  template <bool kStore> CTC_DEVICE void strip(int32_t base, int32_t end) const {
    const int lane = lane_index();
    const int active = min_of<int>(warps, (count + 1 - base + kPairsOfWarp - 1) / kPairsOfWarp);  // with a pair in use
    if (warp >= active) return;
    const int32_t k = base + warp * kPairsOfWarp + lane * kPairs;  // the lane's first pair
    const bool more = base + warps * kPairsOfWarp <= count;
    Memory& mine = memory[warp];
    const int32_t number = kTogether ? base / (warps * kPairsOfWarp) : 0;
    const bool receives = kTogether && warp == 0 && base > 0;

    State at[kPairs];
    Integer<F> skip[kPairs];
    int32_t column[kPairs];
    bool used[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      at[i] = {Value::none(), Value::none()};
      if (k + i == 0) at[i].blank.e = 0;  // before the first frame: all weight on the first blank
      used[i] = k + i <= count;
      skip[i] = k + i < count && skips_to(k + i) ? -1 : 0;
      // A pair without a label takes the blank's emission: what is computed of it flows nowhere.
      column[i] = k + i < count ? ws.column[natural(k + i)] : 0;
    }
    if (warp == 0 && base == 0)
      for (int i = lane; i < kSlots * kTile; i += kWarp) store(&mine.common[i / kTile][i % kTile].edge, Value::none());

    const int32_t missing = (kTile - half % kTile) % kTile;  // frames of the first tile
    const int32_t tiles = (end + missing + kTile - 1) / kTile;
    if (tiles > 0) fetch(mine, column, base > 0, end, missing, 0, 0);
    copy_commit();
    Cell<Value> coming = {};  // the edge of the lane's frame of the next tile, if it was there when it was looked for
    if constexpr (kTogether) {
      if (receives) look_for(coming, end, missing, 0);
    }
    int slot = 0;  // of tile j
    Pair<Cell<Value>>* state = kStore ? states_at(0, k) : nullptr;
#pragma unroll 1
    for (int32_t turn = 0; turn < tiles + active - 1; ++turn) {
      const int32_t j = turn - warp;
      if (j >= 0 && j < tiles) {
        if (j + 1 < tiles) fetch(mine, column, base > 0, end, missing, j + 1, 1 - slot);  // where tile j - 1 was
        copy_commit();
        if constexpr (kTogether) {
          if (receives) receive(mine, coming, end, missing, j, slot, number - 1), look_for(coming, end, missing, j + 1);
        }
        copy_wait<1>();  // all but those just started
        __syncwarp();
        const int32_t first = begin_of(j, missing), n = end_of(j, missing, end) - first;
        if (first == half) leave(at, used, k);
        const Tile tile = {SharedArray<Value>(&mine.label[slot][0][lane * kPairs]),
                           SharedArray<Value>(&mine.common[slot][0].blank), edge_out(slot, first, active),
                           lane == kWarp - 1 && (warp + 1 < active || more), used};
        if (n == kTile)
          whole<kStore>(at, skip, tile, state);
        else
          part<kStore>(at, skip, tile, state, n, half - first);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) at[i] = {fold(at[i].blank), fold(at[i].label)};
        if constexpr (kTogether) {
          if (more && warp + 1 == active) pass_on(mine, first, n, number);
        }
        slot = 1 - slot;
      }
      if (active == 1)
        __syncwarp();
      else if (recursion == kAlpha)
        barrier<1>(active * kWarp);
      else
        barrier<2>(active * kWarp);
    }
    if (end == half) leave(at, used, k);
  }

 private:
  struct Tile {
    SharedArray<Value> label, common;  // of frame d: at d * kPairsOfWarp; the blank at 2 * d, the edge after it
    Cell<Value>* edge_out;             // where the warp's last label goes, frame d at 2 * d
    bool goes_out;                     // if this lane has it, and anybody needs it
    const bool (&used)[kPairs];
  };
  struct Frame {
    Value blank, edge, label[kPairs];
  };

  CTC_DEVICE int32_t natural(int32_t own_label) const {
    return recursion == kAlpha ? own_label : count - 1 - own_label;
  }
  CTC_DEVICE bool skips_to(int32_t k) const {
    return recursion == kAlpha ? may_skip(ws.value, k) : k > 0 && may_skip(ws.value, count - k);
  }
  CTC_DEVICE int64_t frame(int32_t step) const { return recursion == kAlpha ? step : frames - 1 - step; }
  CTC_DEVICE int64_t frame_step() const { return recursion == kAlpha ? ws.columns : -ws.columns; }
  CTC_DEVICE Pair<Cell<Value>>* states_at(int32_t step, int32_t k) const {
    // The array's place is computed again for each strip: kept in registers it would spill.
    const Workspace<Value> again(computed_again(reinterpret_cast<char*>(ws.summary)), ws.T, ws.columns - 1, true);
    return again.states_of(recursion, Chunks(frames).of(int32_t(frame(step)))) + k;
  }
  CTC_DEVICE int64_t state_step() const { return 2 * frame_step(); }

  // Frames of tile j.
  CTC_DEVICE int32_t begin_of(int32_t j, int32_t missing) const { return max_of(j * kTile - missing, 0); }
  CTC_DEVICE int32_t end_of(int32_t j, int32_t missing, int32_t end) const {
    return min_of((j + 1) * kTile - missing, end);
  }

  CTC_DEVICE void leave(const State (&at)[kPairs], const bool (&used)[kPairs], int32_t k) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (used[i]) {
        Pair<Cell<Value>>* const end_state = ws.ends_of(recursion) + k + i;
        store(&end_state->blank, at[i].blank), store(&end_state->label, at[i].label);
      }
  }

  // The label at the right edge goes to the next warp, or by way of global memory to the next strip's first.
  CTC_DEVICE Cell<Value>* edge_out(int slot, int32_t first, int active) const {
    return warp + 1 < active ? &memory[warp + 1].common[slot][0].edge
           : kTogether       ? &memory[warp].outgoing[0].edge
                             : ws.edges_of(recursion) + 2 * first;
  }

  // Starts copying what tile j needs.
  CTC_DEVICE void fetch(Memory& mine, const int32_t (&column)[kPairs], bool strip_before, int32_t end, int32_t missing,
                        int32_t j, int slot) const {
    const int lane = lane_index();
    const int32_t first = begin_of(j, missing), n = end_of(j, missing, end) - first;
    const Cell<Value>* const row = ws.emissions + frame(first) * ws.columns;
    const int64_t step = frame_step();
    const auto copy_frame = [&](int d) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) copy_async(&mine.label[slot][d][lane * kPairs + i], row + d * step + column[i]);
    };
    if (n == kTile) {
#pragma unroll
      for (int d = 0; d < kTile; ++d) copy_frame(d);
    } else {
#pragma unroll 1
      for (int d = 0; d < n; ++d) copy_frame(d);
    }
    if (lane >= n) return;
    copy_async(&mine.common[slot][lane].blank, row + lane * step);
    if (!kTogether && warp == 0 && strip_before)
      copy_async(&mine.common[slot][lane].edge, ws.edges_of(recursion) + 2 * (first + lane));
  }

  // By the lanes of the last warp, a frame each: its edge at a tile, to the next strip.
  CTC_DEVICE void pass_on(const Memory& mine, int32_t first, int32_t n, int32_t strip) const {
    const int lane = lane_index();
    __syncwarp();
    if (lane >= n) return;
    const Value edge = load(&mine.outgoing[lane].edge);
    store_now(ws.edges_of(recursion) + 2 * (first + lane), {edge.m, stamped(edge.e, stamp_of(strip))});
  }
  // By the lanes of the first warp, a frame each: what the strip before leaves at tile j, if it is there.
  CTC_DEVICE void look_for(Cell<Value>& coming, int32_t end, int32_t missing, int32_t j) const {
    const int32_t t = begin_of(j, missing) + lane_index();
    if (t < end_of(j, missing, end)) coming = load_now(ws.edges_of(recursion) + 2 * t);
  }
  // The same, waited for, and where the warp reads it. By then it has mostly come: a tile was worked on meanwhile, and
  // who has waited once is further behind.
  CTC_DEVICE void receive(Memory& mine, Cell<Value> coming, int32_t end, int32_t missing, int32_t j, int slot,
                          int32_t from) const {
    const int lane = lane_index();
    const int32_t t = begin_of(j, missing) + lane;
    if (t >= end_of(j, missing, end)) return;
    const Cell<Value>* const cell = ws.edges_of(recursion) + 2 * t;
    const int32_t stamp = stamp_of(from);
    wait_until([&] { return has_stamp(coming.e, stamp); }, [&] { coming = load_now(cell); });
    store(&mine.common[slot][lane].edge, Value{coming.m, unstamped(coming.e, stamp)});
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
      const auto frame_of = [&](int d) {
        const Frame now = next;
        if (d + 1 < kTile) next = read(tile, d + 1);
        one<kStore>(at, skip, now, tile, d, state, d == first);
      };
      frame_of(first), frame_of(first + 1), frame_of(first + 2), frame_of(first + 3);
      frame_of(first + 4), frame_of(first + 5), frame_of(first + 6), frame_of(first + 7);
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

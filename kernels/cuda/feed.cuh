// SPDX-License-Identifier: Apache-2.0
// Feeds a sweeping warp: copies emissions to shared memory ahead of it, and takes edges from strip to strip.
#pragma once

#include "strip.cuh"
#include "tuning.h"

namespace jax_ctc {
namespace cuda {

// Strips that sweep at the same time hand edges over without a flag or a fence. An edge is a cell of 8 bytes, which is
// stored and loaded as a whole. The upper three bits of its exponent are a stamp: the number of the strip that stored
// it, plus one. Exponents need 29 bits, so seven strips can pass edges on. Each call sets every cell to 0 first
// (rows.cu), which is the stamp of no strip.
static_assert(kStripsTogether <= 8);
CTC_FN int32_t stamp_of(int32_t strip) { return int32_t(uint32_t(strip + 1) << 29); }
CTC_FN int32_t stamped(int32_t e, int32_t stamp) { return int32_t(uint32_t(e) + uint32_t(stamp)); }
CTC_FN int32_t unstamped(int32_t e, int32_t stamp) { return int32_t(uint32_t(e) - uint32_t(stamp)); }
CTC_FN bool has_stamp(int32_t e, int32_t stamp) {
  const int32_t own = unstamped(e, stamp);
  return own >= kNone && own < -kNone;
}

template <class Value, int kPairs, int kTile, bool kTogether> struct Feed : Strip<Value, kPairs, kTile, kTogether> {
  using Base = Strip<Value, kPairs, kTile, kTogether>;
  using Base::begin_of, Base::end_of, Base::memory, Base::ws, Base::kAhead, Base::kSlots;

  int warp;  // that is fed
  SharedArray<Value> labels = SharedArray<Value>(&memory[warp].label[0][0][lane_index() * kPairs]);
  SharedArray<Value> common = SharedArray<Value>(&memory[warp].common[0][lane_index() % kTile].blank);
  int32_t base = 0, tiles = 0, number = 0;
  bool receives = false, passes_on = false;
  int32_t copied = 0;                     // frames whose copies have been started
  int slot = 0;                           // of the tile that begins there
  const Cell<Value>* label[kPairs] = {};  // the emissions of the lane's pairs at that frame
  const Cell<Value>* blank = nullptr;     // that of the blank, `lane` frames later
  Cell<Value> coming = {};  // the edge of the lane's frame of the next tile, if it was there when it was looked for

  // A strip of pairs, by a warp that does nothing else.
  CTC_DEVICE void strip(int32_t base) {
    const int active = this->active(base);
    if (warp >= active) return;
    const int32_t turns = this->turns(active);
    begin(base, active);
    this->meet(active);
#pragma unroll 1
    for (int32_t turn = 0; turn < turns; ++turn) {
      start(turn);
      wait();
      this->meet(active);
    }
    if (passes_on) pass_on(tiles - 1);
    __syncwarp();  // lanes return from it at different times
    this->meet_before_next_strip(base, active);
  }

  // Before the first turn.
  CTC_DEVICE void begin(int32_t strip_base, int active) {
    base = strip_base, tiles = Base::tiles(), number = base / (this->warps * Base::kPairsOfWarp);
    receives = kTogether && warp == 0 && base > 0;
    passes_on = Base::kFed && this->more(base) && warp + 1 == active;
    find_emissions();
    if (warp == 0 && base == 0)
      for (int i = lane_index(); i < kSlots * kTile; i += kWarp)
        store(&memory[0].common[i / kTile][i % kTile].edge, Value::none());
    for (int32_t j = 0; j < kAhead; ++j) {
      if (j < tiles) fetch();
      copy_commit();
    }
    if constexpr (kTogether) {
      if (receives) look_for(0), receive(0), look_for(1);
    }
    wait();
  }
  // What later turns need, and what the last one has left.
  CTC_DEVICE void start(int32_t turn) {
    if (turn >= warp && copied < this->end) fetch();  // to where the tile was on which the warp worked last
    copy_commit();
    if (passes_on && turn > warp) pass_on(turn - 1 - warp);
    if constexpr (kTogether) {
      if (receives) receive(turn + 1), look_for(turn + 2);
    }
  }
  // For the copies that the next turn needs. Lanes may have parted, and a barrier wants them together.
  CTC_DEVICE void wait() const {
    copy_wait<kAhead - 1>();
    __syncwarp();
  }

 private:
  CTC_DEVICE static int slot_of(int32_t j) { return j % kSlots; }

  CTC_DEVICE void find_emissions() {
    const Cell<Value>* const row = ws.emissions + this->frame(0) * ws.columns;
    copied = 0, slot = 0, blank = row + lane_index() * this->frame_step();
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      // A pair without a label takes the blank's emission: what is computed of it flows nowhere.
      const int32_t k = base + warp * Base::kPairsOfWarp + lane_index() * kPairs + i;
      label[i] = row + (k < this->count ? ws.column[this->natural(k)] : 0);
    }
  }

  // Starts copying what the warp needs of the next tile.
  CTC_DEVICE void fetch() {
    const int lane = lane_index();
    const int32_t n = min_of(kTile - (copied == 0 ? this->missing() : 0), this->end - copied);
    const int64_t step = this->frame_step();
    const auto copy_frame = [&](int d) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) labels.copy((slot * kTile + d) * Base::kPairsOfWarp + i, label[i] + d * step);
    };
    const auto advance = [&](int64_t cells) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) label[i] += cells;
      blank += cells;
    };
    if (lane < n) {
      common.copy(slot * kTile * 2, blank);
      if (!kTogether && warp == 0 && base > 0)
        common.copy(slot * kTile * 2 + 1, ws.edges_of(this->recursion) + 2 * (copied + lane));
    }
    if (n == kTile) {
#pragma unroll
      for (int d = 0; d < kTile; ++d) copy_frame(d);
      advance(kTile * step);
    } else {
#pragma unroll 1
      for (int d = 0; d < n; ++d) copy_frame(d);
      advance(n * step);
    }
    copied += n, slot = slot + 1 < kSlots ? slot + 1 : 0;
  }

  // By a lane for each frame: the edges that the warp has left at tile j, to the next strip.
  CTC_DEVICE void pass_on(int32_t j) const {
    const int32_t t = begin_of(j) + lane_index();
    if (t >= end_of(j)) return;
    const Value edge = load(&memory[warp].outgoing[slot_of(j)][lane_index()].edge);
    Cell<Value>* const to = ws.edges_of(this->recursion) + 2 * t;
    if constexpr (kTogether)
      store_now(to, {edge.m, stamped(edge.e, stamp_of(number))});
    else
      store(to, edge);
  }
  // By a lane for each frame: what the strip before leaves at tile j, if it is there.
  CTC_DEVICE void look_for(int32_t j) {
    const int32_t t = begin_of(j) + lane_index();
    if (t < end_of(j)) coming = load_now(ws.edges_of(this->recursion) + 2 * t);
  }
  // Waits for the edge that look_for() asked for, and puts it where the first warp reads it. Mostly it has come,
  // because a turn has passed.
  CTC_DEVICE void receive(int32_t j) {
    const int32_t t = begin_of(j) + lane_index();
    if (t >= end_of(j)) return;
    const Cell<Value>* const cell = ws.edges_of(this->recursion) + 2 * t;
    const int32_t stamp = stamp_of(number - 1);
    wait_until([&] { return has_stamp(coming.e, stamp); }, [&] { coming = load_now(cell); });
    store(&memory[0].common[slot_of(j)][lane_index()].edge, Value{coming.m, unstamped(coming.e, stamp)});
  }
};

}  // namespace cuda
}  // namespace jax_ctc

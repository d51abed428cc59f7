// SPDX-License-Identifier: Apache-2.0
// What the warps that sweep a strip of pairs, and those that feed them, know of each other: the tiles of frames, and
// the shared memory through which emissions and edges go.
//
// Beta is alpha on reversed frames and reversed labels: "own" pair k is then (blank count - k, label count - 1 - k),
// and one piece of code serves both. States depend on their left neighbours only, so warp w works one tile of kTile
// frames behind warp w - 1, which leaves its last label of every frame for it in shared memory. Sequences with more
// pairs than lanes have are swept in strips: by one block, one after another, or (kTogether) by a block each, at the
// same time. What a strip passes on to the next goes through global memory. One tile begins where the recursions meet,
// so the first may be shorter, as the last: kChunk frames of a tile are then the frames of a chunk (workspace.h).
//
// A sweeping warp finds in shared memory all that it reads, copied there ahead of it. Where sweeping warps have a
// scheduler each (kFed), a warp for each of them does that: a tile's addresses, copies and waits took a sweeping warp
// longer than its frames did (of 213 cycles a frame 71 were the recursion, on an H200 at T = 400, L = 100). Elsewhere
// sweeping warps feed themselves. Once a turn, of a tile, all meet at a barrier.
#pragma once

#include "warp.cuh"
#include "workspace.h"

namespace jax_ctc {
namespace cuda {

template <class Value, int kPairs, int kTile, bool kTogether> struct Strip {
  static constexpr bool kFed = kPairs == 1 && sizeof(Value) == 8;
  static constexpr int kAhead = kFed ? 2 : 1;  // tiles that are copied before they are worked on
  static constexpr int kSlots = kAhead + 1;
  static constexpr int kPairsOfWarp = kPairs * kWarp;
  static_assert(kTile <= kFoldEvery, "mantissas are folded once a tile");
  static_assert(kTile % kChunk == 0 && kChunk == 8, "a tile has whole chunks, and whole() takes 8 frames at a time");

  // What all lanes of a warp need of a frame: the blank's emission; the label left of the warp's first pair, before it.
  struct Common {
    Cell<Value> blank, edge;
  };
  struct Memory {                                    // shared, of one sweeping warp
    Cell<Value> label[kSlots][kTile][kPairsOfWarp];  // emissions
    Common common[kSlots][kTile];
    Common outgoing[kFed ? kSlots : 1][kTile];  // the edges of the last warp, before a feeding warp passes them on
  };

  Recursion recursion;
  const Workspace<Value>& ws;
  Memory* memory;         // of all sweeping warps
  int warps;              // how many sweep
  int32_t count, frames;  // labels and frames in use
  int32_t half;           // frames of this recursion up to where both meet
  int32_t end;            // frames that it goes through

  // Warps that have a pair in use, in the strip of the pairs from `base` on; whether there is another strip.
  CTC_DEVICE int active(int32_t base) const {
    return min_of<int>(warps, (count + 1 - base + kPairsOfWarp - 1) / kPairsOfWarp);
  }
  CTC_DEVICE bool more(int32_t base) const { return base + warps * kPairsOfWarp <= count; }

  // All warps of the strip, of one recursion.
  CTC_DEVICE void meet(int active) const {
    const int threads = (kFed ? 2 * active : active) * kWarp;
    if (recursion == kAlpha)
      barrier<1>(threads);
    else
      barrier<2>(threads);
  }
  // The last edges are passed on after the last turn, and the block's next strip reads them.
  CTC_DEVICE void meet_before_next_strip(int32_t base, int active) const {
    if (kFed && !kTogether && more(base)) meet(active);
  }
  // A strip lasts so many turns, with a barrier before and after each. At turn t warp w works on tile t - w.
  CTC_DEVICE int32_t turns(int active) const { return tiles() + active - 1; }

  CTC_DEVICE int32_t missing() const { return (kTile - half % kTile) % kTile; }  // frames of the first tile
  CTC_DEVICE int32_t tiles() const { return (end + missing() + kTile - 1) / kTile; }
  CTC_DEVICE int32_t begin_of(int32_t tile) const { return max_of(tile * kTile - missing(), 0); }
  CTC_DEVICE int32_t end_of(int32_t tile) const { return min_of((tile + 1) * kTile - missing(), end); }

  CTC_DEVICE int32_t natural(int32_t own_label) const {
    return recursion == kAlpha ? own_label : count - 1 - own_label;
  }
  CTC_DEVICE int64_t frame(int32_t step) const { return recursion == kAlpha ? step : frames - 1 - step; }
  CTC_DEVICE int64_t frame_step() const { return recursion == kAlpha ? ws.columns : -ws.columns; }
};

}  // namespace cuda
}  // namespace jax_ctc

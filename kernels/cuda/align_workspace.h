// SPDX-License-Identifier: Apache-2.0
// The memory that the two kernels of an alignment pass on to each other, a block of bytes a sequence. Host and device.
#pragma once

#include "workspace.h"

namespace jax_ctc {
namespace cuda {

// Frames are swept in tiles: the choices of a pair at the frames of a tile, four bits each, fill a word. Choices are
// kept for a block of frames at a time.
#ifndef JAX_CTC_BLOCK_FRAMES
#define JAX_CTC_BLOCK_FRAMES 2048  // fewer in tests; a block begins with an even tile
#endif
constexpr int kTileFrames = 8;
constexpr int64_t kBlockFrames = JAX_CTC_BLOCK_FRAMES;
static_assert(kBlockFrames % (2 * kTileFrames) == 0);

// Pairs, labels and columns are those of workspace.h. Arrays stand in the order of their alignment, so each begins at a
// multiple of it. Python computes the size for symbolic T and L (_kernels.py).
template <class F> struct AlignWorkspace {
  int64_t columns, width;  // of an array of all pairs; of a row of choices
  SequenceSummary* summary;
  Pair<double>* states;       // (2, columns) where shared memory has no room for them
  Pair<double>* checkpoints;  // (T / kBlockFrames, columns): the states before each block but the first
  double* nats;               // (T): what the score needs of a row beside emissions; NaN if the row is undefined
  F* star;                    // (T): the largest logit but the blank's, stored in the type of acts
  uint32_t* choices;          // (tiles of a block, width)
  int32_t* star_class;        // (T): the first class that has it
  int32_t *value, *column;    // (columns) of label k: its class; its column in labels + 1
  int64_t bytes;

  // A path takes at most one pair a frame. So a block needs the choices of no more pairs than it has frames, and one.
  CTC_INLINE AlignWorkspace(void* base, int64_t T, int64_t L)
      : columns(L + 1), width(min_of(columns, kBlockFrames + 1)) {
    char* const begin = static_cast<char*>(base);
    char* at = begin;
    const int64_t tiles = min_of((T + kTileFrames - 1) / kTileFrames, kBlockFrames / kTileFrames);
    take(summary, 1, at);
    take(states, 2 * columns, at);
    take(checkpoints, T / kBlockFrames * columns, at);
    take(nats, T, at);
    take(star, T, at);
    take(choices, tiles * width, at);
    take(star_class, T, at);
    take(value, columns, at), take(column, columns, at);
    bytes = at - begin;
  }
};

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Chooses the sizes of launches: warps, blocks, shared memory. Host code. No result depends on these choices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace jax_ctc {
namespace cuda {

// The lattice: a block sweeps alpha or beta of one sequence. A lane has one pair of states (a blank and a label), or
// two of them side by side, which cost a warp 1.6 times the instructions of one. On an H200 an instruction took a
// scheduler two cycles, whether it had one warp or four. (56 % are of integers, at half rate, which explains 1.1
// cycles. The rest is not explained.) So one pair a lane is faster where each warp that sweeps has a scheduler to
// itself, and two are where schedulers are shared. Doubles and Duals would need more registers for two pairs than there
// are.
//
// Longer tiles cost less a frame, shorter ones less where warps wait for each other. On an H200 16 frames take 15 %
// less than 8 with a lone warp; with four warps as much where frames are 400, and 9 % less where they are 1500; 11 %
// more where strips sweep together, and 20 % more with 13 warps.
//
// Both recursions share a block if a warp each does, which saves them a hand-over through global memory; else each has
// a multiprocessor to itself: two warps of each in one block took 57 us for 49 at (400, 16, 32, 100) on an H200.
//
// Where sweeping warps have a scheduler each, as many warps feed them (strip.cuh): there are free slots to start their
// instructions in. One more warp sums the log-normalisers of the rows. (A feeding warp that did so, for 32 frames a
// turn, took longer than a turn: 24 us for 20.6 at (400, 16, 32, 100).)

// Shared memory before that of the warps. block_number() needs 4 bytes of it; with 16 the rest stays aligned.
constexpr int kCountBytes = 16;

constexpr int kSchedulers = 4;  // of a multiprocessor

// The most strips that sweep at the same time: three bits of an exponent name one (feed.cuh).
constexpr int kStripsTogether = 8;

// Strips, a block each, in which the warps that sweep `sequences` of up to L labels with a pair a lane have a scheduler
// each; 0 if they cannot. Each block has a multiprocessor of its own: of two blocks with fewer warps nobody knows which
// schedulers they get.
inline int strips_with_schedulers(int64_t sequences, int64_t L, int64_t multiprocessors) {
  const int64_t warps = (L + 1 + 31) / 32, strips = (warps + kSchedulers - 1) / kSchedulers;
  return strips <= kStripsTogether && 2 * sequences * strips <= multiprocessors ? int(strips) : 0;
}

struct LatticeShape {
  int recursions;  // of a block
  int warps;       // that sweep one recursion; more pairs go in strips
  int threads;
  size_t shared;
};

// `warp_bytes` of shared memory a warp; devices with less sweep in more strips, one after another.
inline LatticeShape lattice_shape(int64_t L, int pairs, int strips_together, bool fed, int most_threads,
                                  size_t warp_bytes, size_t shared_limit) {
  const int64_t of_warp = 32 * pairs, all = (L + 1 + of_warp - 1) / of_warp;
  const int64_t wanted = (all + strips_together - 1) / strips_together;
  const int64_t fitting = int64_t((shared_limit - kCountBytes) / warp_bytes);
  const int64_t with_feeder = fed ? 2 : 1, most = (most_threads / 32 - 1) / with_feeder;
  const int64_t warps = std::max<int64_t>(1, std::min<int64_t>({most, wanted, fitting}));
  const int64_t recursions = warps == 1 && fitting >= 2 ? 2 : 1, sweeping = recursions * warps;
  return {int(recursions), int(warps), int(32 * (with_feeder * sweeping + 1)),
          kCountBytes + size_t(sweeping) * warp_bytes};
}

// The occupancies: a block has some chunks of a sequence, and works on `together` of them at a time. Where the pairs of
// a whole sequence are too many for shared memory, it has `pitch` of them at a time.
struct OccupancyPlan {
  int64_t parts;  // blocks of a sequence
  int32_t chunks, together;
  int32_t warps;
  int32_t pitch;  // even
  bool whole;
};

// `bytes(together, pitch, whole)` of shared memory; `window`: pairs of a warp.
template <class Bytes> OccupancyPlan occupancy_plan(int64_t L, int64_t rows, int64_t chunks_of_sequence, int64_t window,
                                                    int most_threads, Bytes bytes, int64_t shared_limit) {
  // Bytes of each of two blocks on a multiprocessor, which has 1 KB more than a block may have, and sets 1 KB aside for
  // each block.
  const int64_t for_two = (shared_limit - 1024) / 2;
  const int64_t pairs = L + 1, pitch = (pairs + 1) / 2 * 2, windows = (pairs + window - 1) / window;
  // Labels are read once a block; but a batch with few rows needs all its blocks at the same time, and one with fewer
  // still all multiprocessors. The bounds of rows were chosen by hand. In between a block has as many chunks as its
  // warps have windows to work on: 14.7 us for 17.1 at (400, 16, 32, 100) on an H200.
  const int64_t few = 4;  // warps of a block, where they are enough for the windows
  const int64_t at_once = std::max<int64_t>(1, few / windows), chunks = rows < 4096 ? 1 : rows < 32768 ? at_once : 8;
  const int64_t parts = (chunks_of_sequence + chunks - 1) / chunks;
  int64_t together = 1, warps = most_threads / 32;
  if (bytes(1, pitch, true) > shared_limit) {
    const int64_t none = bytes(1, 0, false), fitting = (shared_limit - none) / (bytes(1, window, false) - none);
    warps = std::clamp<int64_t>(fitting, 1, warps);
    return {parts, int32_t(chunks), 1, int32_t(warps), int32_t(warps * window), false};
  }
  if (bytes(1, pitch, true) <= for_two) {  // else a multiprocessor has one block: of as many warps as it may
    warps = windows <= few ? few : 2 * few;
    together = std::clamp<int64_t>(warps / windows, 1, chunks);
    while (together > 1 && bytes(together, pitch, true) > for_two) together /= 2;
  }
  return {parts, int32_t(chunks), int32_t(together), int32_t(warps), int32_t(pitch), true};
}

}  // namespace cuda
}  // namespace jax_ctc

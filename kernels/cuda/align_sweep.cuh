// SPDX-License-Identifier: Apache-2.0
// The recursion of the best path (docs/ctc.md, section 7) by a block of threads, and the way back. It is the CPU's
// (cpu/simd/align.h), operation by operation and in double, so the path is the same bit for bit.
//
// A warp takes a group of 64 pairs through a tile of 8 frames, two pairs a lane. A pair depends on itself and on the
// one on its left, both at the frame before. So the group begins 8 pairs further left than the 56 that it answers for:
// what it lacks there spoils one more pair a frame, and never one of the 56. Warps meet once a tile.
#pragma once

#include "align_workspace.h"
#include "numbers.cuh"
#include "warp.cuh"

namespace jax_ctc {
namespace cuda {

constexpr int kPairsOfLane = 2, kPairsOfWarp = kPairsOfLane * kWarp - kTileFrames;

template <class A> struct AlignArguments {
  Shape shape;
  int32_t blank;
  bool softmax, in_shared;  // of AlignOptions; where the states are
  const A* acts;
  int32_t *path, *label_index;
  Computed<A>* score;
  char* scratch;
  int64_t stride;
};

// Pairs that lie on a path: those that can be reached from the first frame, and from which a path can reach `target`
// or a later pair at frame `end` - 1. Beyond `top` no path ends.
struct PairWindow {
  int64_t target, top, end;
  CTC_DEVICE int64_t first(int64_t t) const { return max_of<int64_t>(0, target - (end - 1 - t)); }
  CTC_DEVICE int64_t last(int64_t t) const { return min_of(top, t); }
  // Of the tile that begins at frame t.
  CTC_DEVICE int64_t groups(int64_t t) const {
    return (last(t + kTileFrames - 1) - first(t) + kPairsOfWarp) / kPairsOfWarp;
  }
};

// What chose the state of a pair, four bits a frame. If none is set, the path stayed in its state.
constexpr uint32_t kBlankAfterLabel = 1, kLabelAfterBlank = 2, kLabelAfterLabel = 4;
constexpr int kChoiceBits = 4;

// x - reference exactly for floats, and -inf for an impossible class. Doubles are bounded, so that no sum overflows.
CTC_DEVICE double relative(float x, double reference) { return double(x) - reference; }
CTC_DEVICE double relative(double x, double reference) {
  constexpr double kMost = 1e290;
  const double d = x - reference;
  return d > kMost ? kMost : d < -kMost ? -infinity<double>() : d;
}

template <class A> class PathSweep {
  using F = Computed<A>;

 public:
  CTC_DEVICE PathSweep(const AlignArguments<A>& arguments, const AlignWorkspace<F>& workspace, int64_t first_row,
                       Pair<double>* both_states)
      : a(arguments),
        ws(workspace),
        acts(arguments.acts + first_row * arguments.shape.V),
        row_pitch(arguments.shape.B * arguments.shape.V),
        path(arguments.path + first_row),
        label_index(arguments.label_index + first_row),
        states(both_states),
        count(workspace.summary->count),
        frames(workspace.summary->frames) {}

  // Before the first frame, of all pairs. In the other states too nothing is reached.
  CTC_DEVICE void start() const {
    for (int64_t i = threadIdx.x; i <= count; i += blockDim.x) {
      states[i] = {i == 0 ? 0 : -infinity<double>(), -infinity<double>()};
      states[ws.columns + i] = {-infinity<double>(), -infinity<double>()};
    }
  }
  // Before block `block`, which begins with an even tile.
  CTC_DEVICE void save(int64_t block) const {
    Pair<double>* const to = ws.checkpoints + (block - 1) * ws.columns;
    for (int64_t i = threadIdx.x; i <= count; i += blockDim.x) to[i] = states[i];
  }
  CTC_DEVICE void restore(int64_t block, PairWindow window) const {
    if (block == 0) return start();
    const Pair<double>* const from = ws.checkpoints + (block - 1) * ws.columns;
    const int64_t begin = max_of<int64_t>(0, window.first(block * kBlockFrames) - 1);
    for (int64_t i = begin + threadIdx.x; i <= window.top; i += blockDim.x)
      states[i] = states[ws.columns + i] = from[i];
  }

  // Takes the states from before frame `begin` to after frame `end` - 1. Pairs outside the window may become anything,
  // because no pair inside it reads them. If `keep`, the choices are stored.
  CTC_DEVICE void sweep(int64_t begin, int64_t end, PairWindow window, bool keep) const {
    const int warps = blockDim.x / kWarp, me = uniform_warp_index();
    const int64_t base = window.first(begin);
    int64_t t = begin, group = me;
    Entries ahead;
    fetch(t, window.first(t), group, ahead);
    while (t < end) {
      const Entries now = ahead;
      const int64_t here = t, mine = group, groups = window.groups(t);
      group += warps;
      const bool tile_ends = group >= groups;
      if (tile_ends) t += kTileFrames, group = me;
      if (t < end) fetch(t, window.first(t), group, ahead);
      uint32_t* const choices = keep ? ws.choices + (here - begin) / kTileFrames * ws.width - base : nullptr;
      if (mine < groups) advance(here, window, mine, now, choices);
      if (tile_ends) __syncthreads();
    }
  }

  // Of two equal ends, the last label. Returns the sum of emissions.
  CTC_DEVICE double end(int32_t& pair, bool& in_label) const {
    const Pair<double>* const last = states + (frames + kTileFrames - 1) / kTileFrames % 2 * ws.columns;
    const double blank = last[count].blank, label = count > 0 ? last[count - 1].label : -infinity<double>();
    in_label = count > 0 && label >= blank;
    pair = count - in_label;
    return in_label ? label : blank;
  }

  // Writes the path at frames [begin, end), from the state that it has at the last of them, and goes on to the state
  // that it has at the frame before. By one warp. A path takes at most one pair a frame, so the lanes hold all words
  // that a tile can need, also if they were loaded a tile earlier.
  CTC_DEVICE void trace(int64_t begin, int64_t end, PairWindow window, int32_t& pair, bool& in_label) const {
    const int lane = lane_index();
    const int64_t base = window.first(begin);
    const auto word = [&](int64_t t) {  // of the pair as far left as the lane says
      const int64_t i = pair - lane - base;
      return i >= 0 ? ws.choices[(t - begin) / kTileFrames * ws.width + i] : 0;
    };
    int64_t t = begin + (end - begin - 1) / kTileFrames * kTileFrames;
    uint32_t ahead = t < end ? word(t) : 0;
    int32_t of_ahead = pair;
    for (; t >= begin && t < end; t -= kTileFrames) {
      const uint32_t words = ahead;
      const int32_t of_words = of_ahead;
      if (t > begin) ahead = word(t - kTileFrames), of_ahead = pair;
      int32_t pair_of_lane = 0;
      bool lane_in_label = false;
#pragma unroll
      for (int k = kTileFrames - 1; k >= 0; --k) {
        if (t + k >= end) continue;
        if (lane == k) pair_of_lane = pair, lane_in_label = in_label;
        const uint32_t choice = __shfl_sync(kAllLanes, words, of_words - pair) >> kChoiceBits * k;
        if (!in_label)
          in_label = choice & kBlankAfterLabel, pair -= in_label;
        else if (choice & kLabelAfterLabel)
          --pair;
        else
          in_label = !(choice & kLabelAfterBlank);
      }
      if (lane < kTileFrames && t + lane < end) write(t + lane, pair_of_lane, lane_in_label);
    }
  }

  CTC_DEVICE void fill_from(int64_t t) const {
    for (t += threadIdx.x; t < a.shape.T; t += blockDim.x) path[t * a.shape.B] = label_index[t * a.shape.B] = -1;
  }

 private:
  // What a lane's pairs need of acts at the frames of a tile.
  struct Entries {
    A blank[kTileFrames], label[kPairsOfLane][kTileFrames];
    bool may_skip[kPairsOfLane];
  };

  CTC_DEVICE static int64_t first_of_lane(int64_t first, int64_t group) {
    return first + group * kPairsOfWarp - kTileFrames + kPairsOfLane * lane_index();
  }

  // A pair without a label gets the blank's entries. What becomes of its label is never read.
  CTC_DEVICE void fetch(int64_t t, int64_t first, int64_t group, Entries& to) const {
    const A* const row = acts + t * row_pitch;
    const int64_t i = first_of_lane(first, group);
#pragma unroll
    for (int k = 0; k < kTileFrames; ++k)
      if (t + k < frames) to.blank[k] = row[k * row_pitch + a.blank];
#pragma unroll
    for (int j = 0; j < kPairsOfLane; ++j) {
      const bool labelled = i + j >= 0 && i + j < count;
      const int32_t label = labelled ? ws.value[i + j] : a.blank;
      to.may_skip[j] = labelled && may_skip(ws.value, i + j);
      const bool is_star = label == a.shape.V;
      const A* at = is_star ? reinterpret_cast<const A*>(ws.star) + t : row + label;
      const int64_t pitch = is_star ? 1 : row_pitch;
#pragma unroll
      for (int k = 0; k < kTileFrames; ++k)
        if (t + k < frames) to.label[j][k] = at[k * pitch];
    }
  }

  CTC_DEVICE void advance(int64_t t, PairWindow window, int64_t group, const Entries& x, uint32_t* choices) const {
    constexpr double kImpossible = -HUGE_VAL;
    const int64_t tile = t / kTileFrames, i = first_of_lane(window.first(t), group);
    const Pair<double>* const from = states + tile % 2 * ws.columns;
    Pair<double> at[kPairsOfLane];
    double most[kPairsOfLane];  // that a skip may bring
    uint32_t chosen[kPairsOfLane] = {};
#pragma unroll
    for (int j = 0; j < kPairsOfLane; ++j) {
      at[j] = i + j >= 0 && i + j <= count ? from[i + j] : Pair<double>{kImpossible, kImpossible};
      most[j] = x.may_skip[j] ? -kImpossible : kImpossible;
    }
#pragma unroll
    for (int k = 0; k < kTileFrames; ++k) {
      if (t + k >= frames) continue;
      const double of_blank = double(widen(x.blank[k]));
      const bool impossible = of_blank == kImpossible;
      const double reference = impossible ? 0 : of_blank;
      const double below = __shfl_up_sync(kAllLanes, at[kPairsOfLane - 1].label, 1);
      double left = lane_index() == 0 ? kImpossible : below;
#pragma unroll
      for (int j = 0; j < kPairsOfLane; ++j) {
        const double b = at[j].blank, l = at[j].label;
        const double skip = min_of(left, most[j]), either = max_of(b, l);
        chosen[j] |= (left > b ? kBlankAfterLabel << kChoiceBits * k : 0) |
                     (b > l ? kLabelAfterBlank << kChoiceBits * k : 0) |
                     (skip > either ? kLabelAfterLabel << kChoiceBits * k : 0);
        at[j].blank = max_of(left, b) + (impossible ? kImpossible : 0);
        at[j].label = max_of(skip, either) + relative(widen(x.label[j][k]), reference);
        left = l;
      }
    }
    Pair<double>* const to = states + (tile + 1) % 2 * ws.columns;
    const int64_t last = window.last(t + kTileFrames - 1);
#pragma unroll
    for (int j = 0; j < kPairsOfLane; ++j) {
      if (kPairsOfLane * lane_index() < kTileFrames || i + j > last) continue;
      to[i + j] = at[j];
      if (choices != nullptr) choices[i + j] = chosen[j];
    }
  }

  CTC_DEVICE void write(int64_t t, int32_t pair, bool in_label) const {
    const int32_t label = in_label ? ws.value[pair] : a.blank;
    path[t * a.shape.B] = label < a.shape.V ? label : ws.star_class[t];
    label_index[t * a.shape.B] = in_label ? ws.column[pair] - 1 : -1;
  }

  const AlignArguments<A>& a;
  const AlignWorkspace<F>& ws;
  const A* const acts;
  const int64_t row_pitch;
  int32_t *const path, *const label_index;
  Pair<double>* const states;  // (2, columns): before tile i in row i % 2

 public:
  const int32_t count, frames;
};

}  // namespace cuda
}  // namespace jax_ctc

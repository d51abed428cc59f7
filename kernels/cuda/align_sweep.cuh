// SPDX-License-Identifier: Apache-2.0
// The recursion of the best path (docs/ctc.md, section 7) by a block of threads, and the way back. It is the CPU's
// (cpu/simd/align.h), operation by operation and in double, so the path is the same bit for bit.
//
// A warp takes a group of 64 pairs through a tile of 8 frames, two pairs a lane. A pair depends on itself and on the
// one on its left, both at the frame before. So the group begins 8 pairs further left than the 56 that it answers for:
// what it lacks there spoils one more pair a frame, and never one of the 56. Warps meet once a tile.
//
// Frames count from the first one of a tile. The first tile is filled up with frames before the first one, in which
// only the first blank is possible and costs nothing. So no tile is partial.
#pragma once

#include "../common/best_path.h"
#include "align_workspace.h"
#include "numbers.cuh"
#include "warp.cuh"

namespace jax_ctc {
namespace cuda {

constexpr int kPairsOfLane = 2, kPairsOfWarp = kPairsOfLane * kWarp - kTileFrames;

template <class A> struct AlignArguments {
  Shape shape;
  int32_t blank;
  bool softmax, in_shared;  // of Batch; where the states are
  const A* acts;
  int32_t *path, *label_index;
  Computed<A>* score;
  char* scratch;
  int64_t stride;
};

// The pairs that matter at a frame. They can be reached from the first frame, and a path can go on from them to
// `target` or to a later pair at frame `end` - 1. No path ends beyond `top`.
struct PairWindow {
  int32_t target, top;
  int64_t end;
  CTC_DEVICE int32_t first(int64_t t) const { return int32_t(max_of<int64_t>(0, target - (end - 1 - t))); }
  CTC_DEVICE int32_t last(int64_t t) const { return int32_t(min_of<int64_t>(top, t)); }
};

constexpr int kChoiceBits = 4;  // of a pair and frame

// x - reference exactly for floats, and -inf for an impossible class. Doubles are bounded, so that no sum overflows.
CTC_DEVICE double relative(float x, double reference) { return double(x) - reference; }
CTC_DEVICE double relative(double x, double reference) {
  constexpr double kMost = 1e290;
  const double d = x - reference;
  return d < -kMost ? -infinity<double>() : min_of(d, kMost);
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
        before((kTileFrames - workspace.summary->frames % kTileFrames) % kTileFrames),
        frames(before + int64_t(workspace.summary->frames)) {}

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
    const int32_t step = int32_t(blockDim.x) / kWarp * kPairsOfWarp, mine = uniform_warp_index() * kPairsOfWarp;
    Pair<double>*from = states, *to = states + ws.columns;  // a block begins with an even tile
    uint32_t* choices = keep ? ws.choices - window.first(begin) : nullptr;
    int64_t t = begin;
    int32_t pair = window.first(t) + mine;
    Entries ahead;
    if (t < end) fetch(t, pair, ahead);
    while (t < end) {
      const Entries now = ahead;
      const int32_t here = pair, last = window.last(t + kTileFrames - 1);
      pair += step;
      const bool tile_ends = pair > last;
      if (tile_ends) t += kTileFrames, pair = window.first(t) + mine;
      if (t < end) fetch(t, pair, ahead);
      if (here <= last) advance(here, last, now, from, to, choices);
      if (!tile_ends) continue;
      __syncthreads();
      Pair<double>* const written = to;
      to = from, from = written;
      if (keep) choices += ws.width;
    }
  }

  // Of two equal ends, the last label. Returns the sum of emissions.
  CTC_DEVICE double end(int32_t& pair, bool& in_label) const {
    const Pair<double>* const last = states + frames / kTileFrames % 2 * ws.columns;
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
    const int32_t base = window.first(begin);
    const auto word = [&](int64_t t) {  // of the pair as far left as the lane says, if it was visited
      const int32_t i = pair - lane;
      const bool visited = i >= window.first(t) && i <= window.last(t + kTileFrames - 1);
      return visited ? ws.choices[(t - begin) / kTileFrames * ws.width + i - base] : 0;
    };
    uint32_t ahead = end > begin ? word(end - kTileFrames) : 0;
    int32_t of_ahead = pair;
    for (int64_t t = end - kTileFrames; t >= begin; t -= kTileFrames) {
      const uint32_t words = ahead;
      const int32_t of_words = of_ahead;
      if (t > begin) ahead = word(t - kTileFrames), of_ahead = pair;
      int32_t pair_of_lane = 0;
      bool lane_in_label = false;
#pragma unroll
      for (int k = kTileFrames - 1; k >= 0; --k) {
        if (lane == k) pair_of_lane = pair, lane_in_label = in_label;
        const uint32_t choice = __shfl_sync(kAllLanes, words, of_words - pair) >> kChoiceBits * k;
        go_back(choice, pair, in_label);
      }
      if (lane < kTileFrames && t + lane >= before) write(t + lane - before, pair_of_lane, lane_in_label);
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

  // Of the pairs of this lane, if the warp answers for `pair` and those after it.
  CTC_DEVICE static int32_t first_of_lane(int32_t pair) { return pair - kTileFrames + kPairsOfLane * lane_index(); }

  template <bool kWhole> CTC_DEVICE static void load(const A* at, int64_t pitch, int unused, F none, A* to) {
#pragma unroll
    for (int k = 0; k < kTileFrames; ++k, at += pitch) to[k] = kWhole || k >= unused ? *at : Narrow<A, F>::of(none);
  }

  // A pair without a label gets the blank's entries. What becomes of its label is never read. The first label may skip
  // from what is never reached.
  CTC_DEVICE void fetch(int64_t t, int32_t pair, Entries& to) const {
    const int unused = t == 0 ? before : 0;
    const A* const row = acts + (t - before) * row_pitch;
    const A* at[kPairsOfLane];
    int64_t pitch[kPairsOfLane];
    const int32_t i = first_of_lane(pair);
    const auto label_of = [&](int32_t k) { return k >= 0 && k < count ? ws.value[k] : a.blank; };
    int32_t before_it = label_of(i - 1);
#pragma unroll
    for (int j = 0; j < kPairsOfLane; ++j) {
      const int32_t label = label_of(i + j);
      const bool is_star = label == int32_t(a.shape.V);
      to.may_skip[j] = label != before_it;
      before_it = label;
      at[j] = is_star ? reinterpret_cast<const A*>(ws.star) + (t - before) : row + label;
      pitch[j] = is_star ? 1 : row_pitch;
    }
    if (unused == 0) {
      load<true>(row + a.blank, row_pitch, 0, F(0), to.blank);
#pragma unroll
      for (int j = 0; j < kPairsOfLane; ++j) load<true>(at[j], pitch[j], 0, F(0), to.label[j]);
    } else {
      load<false>(row + a.blank, row_pitch, unused, F(0), to.blank);
#pragma unroll
      for (int j = 0; j < kPairsOfLane; ++j) load<false>(at[j], pitch[j], unused, -infinity<F>(), to.label[j]);
    }
  }

  CTC_DEVICE void advance(int32_t pair, int32_t last, const Entries& x, const Pair<double>* from, Pair<double>* to,
                          uint32_t* choices) const {
    constexpr double kImpossible = -HUGE_VAL;
    const int32_t i = first_of_lane(pair);
    Pair<double> at[kPairsOfLane];
    uint32_t chosen[kPairsOfLane] = {};
#pragma unroll
    for (int j = 0; j < kPairsOfLane; ++j)
      at[j] = i + j >= 0 && i + j <= count ? from[i + j] : Pair<double>{kImpossible, kImpossible};
#pragma unroll
    for (int k = 0; k < kTileFrames; ++k) {
      const double of_blank = double(widen(x.blank[k]));
      const double reference = reference_of(of_blank), blank_adds = relative(widen(x.blank[k]), reference);
      const double below = __shfl_up_sync(kAllLanes, at[kPairsOfLane - 1].label, 1);
      double left = lane_index() == 0 ? kImpossible : below;
#pragma unroll
      for (int j = 0; j < kPairsOfLane; ++j) {
        const double b = at[j].blank, l = at[j].label;
        const double skip = x.may_skip[j] ? left : kImpossible, either = max_of(b, l);
        chosen[j] |= (left > b ? kBlankAfterLabel << kChoiceBits * k : 0) |
                     (b > l ? kLabelAfterBlank << kChoiceBits * k : 0) |
                     (skip > either ? kLabelAfterLabel << kChoiceBits * k : 0);
        at[j].blank = max_of(left, b) + blank_adds;
        at[j].label = max_of(skip, either) + relative(widen(x.label[j][k]), reference);
        left = l;
      }
    }
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
  const int32_t count, before;  // labels; frames that fill up the first tile
  const int64_t frames;         // with those
};

}  // namespace cuda
}  // namespace jax_ctc

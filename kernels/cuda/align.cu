// SPDX-License-Identifier: Apache-2.0
// acts -> the best path of each sequence and its score, by a block of threads (align_sweep.cuh).
//
// The states before every block of 2048 frames are stored on the way to the last frame. On the way back a block runs
// again and keeps its choices, but only for the pairs that a path to the state that was reached can come from. The last
// block keeps its choices on the way there, so a sequence of one block is swept once.
#include <algorithm>

#include "align_sweep.cuh"
#include "launch.cuh"
#include "launchers.h"

namespace jax_ctc {
namespace cuda {
namespace {

// What a block of threads shares beside its states.
struct alignas(16) SharedPath {
  double nats;
  int32_t pair, in_label;  // of the path, at the frame before the block of frames that was traced last
};

// Threads of a block, that leave each 168 registers, or 255 of doubles. Three warps a scheduler keep it busy.
template <class A> constexpr int kMostPathThreads = sizeof(A) == 8 ? 256 : 384;

template <class A> __global__ void __launch_bounds__(kMostPathThreads<A>, 1) align_kernel(AlignArguments<A> a) {
  using F = Computed<A>;
  const int64_t sequence = blockIdx.x;
  const AlignWorkspace<F> ws(a.scratch + sequence * a.stride, a.shape.T, a.shape.L);
  SharedPath* const shared = reinterpret_cast<SharedPath*>(shared_memory());
  Pair<double>* const states = a.in_shared ? reinterpret_cast<Pair<double>*>(shared + 1) : ws.states;
  const PathSweep<A> sweep(a, ws, a.shape.first_row(sequence), states);
  const int64_t frames = sweep.frames;
  const SequenceSummary summary = *ws.summary;
  if (warp_index() == 0) {
    double nats = 0;
#pragma unroll 4
    for (int32_t t = lane_index(); t < summary.frames; t += kWarp) nats += ws.nats[t];
    nats = sum_of_lanes(nats);
    if (lane_index() == 0) shared->nats = nats;
  }
  sweep.start();
  __syncthreads();
  const double nats = shared->nats;
  const bool defined = summary.valid && nats == nats;
  F score = defined ? -infinity<F>() : not_a_number<F>();
  const int64_t blocks = max_of<int64_t>(1, (frames + kBlockFrames - 1) / kBlockFrames);
  const PairWindow whole = {sweep.count - 1, sweep.count, frames};
  int32_t pair = 0;
  bool in_label = false, aligned = defined && summary.feasible;
  for (int64_t i = 0; aligned && i < 2 * blocks - 1; ++i) {  // there and back
    const bool there = i < blocks;
    const int64_t block = there ? i : 2 * blocks - 2 - i;
    const int64_t begin = block * kBlockFrames, end = min_of(begin + kBlockFrames, frames);
    const PairWindow window = there ? whole : PairWindow{pair, pair, end};
    if (!there) {
      sweep.restore(block, window);
      __syncthreads();
    } else if (block > 0) {
      sweep.save(block);
    }
    const bool keep = i >= blocks - 1;
    sweep.sweep(begin, end, window, keep);
    if (i == blocks - 1) {
      const double best = sweep.end(pair, in_label), total = best + nats;
      score = best > -HUGE_VAL ? F(a.softmax ? min_of(total, 0.0) : total) : -infinity<F>();
      aligned = score != -infinity<F>();
    }
    if (!keep || !aligned) continue;
    if (warp_index() == 0) {
      sweep.trace(begin, end, window, pair, in_label);
      if (lane_index() == 0) shared->pair = pair, shared->in_label = in_label;
    }
    __syncthreads();
    pair = shared->pair, in_label = shared->in_label;
  }
  if (threadIdx.x == 0) a.score[sequence] = score;
  sweep.fill_from(aligned ? summary.frames : 0);
}

template <class A> const char* launch_align_of(const Problem& p, Alignment out, void* scratch) {
  if (p.shape.L > INT32_MAX - kMostPathThreads<A> * kPairsOfLane) return "more labels than an alignment counts";
  const int64_t columns = p.shape.L + 1, of_states = 2 * columns * int64_t(sizeof(Pair<double>));
  const bool in_shared = int64_t(sizeof(SharedPath)) + of_states <= shared_memory_limit();
  const int64_t warps = std::min<int64_t>((columns + kPairsOfWarp - 1) / kPairsOfWarp, kMostPathThreads<A> / kWarp);
  const AlignArguments<A> a = {p.shape,
                               p.blank,
                               p.softmax,
                               in_shared,
                               static_cast<const A*>(p.acts),
                               out.path,
                               out.label_index,
                               static_cast<Computed<A>*>(out.score),
                               static_cast<char*>(scratch),
                               scratch_stride(Operation::kAlign, p)};
  return launch(align_kernel<A>, p.shape.sequences(), int(warps) * kWarp,
                sizeof(SharedPath) + (in_shared ? size_t(of_states) : 0), p.stream, a);
}

}  // namespace

const char* launch_align(const Problem& p, Alignment out, void* scratch) {
  switch (p.dtype) {
    case Dtype::kF32: return launch_align_of<float>(p, out, scratch);
    case Dtype::kF64: return launch_align_of<double>(p, out, scratch);
    case Dtype::kBF16: return launch_align_of<__nv_bfloat16>(p, out, scratch);
    case Dtype::kF16: return launch_align_of<__half>(p, out, scratch);
  }
  return "unknown dtype";
}

}  // namespace cuda
}  // namespace jax_ctc

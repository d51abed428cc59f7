// SPDX-License-Identifier: Apache-2.0
// acts -> what the best path needs of each row: its part of the score, whether it is defined, and what a star stands
// for. One read of acts; of log-scores without a star only of the entries of the blank and the labels. Emissions are
// not stored, because align.cu reads them where acts have them.
#include "../common/best_path.h"
#include "align_workspace.h"
#include "labels.cuh"
#include "launch.cuh"
#include "launchers.h"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

template <class A> struct AlignRowsArguments {
  Rows<A> in;
  bool star;             // whether label V is the star
  int64_t label_blocks;  // prepare the labels of a sequence each
  char* scratch;
  int64_t stride;
};

// The largest of some logits, and its class; of equal ones the first.
template <class F> struct Best {
  F logit = -infinity<F>();
  int32_t label = INT32_MAX;
  CTC_DEVICE void use(F x, int32_t v) {  // a NaN is passed over
    if (x > logit || (x == logit && v < label)) logit = x, label = v;
  }
};

// In every thread of the group, the same bits.
template <int G, class F> CTC_DEVICE Best<F> best_of_group(Best<F> mine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    mine.use(__shfl_xor_sync(kAllLanes, mine.logit, distance), __shfl_xor_sync(kAllLanes, mine.label, distance));
  if constexpr (G == kWarp) return mine;
  Best<F>* const parts = reinterpret_cast<Best<F>*>(shared_memory());
  __syncthreads();  // what was there before has been read
  if (lane_index() == 0) parts[warp_index()] = mine;
  __syncthreads();
  for (int i = 0; i < G / kWarp; ++i) mine.use(parts[i].logit, parts[i].label);
  return mine;
}

// What threads of a group have seen, each a bit; sums of them over at most 256 threads do not meet.
constexpr int32_t kBadScore = 1, kStarLabel = 1 << 10, kBadClass = 1 << 20;

template <class A, int G> __global__ void __launch_bounds__(kThreadsOfBlock<G>, kBlocksAtOnce<A, G>)
    align_rows_kernel(AlignRowsArguments<A> a) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  if (blockIdx.x < a.label_blocks) {
    if (warp_index() > 0) return;
    const int64_t sequence = blockIdx.x;
    const AlignWorkspace<F> ws(a.scratch + sequence * a.stride, s.T, s.L);
    Shape with_star = s;
    with_star.V += a.star;
    const Unpadded labels =
        unpadded(in.labels + sequence * s.L, with_star, in.blank, in.lengths[sequence], ws.value, ws.column);
    if (lane_index() == 0) *ws.summary = labels.summary;
    return;
  }
  const int64_t r = row_of_group<G>(a.label_blocks);
  if (r >= s.rows()) return;
  const Place at = place_of(s, r);
  const int64_t sequence = at.sequence, t = at.t;
  if (t >= in.lengths[sequence]) return;  // never read
  const int me = thread_of_group<G>();
  const A* row = in.acts + r * s.V;
  const AlignWorkspace<F> ws(a.scratch + sequence * a.stride, s.T, s.L);
  double nats = reference_of(double(widen(row[in.blank])));
  if (in.softmax) {
    Softmax<F> softmax;
    for_each<G>(row, s.V, [&](const auto& x) { softmax.use(x); });
    softmax = of_group<G>(softmax);
    const auto [ties, tail] = softmax.sum();
    nats = (nats - double(softmax.top)) - double(log_of(ties) + log_of_1_and(tail / ties));
  }
  int32_t seen = 0;
  if (!in.softmax)
    for (int64_t c = me; c <= s.L; c += G) {
      const int32_t label = in.class_of(sequence, c);
      if (label >= 0 && !(widen(row[label]) < infinity<F>())) seen |= kBadScore;
      if (a.star && c > 0 && in.labels[sequence * s.L + c - 1] == s.V) seen |= kStarLabel;
    }
  if (a.star) {
    Best<F> best;
    for (int64_t v = me; v < s.V; v += G) {
      const F x = widen(row[v]);
      if (v != in.blank) best.use(x, int32_t(v));
      if (!(x < infinity<F>())) seen |= kBadClass;
    }
    best = best_of_group<G>(best);
    if (me == 0) {
      reinterpret_cast<A*>(ws.star)[t] = Narrow<A, F>::of(best.logit);  // exactly: it is one of acts
      ws.star_class[t] = best.label;
    }
  }
  if (!in.softmax) {
    seen = sum_of_group<G>(seen);
    if (seen % kStarLabel != 0 || (seen % kBadClass >= kStarLabel && seen >= kBadClass)) nats = not_a_number<F>();
  }
  if (me == 0) ws.nats[t] = nats;
}

}  // namespace

const char* launch_align_rows(const Problem& p, bool star, void* scratch) {
  const int64_t read = p.softmax || star ? p.shape.V : p.shape.L + 1;
  return for_rows_of(p, read, [&](auto type, auto threads) {
    using A = decltype(type);
    constexpr int G = decltype(threads)::value;
    const AlignRowsArguments<A> a = {Rows<A>(p, {nullptr, nullptr}), star, p.shape.sequences(),
                                     static_cast<char*>(scratch), scratch_stride(Operation::kAlign, p)};
    return launch(align_rows_kernel<A, G>, a.label_blocks + blocks_for<G>(p.shape), kThreadsOfBlock<G>,
                  (G / kWarp) * sizeof(Softmax<double>), p.stream, a);
  });
}

}  // namespace cuda
}  // namespace jax_ctc

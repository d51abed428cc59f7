// SPDX-License-Identifier: Apache-2.0
// acts -> the softmax of each row, and the emissions of the blank and of each label. One read of acts.
#include "labels.cuh"
#include "launchers.h"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

template <class A> struct RowsArguments {
  Rows<A> in;
  int64_t label_blocks;  // prepare the labels of a sequence each; first, because they take longer than a row
  char* scratch;
  int64_t stride;
};

template <class A, int G> __global__ void __launch_bounds__(kThreadsOfBlock<G>, kBlocksAtOnce<A, G>)
    rows_kernel(RowsArguments<A> a) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  const bool training = in.columns != nullptr;
  if (blockIdx.x < a.label_blocks) {
    const int64_t sequence = blockIdx.x;
    const Workspace<Scaled<F>> ws(a.scratch + sequence * a.stride, s.T, s.L, training);
    prepare_labels(in.labels + sequence * s.L, s, in.blank, in.lengths[sequence], ws, training);
    return;
  }
  const int64_t r = row_of_group<G>(a.label_blocks);
  if (r >= s.rows()) return;
  const auto [sequence, t] = place_of(s, r);
  const int me = thread_of_group<G>();
  if (t >= in.lengths[sequence]) {  // never read
    if (!training) return;
    if (!s.dense() && me < 2) in.rows[2 * r + me] = 0;
    fill<G>(in.columns + r * s.columns(), s.columns(), F(0));
    return;
  }
  const A* row = in.acts + r * s.V;
  Softmax<F> softmax;
  for_each<G, 2>(row, s.V, [&](const auto& x) { softmax.use(x); });
  softmax = of_group<G>(softmax);

  const Workspace<Scaled<F>> ws(a.scratch + sequence * a.stride, s.T, s.L, training);
  for (int64_t c = me; c <= s.L; c += G) {
    const int32_t label = in.class_of(sequence, c);
    store(ws.emissions + t * (s.L + 1) + c,
          label >= 0 ? emission(F(widen(row[label])), softmax.top) : Scaled<F>{F(1), 0});
  }
  if (me == 0) ws.log_sums[t] = double(softmax.log_sum());
  if (!training) return;
  const F shift = softmax.top, scale = softmax.scale();
  if (s.dense()) {
    for (int64_t v = me; v < s.V; v += G)
      in.columns[r * s.V + v] = exp_of_nonpositive(F(widen(row[v])) - shift) * scale;
  } else {
    if (me < 2) in.rows[2 * r + me] = me == 0 ? shift : scale;
    fill<G>(in.columns + r * (s.L + 1), s.L + 1, F(0));
  }
}

}  // namespace

const char* launch_rows(const Problem& p, Kept kept, void* scratch) {
  const Operation operation = kept.columns != nullptr ? Operation::kForward : Operation::kLoss;
  return for_rows_of(p, [&](auto type, auto threads) {
    using A = decltype(type);
    constexpr int G = decltype(threads)::value;
    const RowsArguments<A> a = {Rows<A>(p, kept), p.shape.sequences(), static_cast<char*>(scratch),
                                scratch_stride(operation, p.dtype, p.shape.T, p.shape.L)};
    return launch(rows_kernel<A, G>, a.label_blocks + blocks_for<G>(p.shape), kThreadsOfBlock<G>,
                  (G / kWarp) * sizeof(Softmax<Computed<A>>), static_cast<cudaStream_t>(p.stream), a);
  });
}

}  // namespace cuda
}  // namespace jax_ctc

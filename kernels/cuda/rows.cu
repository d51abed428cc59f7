// SPDX-License-Identifier: Apache-2.0
// acts -> the softmax of each row, and the emissions of the blank and of each label. One read of acts.
#include "kernels.h"
#include "labels.cuh"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

template <class A> struct RowsArguments {
  const A* acts;
  const int32_t *labels, *lengths;
  Shape shape;
  int32_t blank;
  int64_t row_blocks;          // the blocks after them prepare the labels of a sequence each
  Computed<A>*rows, *columns;  // null for the loss alone
  char* scratch;
  int64_t stride;
};

template <class A, int G> __global__ void __launch_bounds__(kThreadsOfBlock<G>, kBlocksAtOnce<A, G>)
    rows_kernel(RowsArguments<A> a) {
  using F = Computed<A>;
  const Shape& s = a.shape;
  const bool training = a.columns != nullptr;
  if (blockIdx.x >= a.row_blocks) {
    const int64_t sequence = blockIdx.x - a.row_blocks;
    const Workspace<F> ws(a.scratch + sequence * a.stride, s.T, s.L, training);
    prepare_labels(a.labels + sequence * s.L, s, a.blank, a.lengths[sequence], ws);
    return;
  }
  const int64_t r = row_of_group<G>();
  if (r >= s.rows()) return;
  const int64_t outer = quotient(r, s.T * s.B), inner = r - outer * s.T * s.B;
  const int64_t t = quotient(inner, s.B), sequence = outer * s.B + (inner - t * s.B);
  const int me = thread_of_group<G>();
  if (t >= a.lengths[sequence]) {  // never read
    if (!training) return;
    if (!s.dense() && me < 2) a.rows[2 * r + me] = 0;
    fill<G>(a.columns + r * s.columns(), s.columns(), F(0));
    return;
  }
  const A* row = a.acts + r * s.V;
  Softmax<F> softmax;
  for_each<G, 2>(row, s.V, [&](const auto& x, int64_t) { softmax.use(x); });
  softmax = of_group<G>(softmax);

  const Workspace<F> ws(a.scratch + sequence * a.stride, s.T, s.L, training);
  for (int64_t c = me; c <= s.L; c += G) {
    const int32_t label = c == 0 ? a.blank : a.labels[sequence * s.L + c - 1];
    const bool is_class = label >= 0 && label < s.V;
    store(ws.emissions + t * (s.L + 1) + c,
          is_class ? emission(F(widen(row[label])), softmax.top) : Scaled<F>{F(1), 0});
  }
  if (me == 0) ws.log_sums[t] = double(softmax.log_sum());
  if (!training) return;
  const F shift = softmax.top, scale = softmax.scale();
  if (s.dense()) {
    for (int64_t v = me; v < s.V; v += G) a.columns[r * s.V + v] = exp_of_nonpositive(F(widen(row[v])) - shift) * scale;
  } else {
    if (me < 2) a.rows[2 * r + me] = me == 0 ? shift : scale;
    fill<G>(a.columns + r * (s.L + 1), s.L + 1, F(0));
  }
}

template <class A, int G> const char* launch_rows_of(const Problem& p, Kept kept, void* scratch) {
  using F = Computed<A>;
  const bool training = kept.columns != nullptr;
  const int64_t blocks = (p.shape.rows() + kRowsOfBlock<G> - 1) / kRowsOfBlock<G>;
  const RowsArguments<A> a = {
      static_cast<const A*>(p.acts),
      p.labels,
      p.lengths,
      p.shape,
      p.blank,
      blocks,
      static_cast<F*>(kept.rows),
      static_cast<F*>(kept.columns),
      static_cast<char*>(scratch),
      scratch_stride(training ? Operation::kForward : Operation::kLoss, p.dtype, p.shape.T, p.shape.L)};
  return launch(rows_kernel<A, G>, blocks + p.shape.sequences(), kThreadsOfBlock<G>, (G / kWarp) * sizeof(Softmax<F>),
                static_cast<cudaStream_t>(p.stream), a);
}

template <class A> const char* launch_rows_of(const Problem& p, Kept kept, void* scratch) {
  switch (threads_per_row(p.shape.V)) {
    case 32: return launch_rows_of<A, 32>(p, kept, scratch);
    case 128: return launch_rows_of<A, 128>(p, kept, scratch);
    default: return launch_rows_of<A, 256>(p, kept, scratch);
  }
}

}  // namespace

const char* launch_rows(const Problem& p, Kept kept, void* scratch) {
  switch (p.dtype) {
    case Dtype::kF32: return launch_rows_of<float>(p, kept, scratch);
    case Dtype::kF64: return launch_rows_of<double>(p, kept, scratch);
    case Dtype::kBF16: return launch_rows_of<__nv_bfloat16>(p, kept, scratch);
    case Dtype::kF16: return launch_rows_of<__half>(p, kept, scratch);
  }
  return "unknown dtype";
}

}  // namespace cuda
}  // namespace jax_ctc

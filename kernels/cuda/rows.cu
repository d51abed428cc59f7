// SPDX-License-Identifier: Apache-2.0
// acts -> the softmax of each row, and the emissions of the blank and of each label. One read of acts; of log-scores
// only of the entries of the blank and the labels.
#include <algorithm>

#include "labels.cuh"
#include "launch.cuh"
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

// Whether a row's emissions are computed once a class, in shared memory, and not once a label.
template <int G> CTC_INLINE bool emits_classes(const Shape& s) { return G == kWarp && s.V <= 512 && s.dense(); }

// n classes of a thread at once.
template <int n, int G, class A, class F> CTC_DEVICE void emit_classes(const A* row, int V, F shift, Scaled<F>* out) {
  for (int first = thread_of_group<G>(); first < V; first += n * G) {
    F x[n];
    Scaled<F> emitted[n];
#pragma unroll
    for (int i = 0; i < n; ++i) x[i] = widen(row[min_of(first + i * G, V - 1)]);
    emissions(x, shift, emitted);
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (first + i * G < V) store(out + first + i * G, emitted[i]);
  }
}

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
  const Place at = place_of(s, r);
  const int64_t sequence = at.sequence, t = at.t;  // a lambda of C++17 may not capture parts of a structured binding
  const int me = thread_of_group<G>();
  if (t >= in.lengths[sequence]) {  // never read
    if (!training) return;
    if (in.keeps_rows && me < 2) in.rows[2 * r + me] = 0;
    fill<G>(in.columns + r * s.columns(), s.columns(), F(0));
    return;
  }
  const A* row = in.acts + r * s.V;
  const Workspace<Scaled<F>> ws(a.scratch + sequence * a.stride, s.T, s.L, training);
  F shift, scale = 0;
  if (in.softmax) {
    Softmax<F> softmax;
    for_each<G>(row, s.V, [&](const auto& x) { softmax.use(x); });
    softmax = of_group<G>(softmax);
    shift = softmax.top, scale = softmax.scale();
    if (me == 0) ws.sums[t] = softmax.sum();
  } else {
    shift = reference_of_scores<G>(in, r, sequence);
    if (me == 0) ws.sums[t] = {F(1), -shift};
  }
  // Of each column: its class, and then what f makes of some columns' classes.
  const auto emit = [&](auto at_once, auto f) {
    constexpr int n = decltype(at_once)::value;
    Scaled<F>* const out = ws.emissions + t * (s.L + 1);
    const int32_t L = int32_t(s.L);
    for (int32_t first = me; first <= L; first += n * G) {
      int32_t label[n];
      Scaled<F> emitted[n];
#pragma unroll
      for (int i = 0; i < n; ++i) label[i] = first + i * G <= L ? in.class_of(sequence, first + i * G) : -1;
      f(label, emitted);
#pragma unroll
      for (int i = 0; i < n; ++i)
        if (first + i * G <= L) store(out + first + i * G, emitted[i]);
    }
  };
  using One = std::integral_constant<int, 1>;
  using Some = std::integral_constant<int, sizeof(F) == 4 ? 4 : 2>;  // so many do not wait for each other
  if (emits_classes<G>(s)) {
    Scaled<F>* const of_class = group_memory<G, Scaled<F>>(s.V);
    if (s.V > 2 * G)
      emit_classes<Some::value, G>(row, int(s.V), shift, of_class);
    else
      emit_classes<1, G>(row, int(s.V), shift, of_class);
    group_barrier<G>();
    emit(Some(), [&](const auto& label, auto& emitted) {
      for (int i = 0; i < Some::value; ++i) emitted[i] = label[i] >= 0 ? load(of_class + label[i]) : Scaled<F>{F(1), 0};
    });
  } else {
    const auto of_labels = [&](const auto& label, auto& emitted) {
      constexpr int n = sizeof(label) / sizeof(label[0]);
      F x[n];
#pragma unroll
      for (int i = 0; i < n; ++i) x[i] = label[i] >= 0 ? F(widen(row[label[i]])) : shift;  // exp(0), or anything
      emissions(x, shift, emitted);
    };
    if (s.L > 2 * G)
      emit(Some(), of_labels);
    else
      emit(One(), of_labels);
  }
  if (!training) return;
  if (s.dense()) {
#pragma unroll 4
    for (int64_t v = me; v < s.V; v += G)
      in.columns[r * s.V + v] = in.softmax ? exp_of_nonpositive(F(widen(row[v])) - shift) * scale : F(0);
  } else if (in.keeps_rows) {
    if (me < 2) in.rows[2 * r + me] = me == 0 ? shift : scale;
  }
}

}  // namespace

const char* launch_rows(const Problem& p, Residuals residuals, void* scratch) {
  const Operation operation = residuals.columns != nullptr ? Operation::kForward : Operation::kLoss;
  return for_rows_of(p, read_by_lattice(p), [&](auto type, auto threads) {
    using A = decltype(type);
    constexpr int G = decltype(threads)::value;
    const RowsArguments<A> a = {Rows<A>(p, residuals), p.shape.sequences(), static_cast<char*>(scratch),
                                scratch_stride(operation, p.dtype, p.shape.T, p.shape.L)};
    const size_t of_classes = emits_classes<G>(p.shape) ? kRowsOfBlock<G> * p.shape.V * sizeof(Scaled<Computed<A>>) : 0;
    return launch(rows_kernel<A, G>, a.label_blocks + blocks_for<G>(p.shape), kThreadsOfBlock<G>,
                  std::max(of_classes, (G / kWarp) * sizeof(Softmax<Computed<A>>)), static_cast<cudaStream_t>(p.stream),
                  a);
  });
}

}  // namespace cuda
}  // namespace jax_ctc

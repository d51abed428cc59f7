// SPDX-License-Identifier: Apache-2.0
// acts -> the sum of each row, and the emissions of the blank and of each label, or of each class. One read of acts; of
// log-scores only of the entries of the blank and the labels.
#include "labels.cuh"
#include "launch.cuh"
#include "launchers.h"
#include "products.cuh"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

template <class A> struct RowsArguments {
  Rows<A> in;
  bool by_class;         // emissions are
  bool strips_together;  // sweep
  int64_t label_blocks;  // prepare the labels of a sequence each; first, because they take longer than a row
  char* scratch;
  int64_t stride;
};

// Calls put(c, what logit_of(c) emits) for each column c. A thread has n columns at once, which do not wait for each
// other.
template <int n, int G, class F, class Logit, class Put>
CTC_DEVICE void emit_row(int32_t columns, F shift, int32_t dither, Logit logit_of, Put put) {
  for (int32_t first = thread_of_group<G>(); first < columns; first += n * G) {
    F x[n];
    Scaled<F> emitted[n];
#pragma unroll
    for (int i = 0; i < n; ++i) x[i] = logit_of(min_of(first + i * G, columns - 1));
    emissions(x, shift, dither, emitted);
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (first + i * G < columns) put(first + i * G, emitted[i]);
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
    prepare_labels(in.labels + sequence * s.L, s, in.blank, in.lengths[sequence], ws, training, a.by_class);
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
  if (a.strips_together && me < 2) store(ws.edges + 2 * t + me, Scaled<F>{F(0), 0});  // of no strip yet (feed.cuh)
  const int32_t dither = in.dither_of_row(r, t);
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
  const auto emit = [&](int64_t columns, auto logit_of, auto put) {
    constexpr int kAtOnce = sizeof(F) == 4 ? 4 : 2;
    if (columns > 2 * G)
      emit_row<kAtOnce, G>(int32_t(columns), shift, dither, logit_of, put);
    else
      emit_row<1, G>(int32_t(columns), shift, dither, logit_of, put);
  };
  const auto to_emissions = [&](int32_t c, Scaled<F> emitted) { store(ws.emissions + t * ws.columns + c, emitted); };
  const auto of_class = [&](int32_t v) -> F { return widen(row[v]); };
  if (a.by_class) {
    emit(s.V, [&](int32_t place) { return of_class(class_at(place, in.blank)); }, to_emissions);
    return;
  }
  const auto of_label = [&](int32_t c) {
    const int32_t label = in.class_of(sequence, c);
    return label >= 0 ? of_class(label) : shift;  // exp(0), or anything
  };
  emit(s.L + 1, of_label, to_emissions);
  if (!training) return;
  if (s.dense() && in.softmax)
    emit(s.V, of_class, [&](int32_t v, Scaled<F> emitted) { in.columns[r * s.V + v] = probability(emitted, scale); });
  else if (s.dense())
    fill<G>(in.columns + r * s.V, s.V, F(0));
  else if (in.keeps_rows && me < 2)
    in.rows[2 * r + me] = me == 0 ? shift : scale;
}

}  // namespace

const char* launch_rows(const Problem& p, Residuals residuals, void* scratch) {
  const Operation operation = residuals.columns != nullptr ? Operation::kForward : Operation::kLoss;
  return for_rows_of(p, read_by_lattice(p), [&](auto type, auto threads) {
    using A = decltype(type);
    constexpr int G = decltype(threads)::value;
    const RowsArguments<A> a = {Rows<A>(p, residuals),
                                emits_classes<Scaled<Computed<A>>>(p),
                                strips_with_schedulers(p.shape.sequences(), p.shape.L, multiprocessors()) > 1,
                                p.shape.sequences(),
                                static_cast<char*>(scratch),
                                scratch_stride(operation, p)};
    return launch(rows_kernel<A, G>, a.label_blocks + blocks_for<G>(p.shape), kThreadsOfBlock<G>,
                  (G / kWarp) * sizeof(Softmax<Computed<A>>), p.stream, a);
  });
}

}  // namespace cuda
}  // namespace jax_ctc

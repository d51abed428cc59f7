// SPDX-License-Identifier: Apache-2.0
// Hessian-vector products (docs/ctc.md, eq. 11 to 13), but for their lattice: what it needs of acts and directions, and
// what is made of the changes of occupancies that it leaves. Two reads of both arrays, one write. Of log-scores these
// changes are all, and only the entries of the blank and the labels are read.
#include "labels.cuh"
#include "launch.cuh"
#include "launchers.h"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

template <class A> struct HvpArguments {
  Rows<A> in;
  const A* directions;
  const Computed<A>* cotangents;  // of the last step, as out
  A* out;
  int64_t label_blocks;  // of the first step: prepare the labels of a sequence each, before the blocks of rows
  char* scratch;
  int64_t stride;

  CTC_DEVICE Workspace<Dual<Computed<A>>> workspace(int64_t sequence) const {
    return {scratch + sequence * stride, in.shape.T, in.shape.L, true};
  }
};

// A row of acts and of directions.
template <class A> struct RowPair {
  using F = Computed<A>;
  const A *x, *u;
  CTC_DEVICE RowPair(const HvpArguments<A>& a, int64_t r)
      : x(a.in.acts + r * a.in.shape.V), u(a.directions + r * a.in.shape.V) {}
  CTC_DEVICE F logit(int64_t v) const { return widen(x[v]); }
  CTC_DEVICE F direction(int64_t v) const { return widen(u[v]); }
  // softmax * (direction - centre - mean); 0 where the probability is, whatever the direction.
  CTC_DEVICE static F weighted(F logit, F direction, const DirectedRow<F>& directed) {
    const F p = directed.scale * exp_of_nonpositive(logit - directed.shift);
    return p == 0 ? F(0) : p * ((direction - directed.centre) - directed.mean);
  }
  // Calls use(v, weighted) for the classes that fall to this thread, in order.
  template <int G, class Use> CTC_DEVICE void for_each_class(int64_t V, const DirectedRow<F>& directed, Use use) const {
    for_each_with_direction<G>(x, u, V, [&](int64_t v, F x, F u) { use(v, weighted(x, u, directed)); });
  }
};

template <class A> HvpArguments<A> arguments(const Problem& p, Residuals residuals, const void* cotangents,
                                             const void* directions, void* out, void* scratch) {
  return {Rows<A>(p, residuals),
          static_cast<const A*>(directions),
          static_cast<const Computed<A>*>(cotangents),
          static_cast<A*>(out),
          p.shape.sequences(),
          static_cast<char*>(scratch),
          scratch_stride(Operation::kHvp, p)};
}

// Shift and scale of the softmax, and the direction's means. They are taken relative to the blank's direction, so that
// 1000 + noise keeps the digits of the noise.
template <class A, int G> CTC_DEVICE DirectedRow<Computed<A>> directed_row(const HvpArguments<A>& a, int64_t r,
                                                                           int64_t sequence, const RowPair<A>& row) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  const bool dense = s.dense();
  const F of_blank = row.direction(in.blank), base = of_blank - of_blank == 0 ? of_blank : F(0);
  DirectedRow<F> directed = {0, 0, base, 0};
  if (!in.softmax) {
    directed.shift = reference_of_scores<G>(in, r, sequence);
    directed.scale = directed.shift == directed.shift ? F(1) : directed.shift;  // a mark
  } else if (dense) {
    Softmax<F> softmax;
    for_each<G>(row.x, s.V, [&](const auto& x) { softmax.use(x); });
    softmax = of_group<G>(softmax);
    directed.shift = softmax.top, directed.scale = softmax.scale();
  } else {
    directed.shift = in.rows[2 * r], directed.scale = in.rows[2 * r + 1];
  }
  const F* const columns = in.columns + r * s.columns();
  F of_softmax = 0, of_columns = 0;
  if (in.softmax) row.template for_each_class<G>(s.V, directed, [&](int64_t, F weighted) { of_softmax += weighted; });
  for (int64_t c = thread_of_group<G>(); c < s.columns(); c += G) {
    const int32_t of_class = dense ? int32_t(c) : in.class_of(sequence, c);
    if (columns[c] != 0 && of_class >= 0) of_columns += columns[c] * (row.direction(of_class) - base);
  }
  of_softmax = sum_of_group<G>(of_softmax), of_columns = sum_of_group<G>(of_columns);
  directed.centre = base + (dense ? of_softmax - of_columns : of_columns);  // dense: softmax less occupancies is kept
  directed.mean = of_softmax - (directed.centre - base);
  return directed;
}

template <class A, int G> __global__ void __launch_bounds__(kThreadsOfBlock<G>, kBlocksAtOnce<A, G>)
    hvp_rows_kernel(HvpArguments<A> a) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  if (blockIdx.x < a.label_blocks) {
    const int64_t sequence = blockIdx.x;
    prepare_labels(in.labels + sequence * s.L, s, in.blank, in.lengths[sequence], a.workspace(sequence), true, false);
    return;
  }
  const int64_t r = row_of_group<G>(a.label_blocks);
  if (r >= s.rows()) return;
  const auto [sequence, t] = place_of(s, r);
  if (t >= in.lengths[sequence]) return;  // never read
  const RowPair<A> row(a, r);
  const DirectedRow<F> directed = directed_row<A, G>(a, r, sequence, row);
  const Workspace<Dual<F>> ws = a.workspace(sequence);
  const int32_t dither = in.dither_of_row(r, t);
  const bool alive = directed.scale > 0;  // else the residuals say that there is no gradient, or that it is NaN
  for (int64_t c = thread_of_group<G>(); c <= s.L; c += G) {
    const int32_t label = in.class_of(sequence, c);
    Dual<F> emitted = {1, 0, 0};
    if (label >= 0) {
      // No logit is above the largest of its row, whatever the residuals: exponents stay below 0.
      const Scaled<F> y = alive ? emission(min_of(directed.shift, row.logit(label)), directed.shift, dither)
                                : Scaled<F>{F(1), Integer<F>(kDead)};
      emitted = {y.m, y.e, y.e == kDead ? F(0) : y.m * change_in_frame(row.direction(label), directed.centre)};
    }
    store(ws.emissions + t * ws.columns + c, emitted);
    ws.changes[t * ws.columns + c] = 0;
  }
  if (thread_of_group<G>() == 0) {
    ws.directed_rows[t] = directed;
    const F mark = directed.scale != directed.scale ? directed.scale : F(1);
    ws.sums[t] = {mark, mark};  // for the lattice: a number, or NaN
  }
}

// As the gradient: each class has its change in one column only, so no two threads meet.
template <class A, int G> __global__ void __launch_bounds__(kThreadsOfBlock<G>, kBlocksAtOnce<A, G>)
    hvp_kernel(HvpArguments<A> a) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  const int64_t r = row_of_group<G>();
  if (r >= s.rows()) return;
  const auto [sequence, t] = place_of(s, r);
  const F cotangent = a.cotangents[sequence];
  const int32_t length = in.lengths[sequence];
  A* const out = a.out + r * s.V;
  if (cotangent == 0 || t >= length) return fill<G>(out, s.V, Narrow<A, F>::of(0));
  const Workspace<Dual<F>> ws = a.workspace(sequence);
  const DirectedRow<F> directed = ws.directed_rows[t];
  const bool alive = directed.scale > 0;
  if (!alive && in.softmax) return fill<G>(out, s.V, Narrow<A, F>::of(directed.scale));
  const RowPair<A> row(a, r);
  const F* const changes = ws.changes + t * ws.columns;
  const auto put = [&](int64_t v, F change) { out[v] = Narrow<A, F>::of(times_cotangent(change, cotangent)); };
  if (in.softmax) {
    row.template for_each_class<G>(s.V, directed, put);
  } else {
    fill<G>(out, s.V, Narrow<A, F>::of(0));
  }
  group_barrier<G>();
  if (!alive) {  // the entries that are read are NaN, or 0
    for (int64_t c = thread_of_group<G>(); c <= s.L; c += G)
      if (const int32_t v = in.class_of(sequence, c); v >= 0) out[v] = Narrow<A, F>::of(directed.scale);
    return;
  }
  for (int64_t c = thread_of_group<G>(); c <= s.L; c += G) {
    if (changes[c] == 0) continue;
    const int32_t v = in.class_of(sequence, c);
    put(v, (in.softmax ? row.weighted(row.logit(v), row.direction(v), directed) : F(0)) - changes[c]);
  }
}

}  // namespace

const char* launch_hvp_rows(const Problem& p, Residuals residuals, const void* directions, void* scratch) {
  return for_rows_of(p, read_by_lattice(p), [&](auto type, auto threads) {
    using A = decltype(type);
    constexpr int G = decltype(threads)::value;
    const HvpArguments<A> a = arguments<A>(p, residuals, nullptr, directions, nullptr, scratch);
    return launch(hvp_rows_kernel<A, G>, a.label_blocks + blocks_for<G>(p.shape), kThreadsOfBlock<G>,
                  (G / kWarp) * sizeof(Softmax<Computed<A>>), p.stream, a);
  });
}

const char* launch_hvp(const Problem& p, const void* cotangents, const void* directions, void* out, void* scratch) {
  return for_rows_of(p, [&](auto type, auto threads) {
    using A = decltype(type);
    constexpr int G = decltype(threads)::value;
    const HvpArguments<A> a = arguments<A>(p, {}, cotangents, directions, out, scratch);
    return launch(hvp_kernel<A, G>, blocks_for<G>(p.shape), kThreadsOfBlock<G>, 0, p.stream, a);
  });
}

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Residuals -> the gradient, times a cotangent; and its product with directions. One read of acts, one write.
#include "launch.cuh"
#include "launchers.h"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

template <class A> struct GradientArguments {
  Rows<A> in;
  const Computed<A>* cotangents;
  A* gradient;  // may be acts, or where dense columns: what is there is read before
};

template <class A> struct TangentArguments {
  Rows<A> in;
  const A* directions;
  char* scratch;
  int64_t stride;
};

// A row of softmax, of log-scores a row of 0, then corrected at the classes with an occupancy. Each class has its
// occupancy in one column only, so no two threads meet.
template <class A, int G>
CTC_DEVICE void compact_row(const GradientArguments<A>& a, int64_t r, int64_t sequence, Computed<A> cotangent) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  const A* const x = in.acts + r * s.V;
  A* const out = a.gradient + r * s.V;
  const F* const occupancy = in.columns + r * (s.L + 1);
  const auto scaled = [&](F x) { return times_cotangent(x, cotangent); };
  const auto for_each_column = [&](auto use) {  // with an occupancy, and a class that may have one
    for (int64_t c = thread_of_group<G>(); c <= s.L; c += G)
      if (const int32_t v = occupancy[c] != 0 ? in.class_of(sequence, c) : -1; v >= 0) use(c, v);
  };
  if (!in.softmax) {
    fill<G>(out, s.V, Narrow<A, F>::of(0));
    group_barrier<G>();
    return for_each_column([&](int64_t c, int32_t v) { out[v] = Narrow<A, F>::of(scaled(-occupancy[c])); });
  }
  const F shift = in.rows[2 * r], scale = in.rows[2 * r + 1];
  if (scale == 0 || scale != scale) return fill<G>(out, s.V, Narrow<A, F>::of(scale));
  const auto softmax = [&](A logit) { return scale * exp_of_nonpositive(F(widen(logit)) - shift); };
  const auto corrected = [&](int64_t c, int32_t v) { return scaled(softmax(x[v]) - occupancy[c]); };
  const bool in_place = static_cast<const void*>(x) == out;
  F* const waiting = group_memory<G, F>(s.L + 1);
  if (in_place) {
    for_each_column([&](int64_t c, int32_t v) { waiting[c] = corrected(c, v); });
    group_barrier<G>();
  }
  transform<G>(x, out, s.V, [&](A logit) { return Narrow<A, F>::of(scaled(softmax(logit))); });
  group_barrier<G>();
  for_each_column([&](int64_t c, int32_t v) { out[v] = Narrow<A, F>::of(in_place ? waiting[c] : corrected(c, v)); });
}

template <class A, int G> __global__ void __launch_bounds__(kThreadsOfBlock<G>, kBlocksAtOnce<A, G>)
    gradient_kernel(GradientArguments<A> a) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  const int64_t r = row_of_group<G>();
  if (r >= s.rows()) return;
  const Place at = place_of(s, r);
  const F cotangent = a.cotangents[at.sequence];
  const int32_t length = in.lengths[at.sequence];
  A* const out = a.gradient + r * s.V;
  if (cotangent == 0 || at.t >= length) return fill<G>(out, s.V, Narrow<A, F>::of(0));
  if (s.dense()) {
    const F* const unit = in.columns + r * s.V;
    if (cotangent == 1 && static_cast<const void*>(unit) == out) return;  // it is there
    return transform<G>(unit, out, s.V, [&](F g) { return Narrow<A, F>::of(times_cotangent(g, cotangent)); });
  }
  compact_row<A, G>(a, r, at.sequence, cotangent);
}

// This thread's part of a row's sum over classes of (softmax - occupancy) * direction. The two products are taken
// apart, as no class is looked up; where the direction is inf or NaN that would be NaN, so there the difference is.
template <class A, int G>
CTC_DEVICE double compact_tangent(const Rows<A>& in, int64_t r, int64_t sequence, const A* directions) {
  using F = Computed<A>;
  const Shape& s = in.shape;
  const A* const x = in.acts + r * s.V;
  const F* const occupancy = in.columns + r * (s.L + 1);
  const auto class_with_occupancy = [&](int64_t c) { return occupancy[c] != 0 ? in.class_of(sequence, c) : -1; };
  const auto is_finite = [](F direction) { return direction - direction == 0; };
  double sum = 0;
  if (!in.softmax) {
    for (int64_t c = thread_of_group<G>(); c <= s.L; c += G)
      if (const int32_t v = class_with_occupancy(c); v >= 0) sum -= double(occupancy[c]) * double(widen(directions[v]));
    return sum;
  }
  const F shift = in.rows[2 * r], scale = in.rows[2 * r + 1];
  if (scale == 0) return 0;
  const auto softmax = [&](F logit) { return scale * exp_of_nonpositive(logit - shift); };
  bool all_finite = true;
  for_each_with_direction<G>(x, directions, s.V, [&](int64_t, F logit, F direction) {
    const bool finite = is_finite(direction);
    if (finite) sum += double(softmax(logit)) * double(direction);
    all_finite &= finite;
  });
  if (!all_finite)
    for (int64_t v = thread_of_group<G>(); v < s.V; v += G) {
      const F direction = widen(directions[v]);
      if (is_finite(direction)) continue;
      F gradient = softmax(widen(x[v]));
      for (int64_t c = 0; c <= s.L; ++c) gradient -= class_with_occupancy(c) == v ? occupancy[c] : F(0);
      if (gradient != 0) sum += double(gradient) * double(direction);
    }
  for (int64_t c = thread_of_group<G>(); c <= s.L; c += G) {  // of a row of NaN: padding too
    const int32_t v = class_with_occupancy(c);
    if (v < 0) continue;
    const F direction = widen(directions[v]);
    if (is_finite(direction)) sum -= double(occupancy[c]) * double(direction);
  }
  return sum;
}

template <class A, int G> __global__ void __launch_bounds__(kThreadsOfBlock<G>, kBlocksAtOnce<A, G>)
    tangent_kernel(TangentArguments<A> a) {
  using F = Computed<A>;
  const Rows<A>& in = a.in;
  const Shape& s = in.shape;
  const int64_t r = row_of_group<G>();
  if (r >= s.rows()) return;
  const Place at = place_of(s, r);
  double sum = 0;
  if (at.t < in.lengths[at.sequence]) {
    const A* const d = a.directions + r * s.V;
    // Where the gradient is exactly 0 the direction may be anything.
    if (s.dense()) {
      const F* const unit = in.columns + r * s.V;
      for (int64_t v = thread_of_group<G>(); v < s.V; v += G)
        if (unit[v] != 0) sum += double(unit[v]) * double(widen(d[v]));
    } else {
      sum = compact_tangent<A, G>(in, r, at.sequence, d);
    }
  }
  sum = sum_of_group<G>(sum);
  if (thread_of_group<G>() == 0) reinterpret_cast<double*>(a.scratch + at.sequence * a.stride)[at.t] = sum;
}

template <class F> struct SumsArguments {
  int64_t T;
  F* tangents;
  const char* scratch;
  int64_t stride;
};

template <class F> __global__ void __launch_bounds__(kWarp) sums_kernel(SumsArguments<F> a) {
  const double* const rows = reinterpret_cast<const double*>(a.scratch + blockIdx.x * a.stride);
  double sum = 0;
  for (int64_t t = threadIdx.x; t < a.T; t += kWarp) sum += rows[t];
  sum = sum_of_lanes(sum);
  if (threadIdx.x == 0) a.tangents[blockIdx.x] = F(sum);
}

}  // namespace

const char* launch_gradient(const Problem& p, Residuals residuals, const void* cotangents, void* gradient) {
  const bool waits = p.factors() > 0 && p.acts == gradient;
  if (waits && p.shape.L > kMostLabelsInPlace) return "too many labels for a gradient in the place of acts";
  // What waits has shared memory. Eight rows of doubles may want more than there is; then each has a block.
  const int64_t waiting = waits ? (p.shape.L + 1) * (p.dtype == Dtype::kF64 ? 8 : 4) : 0;
  const bool alone = kRowsOfBlock<kWarp> * waiting > shared_memory_limit();
  return for_rows_of(p, alone ? max_of(p.shape.V, kMostOfWarp + 1) : p.shape.V, [&](auto type, auto threads) {
    using A = decltype(type);
    using F = Computed<A>;
    constexpr int G = decltype(threads)::value;
    const GradientArguments<A> a = {Rows<A>(p, residuals), static_cast<const F*>(cotangents),
                                    static_cast<A*>(gradient)};
    return launch(gradient_kernel<A, G>, blocks_for<G>(p.shape), kThreadsOfBlock<G>, kRowsOfBlock<G> * waiting,
                  p.stream, a);
  });
}

const char* launch_tangent_rows(const Problem& p, Residuals residuals, const void* directions, void* scratch) {
  return for_rows_of(p, read_by_lattice(p), [&](auto type, auto threads) {
    using A = decltype(type);
    constexpr int G = decltype(threads)::value;
    const TangentArguments<A> a = {Rows<A>(p, residuals), static_cast<const A*>(directions),
                                   static_cast<char*>(scratch), scratch_stride(Operation::kTangent, p)};
    return launch(tangent_kernel<A, G>, blocks_for<G>(p.shape), kThreadsOfBlock<G>, G / kWarp * sizeof(double),
                  p.stream, a);
  });
}

const char* launch_tangent_sums(const Problem& p, void* tangents, void* scratch) {
  const int64_t stride = scratch_stride(Operation::kTangent, p);
  const auto run = [&](auto type) {
    using F = decltype(type);
    const SumsArguments<F> a = {p.shape.T, static_cast<F*>(tangents), static_cast<const char*>(scratch), stride};
    return launch(sums_kernel<F>, p.shape.sequences(), kWarp, 0, p.stream, a);
  };
  return p.dtype == Dtype::kF64 ? run(double()) : run(float());
}

}  // namespace cuda
}  // namespace jax_ctc

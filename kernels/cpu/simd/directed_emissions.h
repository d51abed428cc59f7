// SPDX-License-Identifier: Apache-2.0
// What the lattice of a Hessian-vector product needs of acts and of the direction (docs/ctc.md, eq. 12).
#pragma once

#include "emissions.h"

namespace jax_ctc {
namespace {

// Emissions together with their derivative along the direction. First the direction's mean under the occupancies is
// subtracted at each frame. This does not change the result, because the cost does not change when all logits of a
// frame change by the same number. Without it float32 would lose the noise of a direction of 1000 + noise to rounding.
template <class F> class DirectedSource {
 public:
  using Value = Dual<F>;
  static constexpr int N = kLanes<F>;

  DirectedSource(const Sequence<F>& in, const HvpArguments<F>& arguments, int64_t pairs)
      : source(in, pairs), in(in), arguments(arguments), pairs(pairs) {}

  EmissionSource<Value> source;
  F* centre;  // [T] mean of the direction under the occupancies
  F* mean;    // [T] mean of the direction under the softmax, minus `centre`

  int64_t frame_bytes() const { return source.frame_bytes(); }

  void lay_out(Arena& arena, int64_t block) {
    source.lay_out(arena, block);
    arena.take(centre, in.length), arena.take(mean, in.length);
    arena.take(wide, is_half(in.dtype) ? kFrames * in.V : 0);
    arena.take(table, source.by_table ? table_size<F>(in.V) : 0);
  }

  void initialise() { source.initialise(); }

  bool read(int64_t begin, int64_t end, RunningProduct* product) {
    const bool first = product != nullptr;
    if (arguments.rows != nullptr) product = nullptr;  // the residuals have the normalisers
    if constexpr (N >= kFrames) {
      if (source.by_table) {
        for (int64_t t = (end - 1) / kFrames * kFrames; t >= begin; t -= kFrames) {
          const int64_t after = min_of(t + kFrames, end);
          if (!source.read(t, after, product)) return false;
          change_group(t, after, first);
        }
        return true;
      }
    }
    if (!source.read(begin, end, product)) return false;
    for (int64_t t = begin; t < end; ++t) change(t, first);
    return true;
  }

  Emissions<Value> emissions(int64_t t) const { return source.emissions(t); }

  // A row of the direction as F. A row of halves is valid until the next call with the same `place`.
  const F* direction(int64_t t, int64_t place = 0) const {
    return widened(in.dtype, direction_at(t), in.V, wide + place * in.V);
  }

  const void* direction_at(int64_t t) const {
    return static_cast<const char*>(arguments.direction) + t * source.frame_step;
  }

 private:
  // The derivative of the emission p * 2^q if that of its logit is u. A dead emission has derivative 0, and one of
  // which change_in_frame says so.
  template <class V> static CTC_INLINE V change_of(V p, Integer<V> q, V u, V centre) {
    return q == kDead ? V{} : p * change_in_frame(u, centre);
  }

  const F* columns_at(int64_t t) const { return arguments.columns + t * arguments.columns_stride; }

  // Means are computed relative to the direction at the blank, so that they too keep the noise of 1000 + noise.
  static F base_of(F blank) { return is_finite(blank) ? blank : F(0); }

  void find_means(int64_t t, const F* u, F base, double of_softmax) {
    const F* columns = columns_at(t);
    double of_occupancy;
    if (arguments.dense) {  // the columns are softmax - occupancy. Of log-scores there is no softmax, and its mean is 0
      const F of_columns = dot(columns, u, base, in.V);
      of_occupancy = of_softmax - double(of_columns);
    } else {
      of_occupancy = term(columns[0], u[in.blank], base);
      for (int64_t i = 0; i < in.L; ++i) of_occupancy += term(columns[arguments.own_column[i]], u[in.labels[i]], base);
    }
    centre[t] = F(double(base) + of_occupancy);
    mean[t] = F(of_softmax - (double(centre[t]) - double(base)));
  }

  static double term(F occupancy, F u, F base) {
    return occupancy == 0 ? 0 : double(occupancy) * (double(u) - double(base));
  }

  // The sum of g[v] * (u[v] - base). One float sum is enough, because V is less than the number of labels.
  static F dot(const F* g, const F* u, F base, int64_t V) {
    using Vec = Lanes<F>;
    Vec sum = {};
    const auto term = [base](Vec a, Vec b) {
      return a == Vec{} ? Vec{} : a * (b - base);  // where g is 0, u may be inf
    };
    int64_t v = 0;
    for (; v + N <= V; v += N) sum += term(load<Vec>(g + v), load<Vec>(u + v));
    if (v < V) sum += term(load_last<Vec>(g, V, V - v, F(0)), load_last<Vec>(u, V, V - v, F(0)));
    return sum_of_lanes(sum);
  }

  // Writes the derivatives of the emissions that source.read has computed. In the first pass it finds the means before.
  void change(int64_t t, bool first) {
    const F* u = direction(t);
    if (first) {
      const F base = base_of(u[in.blank]);
      const double of_softmax =
          in.softmax ? softmax_dot(source.row(t), in.V, source.shift[t], source.scale[t], u, base) : 0;
      find_means(t, u, base, of_softmax);
    }
    const Emissions<Value> y = emissions(t);
    const auto of = [&](int64_t i, int32_t label) {
      return change_of(y.mantissas()[i], y.exponents()[i], u[label], centre[t]);
    };
    for (int64_t i = 0; i < in.L; ++i) y.changes()[i] = of(i, in.labels[i]);
    for (int64_t i = in.L; i < pairs; ++i) y.changes()[i] = 0;
    store(y.changes() + y.last, splat<Lanes<F>>(of(y.last, in.blank)));
  }

  // Does the same for a group of frames, whose table is still there.
  void change_group(int64_t begin, int64_t end, bool first) {
    using V = Lanes<F>;
    const F* rows[kFrames];
    F* to[kFrames];
    for (int k = 0; k < kFrames; ++k) {
      rows[k] = direction(min_of(begin + k, end - 1), k);
      to[k] = emissions(begin).changes() + k * source.frame_bytes() / int64_t(sizeof(F));
    }
    if (begin > 0) prefetch_group(direction_at(begin - kFrames), source.frame_step, source.row_bytes);
    if (begin > 0 && first && arguments.dense)
      prefetch_group(columns_at(begin - kFrames), arguments.columns_stride * sizeof(F), in.V * sizeof(F));
    tabulate(rows, in.V, F(0), table);
    if (first) find_means_of_group(begin, end, rows);
    Quad<F> centres;
    for (int k = 0; k < kFrames; ++k) centres[k] = centre[min_of(begin + k, end - 1)];
    const V c = tiled<F>(centres);
    for (int64_t i = 0; i < kFrames * source.classes; i += N) {
      const V p = load<V>(source.table.p + i);
      store(table + i, change_of(p, load<Integer<V>>(source.table.q + i), load<V>(table + i), c));
    }
    gather(table, source.places, {0, pairs}, to);
    for (int k = 0; k < kFrames; ++k) store(to[k] + pairs, splat<V>(table[kFrames * int64_t(in.blank) + k]));
  }

  void find_means_of_group(int64_t begin, int64_t end, const F* const (&rows)[kFrames]) {
    using V = Lanes<F>;
    Quad<F> bases;
    for (int k = 0; k < kFrames; ++k) bases[k] = base_of(rows[k][in.blank]);
    const V base = tiled<F>(bases);
    V sum = {};
    for (int64_t i = 0; i < kFrames * source.classes; i += N) {
      const V y = load<V>(source.table.p + i) * pow2<V>(load<Integer<V>>(source.table.q + i));
      sum += y == V{} ? V{} : y * (load<V>(table + i) - base);
    }
    sum = sum_over<kFrames, N>(sum);
    for (int64_t k = 0; k < end - begin; ++k)
      find_means(begin + k, rows[k], bases[k], in.softmax ? double(sum[k]) * double(source.scale[begin + k]) : 0);
  }

  const Sequence<F>& in;
  const HvpArguments<F>& arguments;
  const int64_t pairs;
  F* wide;   // rows of halves as floats
  F* table;  // [class][frame]
};

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// What the forward pass of training keeps of each frame: occupancies, or the gradient itself (interface.h).
#pragma once

#include "class_sums.h"
#include "group_products.h"
#include "sequence_rows.h"

namespace jax_ctc {
namespace {

template <class F> class ResidualWriter {
 public:
  ResidualWriter(const Sequence<F>& in, const SequenceResiduals<F>& out, const SequenceRows<F>& rows, int64_t pairs)
      : in(in), out(out), rows(rows), pairs(pairs) {}

  void lay_out(Arena& arena) { sums.lay_out(arena, out.dense ? rows.classes : 0); }

  // Frame t, in order. `products` are alpha * beta of the labels, [frame in its group][pair].
  void keep(int64_t t, const F* products, F blank, F of_labels) {
    const Share<F> share(blank + of_labels);
    if (!out.dense) return keep_compact(t, products + t % kFrames * pairs, blank, share);
    blanks[t % kFrames] = blank, scales[t % kFrames] = share.scale;
    if (t % kFrames == kFrames - 1 || t == in.length - 1) keep_dense(t / kFrames * kFrames, t + 1, products);
  }

 private:
  void keep_dense(int64_t begin, int64_t end, const F* products) {
    if constexpr (kLanes<F> >= kFrames)
      if (rows.by_table) sums.gather(products, rows.places, pairs, in.blank, load_quad(blanks));
    for (int64_t t = begin; t < end; ++t) {
      F* taken = sums.row(t);
      if (!rows.by_table) {
        for (int64_t v = 0; v < in.V; ++v) taken[v] = 0;
        for (int64_t i = 0; i < in.L; ++i) taken[in.labels[i]] += products[t % kFrames * pairs + i];
        taken[in.blank] = blanks[t % kFrames];
      }
      F* to = out.columns + t * out.columns_stride;
      if (in.softmax)
        softmax_less(rows.row(t), in.V, rows.shift[t], rows.scale[t], taken, scales[t % kFrames], to);
      else
        minus(taken, in.V, scales[t % kFrames], to);
    }
  }

  void keep_compact(int64_t t, const F* of_labels, F blank, Share<F> share) {
    F* columns = out.columns + t * out.columns_stride;
    columns[0] = share(blank);
    if (out.has_gaps) {
      for (int64_t i = 1; i < out.width; ++i) columns[i] = 0;
      for (int64_t i = 0; i < in.L; ++i) columns[out.column_of_label[i]] += share(of_labels[i]);
    } else {
      keep_shares(of_labels, share, columns + 1);
      for (int64_t i = 1 + in.L; i < out.width; ++i) columns[i] = 0;
      for (int64_t r = 0; r < out.repeats; ++r) {
        const int64_t i = out.repeated[r];
        columns[out.column_of_label[i]] += columns[1 + i];
        columns[1 + i] = 0;
      }
    }
    if (out.rows == nullptr) return;
    out.rows[t * out.rows_stride] = rows.shift[t];
    out.rows[t * out.rows_stride + 1] = rows.scale[t];
  }

  // The shares of all labels. What lies behind them belongs to another sequence.
  void keep_shares(const F* of_labels, Share<F> share, F* to) const {
    using Vec = Lanes<F>;
    constexpr int N = kLanes<F>;
    const auto at = [&](int64_t i) { return share(load<Vec>(of_labels + i)); };
    if (in.L < N) return store_first(to, at(0), in.L);
    for (int64_t i = 0; i + N <= in.L; i += N) store(to + i, at(i));
    if (in.L % N > 0) store(to + in.L - N, at(in.L - N));
  }

  const Sequence<F>& in;
  const SequenceResiduals<F>& out;
  const SequenceRows<F>& rows;
  const int64_t pairs;
  ClassSums<F> sums;
  F blanks[kFrames], scales[kFrames];  // of each frame: the blank's alpha * beta, and the scale of Share
};

// The same from GroupLattice::sweep_alpha.
class GroupResiduals {
  using F = float;

 public:
  GroupResiduals(const Sequence<F>& in, const SequenceResiduals<F>& out, const SequenceRows<F>& rows, int64_t pairs)
      : pairs(pairs), writer(in, out, rows, pairs) {}

  void lay_out(Arena& arena) { products.lay_out(arena, pairs), writer.lay_out(arena); }
  void start(int64_t t, Window window) { products.start(t, window); }
  auto adder(int frame) const { return products.adder(frame); }
  void finish(int64_t t, int64_t count, const double (&of_blank)[kFrames], double total) {
    for (int f = 0; f < count; ++f) writer.keep(t + f, products.at, F(of_blank[f]), F(total - of_blank[f]));
  }

 private:
  const int64_t pairs;
  GroupProducts products;
  ResidualWriter<F> writer;
};

}  // namespace
}  // namespace jax_ctc

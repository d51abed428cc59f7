// SPDX-License-Identifier: Apache-2.0
// Adds up numbers of the labels by class, at four frames, where rows go through a table (class_table.h).
#pragma once

#include "arena.h"
#include "class_table.h"

namespace jax_ctc {
namespace {

template <class F> class ClassSums {
  static constexpr int N = kLanes<F>;

 public:
  void lay_out(Arena& arena, int64_t table_classes) {
    classes = padded<F>(table_classes);
    arena.take(sums, kFrames * classes), arena.take(rows, kFrames * classes);
  }

  const F* by_class() const { return sums; }                        // [class][frame]
  F* row(int64_t t) const { return rows + t % kFrames * classes; }  // [class], after to_rows

  void clear() {
    F* const sums = this->sums;
    for (int64_t i = 0, n = kFrames * classes; i < n; i += N) store(sums + i, Lanes<F>{});
  }

  // Adds the numbers of `pairs` labels, [frame][pair], in label order.
  void add(const F* values, const int32_t* places, int64_t pairs) {
    F* const sums = this->sums;  // the stores do not change it
    for (int64_t i = 0; i < pairs; i += 4) {
      Quad<F> at[kFrames];
      for (int k = 0; k < kFrames; ++k) at[k] = load_quad(values + k * pairs + i);
      transpose_groups(at);
      for (int j = 0; j < 4; ++j) add_quad(sums + places[i + j], at[j]);
    }
  }
  // Adds those of a vector of labels. at[k] has those of frame k.
  class Adder {
   public:
    Adder(F* sums, const int32_t* places) : sums(sums), places(places) {}
    template <class V> CTC_INLINE void add(V (&at)[kFrames], int64_t i) const {
      transpose_groups(at);
      add_group<0>(at, places + i);
      if constexpr (kCount<V> == 8) add_group<1>(at, places + i + 4);
    }

   private:
    template <int kGroup, class V> CTC_INLINE void add_group(const V (&at)[kFrames], const int32_t* place) const {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        add_quad(sums + place[j],
                 __builtin_shufflevector(at[j], at[j], 4 * kGroup, 4 * kGroup + 1, 4 * kGroup + 2, 4 * kGroup + 3));
    }
    F* const sums;
    const int32_t* const places;
  };
  Adder adder(const int32_t* places) const { return {sums, places}; }

  void set(int32_t label, Quad<F> at) { store_quad<F>(sums + kFrames * int64_t(label), at); }

  // All of this: by row, the sums of the labels' numbers, [frame][pair], and the blank's.
  void gather(const F* values, const int32_t* places, int64_t pairs, int32_t blank, Quad<F> of_blank) {
    clear(), add(values, places, pairs), set(blank, of_blank), to_rows();
  }

  // The stores are whole vectors, because rows are loaded right behind them. They change none of the members.
  void to_rows() {
    const F* const sums = this->sums;
    F* const rows = this->rows;
    const int64_t classes = this->classes;
    for (int64_t v = 0; v < classes; v += N) {
      Lanes<F> at[kFrames];
      join_groups<F>([&](int k) { return sums + kFrames * (v + k); }, at, Groups<F>{});
      for (int k = 0; k < kFrames; ++k) store(rows + k * classes + v, at[k]);
    }
  }

 private:
  static CTC_INLINE void add_quad(F* sum, Quad<F> at) { store_quad<F>(sum, load_quad<F>(sum) + at); }

  int64_t classes = 0;
  F* sums = nullptr;
  F* rows = nullptr;
};

}  // namespace
}  // namespace jax_ctc

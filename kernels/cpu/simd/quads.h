// SPDX-License-Identifier: Apache-2.0
// Numbers at four frames. In a vector, lane i is of frame i % 4, and each group of four lanes is of one class.
#pragma once

#include "lanes.h"

namespace jax_ctc {
namespace {

constexpr int kFrames = 4;

template <class F> struct QuadOf {
  typedef F type __attribute__((vector_size(kFrames * sizeof(F))));
};
template <class F> using Quad = typename QuadOf<F>::type;

template <class F> CTC_FN Quad<F> load_quad(const F* from) {
  Quad<F> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class F> CTC_FN void store_quad(F* to, Quad<F> v) { __builtin_memcpy(to, &v, sizeof v); }
// The first four lanes, as numbers of type F.
template <class F, class V> CTC_FN Quad<F> first_quad(V v) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3), Quad<F>);
}

// A vector is a row of groups of kFrames = 4 numbers. A Quad is one group.
template <class F> using Groups = typename Count<kLanes<F> / kFrames>::type;

// GCC 12 needs pairs: from a larger initialiser it makes stores and a load.
template <class V> CTC_FN auto both(V a, V b) {
  if constexpr (kCount<V> == 4)
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
  else
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
// The four numbers, repeated over all lanes.
template <class F> CTC_FN Lanes<F> tiled(Quad<F> v) {
  if constexpr (kLanes<F> == 4) return v;
  if constexpr (kLanes<F> == 8) return both(v, v);
  if constexpr (kLanes<F> == 16) return both(both(v, v), both(v, v));
}
// One group from each place.
template <class F, int... G> CTC_FN Lanes<F> join(const F* const (&from)[sizeof...(G)], Indices<G...>) {
  constexpr int n = sizeof...(G);
  if constexpr (n == 1) return load_quad(from[0]);
  if constexpr (n == 2) return both(load_quad(from[0]), load_quad(from[n - 1]));
  if constexpr (n == 4)
    return both(both(load_quad(from[0]), load_quad(from[n / 4])), both(load_quad(from[n / 2]), load_quad(from[n - 1])));
}
// The named groups of v and w, which are numbered together.
template <int... kGroup, class V, int... K> CTC_FN V groups_of(V v, V w, Indices<K...>) {
  constexpr int group[] = {kGroup...};
  return __builtin_shufflevector(v, w, (4 * group[K / 4] + K % 4)...);
}
template <int... kGroup, class V> CTC_FN V groups_of(V v, V w) {
  return groups_of<kGroup...>(v, w, typename Count<kCount<V>>::type{});
}
// Of vectors of four groups: to[k] = group k of all four.
template <class V> CTC_FN void exchange_groups(const V (&v)[4], V (&to)[4]) {
  const V low = groups_of<0, 1, 4, 5>(v[0], v[1]), high = groups_of<2, 3, 6, 7>(v[0], v[1]);
  const V LOW = groups_of<0, 1, 4, 5>(v[2], v[3]), HIGH = groups_of<2, 3, 6, 7>(v[2], v[3]);
  to[0] = groups_of<0, 2, 4, 6>(low, LOW), to[1] = groups_of<1, 3, 5, 7>(low, LOW);
  to[2] = groups_of<0, 2, 4, 6>(high, HIGH), to[3] = groups_of<1, 3, 5, 7>(high, HIGH);
}
// Stores group 0 of all four, then group 1 of all four, and so on. A narrower store would delay the vector loads that
// follow.
template <class V, class F> CTC_FN void store_by_group(F* to, const V (&v)[4]) {
  const auto put = [&](int i, V x) { __builtin_memcpy(to + i * kCount<V>, &x, sizeof x); };
  if constexpr (kCount<V> == 4) {
    put(0, v[0]), put(1, v[1]), put(2, v[2]), put(3, v[3]);
  } else if constexpr (kCount<V> == 8) {
    put(0, groups_of<0, 2>(v[0], v[1])), put(1, groups_of<0, 2>(v[2], v[3]));
    put(2, groups_of<1, 3>(v[0], v[1])), put(3, groups_of<1, 3>(v[2], v[3]));
  } else {
    V by_group[4];
    exchange_groups(v, by_group);
    put(0, by_group[0]), put(1, by_group[1]), put(2, by_group[2]), put(3, by_group[3]);
  }
}
// The vectors v that store_by_group would store as `at`.
template <class V> CTC_FN void from_groups(const V (&at)[4], V (&v)[4]) {
  if constexpr (kCount<V> == 4) {
    v[0] = at[0], v[1] = at[1], v[2] = at[2], v[3] = at[3];
  } else if constexpr (kCount<V> == 8) {
    v[0] = groups_of<0, 2>(at[0], at[2]), v[1] = groups_of<1, 3>(at[0], at[2]);
    v[2] = groups_of<0, 2>(at[1], at[3]), v[3] = groups_of<1, 3>(at[1], at[3]);
  } else {
    exchange_groups(at, v);
  }
}
// In each group: v[k] = (v[0][k], v[1][k], v[2][k], v[3][k]). Both steps stay inside 16 bytes where instructions do.
template <class V, int... K> CTC_FN void transpose_groups(V (&v)[4], Indices<K...>) {
  constexpr int N = sizeof...(K);
  constexpr bool kWide = sizeof(v[0][0]) == 8;  // a group is 32 bytes
  // Lane K of the lower, and of the upper halves of a pair of vectors.
  constexpr auto low = [](int k) { return k / 4 * 4 + (kWide ? k % 4 / 2 * 2 : k % 4 / 2) + k % 2 * N; };
  constexpr int up = kWide ? 1 : 2;
  const V ab = __builtin_shufflevector(v[0], v[1], low(K)...),
          AB = __builtin_shufflevector(v[0], v[1], (low(K) + up)...);
  const V cd = __builtin_shufflevector(v[2], v[3], low(K)...),
          CD = __builtin_shufflevector(v[2], v[3], (low(K) + up)...);
  constexpr auto first = [](int k) { return k / 4 * 4 + k % 2 + k % 4 / 2 * N; };
  v[0] = __builtin_shufflevector(ab, cd, first(K)...);
  v[kWide ? 2 : 1] = __builtin_shufflevector(ab, cd, (first(K) + 2)...);
  v[kWide ? 1 : 2] = __builtin_shufflevector(AB, CD, first(K)...);
  v[3] = __builtin_shufflevector(AB, CD, (first(K) + 2)...);
}
template <class V> CTC_FN void transpose_groups(V (&v)[4]) { transpose_groups(v, typename Count<kCount<V>>::type{}); }

// The largest lane of each of four vectors, tiled.
template <class F> CTC_FN Lanes<F> largest_of_frames(Lanes<F> a, Lanes<F> b, Lanes<F> c, Lanes<F> d) {
  Lanes<F> at[kFrames] = {a, b, c, d};
  transpose_groups(at);
  return max_over<kFrames, kLanes<F>>(max_of(max_of(at[0], at[1]), max_of(at[2], at[3])));
}

struct Itself {
  template <class V> CTC_INLINE V operator()(V v) const { return v; }
};
// to[frame] = the entries at four frames of as many classes as a vector has lanes. at(i) is where those of class i
// stand. `each` is applied to every entry first.
template <class F, class At, class Each = Itself, int... G>
CTC_FN void join_groups(At at, Lanes<F> (&to)[kFrames], Indices<G...>, Each each = {}) {
  for (int j = 0; j < 4; ++j) to[j] = each(join<F>({at(4 * G + j)...}, Groups<F>{}));
  transpose_groups(to);
}
// Entries i to i + kLanes of to[frame][i] = each(table[place of i][frame]). The place of a class is kFrames times its
// number. Returns the smallest of each lane, if entries are numbers.
template <class F, class Each = Itself> CTC_FN Lanes<F> gather_vector(const F* table, const int32_t* places, int64_t i,
                                                                      F* const (&to)[kFrames], Each each = {}) {
  Lanes<F> v[kFrames];
  join_groups<F>([&](int k) { return table + places[i + k]; }, v, Groups<F>{}, each);
  for (int k = 0; k < kFrames; ++k) store(to[k] + i, v[k]);
  return min_of(min_of(v[0], v[1]), min_of(v[2], v[3]));
}

}  // namespace
}  // namespace jax_ctc

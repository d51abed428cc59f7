// SPDX-License-Identifier: Apache-2.0
// One row, V activations of one frame, shared out among the threads of a group: a warp, or a block.
#pragma once

#include <type_traits>

#include "../common/batch.h"
#include "../common/emission.h"
#include "numbers.cuh"
#include "warp.cuh"
#include "workspace.h"

namespace jax_ctc {
namespace cuda {

// Threads of a row and of a block. A thread has about eight loads of 16 bytes of a row, because with more threads more
// warps would pay what a row costs beside its loads.
constexpr int kBlockOfRows = 256;
constexpr int64_t kMostOfWarp = 2048;  // elements of a row
constexpr int threads_per_row(int64_t V) { return V <= kMostOfWarp ? 32 : V <= 8192 ? 128 : 256; }
template <int G> constexpr int kRowsOfBlock = G == kWarp ? kBlockOfRows / kWarp : 1;
template <int G> constexpr int kThreadsOfBlock = G == kWarp ? kBlockOfRows : G;
// Blocks that a multiprocessor must find registers for: 1024 threads with 64 each. Doubles get 128, so 512 threads.
template <class A, int G> constexpr int kBlocksAtOnce = (sizeof(A) == 8 ? 512 : 1024) / kThreadsOfBlock<G>;

template <int G> CTC_DEVICE void group_barrier() {
  if (G == kWarp)
    __syncwarp();
  else
    __syncthreads();
}
template <int G> CTC_DEVICE int thread_of_group() { return threadIdx.x % G; }
// The blocks before `first_block` have other work.
template <int G> CTC_DEVICE int64_t row_of_group(int64_t first_block = 0) {
  return (blockIdx.x - first_block) * kRowsOfBlock<G> + threadIdx.x / G;
}
// Shared memory of the group: `n` values each.
template <int G, class E> CTC_DEVICE E* group_memory(int64_t n) {
  return reinterpret_cast<E*>(shared_memory()) + threadIdx.x / G * n;
}

// In every thread of the group, the same bits.
template <int G, class F> CTC_DEVICE F sum_of_group(F x) {
  x = sum_of_lanes(x);
  if (G == kWarp) return x;
  F* const parts = reinterpret_cast<F*>(shared_memory());
  __syncthreads();  // what was there before has been read
  if (lane_index() == 0) parts[warp_index()] = x;
  __syncthreads();
  x = parts[0];
  for (int i = 1; i < G / kWarp; ++i) x += parts[i];
  return x;
}

// What every kernel on rows is given.
template <class A> struct Rows {
  Shape shape;
  int32_t blank;
  bool softmax, keeps_rows;  // of Batch; whether `rows` has elements
  const int32_t *labels, *lengths;
  const A* acts;
  Computed<A>*rows, *columns;  // residuals; null for the loss alone

  Rows(const Batch& p, Residuals residuals)
      : shape(p.shape),
        blank(p.blank),
        softmax(p.softmax),
        keeps_rows(p.factors() > 0),
        labels(p.labels),
        lengths(p.lengths),
        acts(static_cast<const A*>(p.acts)),
        rows(static_cast<Computed<A>*>(residuals.rows)),
        columns(static_cast<Computed<A>*>(residuals.columns)) {}

  // The class of column c: the blank, then the labels. It is -1 for padding and for a label that is no class. Every
  // kernel checks labels again, because a caller may pass residuals of other labels.
  CTC_DEVICE int32_t class_of(int64_t sequence, int64_t c) const {
    const int32_t label = c == 0 ? blank : labels[sequence * shape.L + c - 1];
    return label < shape.V ? max_of(label, -1) : -1;
  }

  // The dither of row r, which is of frame t (dither.h): kNearest unless this frame and those before it may be alike.
  CTC_DEVICE int32_t dither_of_row(int64_t r, int64_t t) const {
    if (sizeof(Computed<A>) == sizeof(double) || t < 3) return kNearest;
    const auto blank_at = [&](int64_t back) { return widen(acts[(r - back * shape.B) * shape.V + blank]); };
    return may_be_alike(blank_at) ? dither_of(t) : kNearest;
  }
};

// An element of the gradient or of a Hessian-vector product times the cotangent of its sequence. Exactly 0 stays
// exactly 0: inf and NaN, as of cost ** 2 where the cost is inf, reach nothing that has no gradient.
template <class F> CTC_DEVICE F times_cotangent(F x, F cotangent) {
  const bool finite = cotangent - cotangent == 0;  // only here does a product of 0 keep the sign that it had
  return x == 0 && !finite ? F(0) : cotangent * x;
}

// The sequence and the frame of a row: sequence_of_row and frame_of_row of Shape, with a faster division.
struct Place {
  int64_t sequence, t;
};
CTC_DEVICE Place place_of(const Shape& s, int64_t r) {
  const int64_t outer = quotient(r, s.T * s.B), inner = r - outer * s.T * s.B, t = quotient(inner, s.B);
  return {outer * s.B + (inner - t * s.B), t};
}

// f(A(), G): the type of acts, and how many threads a row of theirs gets, of which `read` elements are read.
template <class Function> const char* for_rows_of(const Batch& p, int64_t read, Function f) {
  const auto with_type = [&](auto type) {
    switch (threads_per_row(read)) {
      case 32: return f(type, std::integral_constant<int, 32>());
      case 128: return f(type, std::integral_constant<int, 128>());
      default: return f(type, std::integral_constant<int, 256>());
    }
  };
  switch (p.dtype) {
    case Dtype::kF32: return with_type(float());
    case Dtype::kF64: return with_type(double());
    case Dtype::kBF16: return with_type(__nv_bfloat16());
    case Dtype::kF16: return with_type(__half());
  }
  return "unknown dtype";
}
template <class Function> const char* for_rows_of(const Batch& p, Function f) { return for_rows_of(p, p.shape.V, f); }
// Elements of a row that the lattice needs.
inline int64_t read_by_lattice(const Batch& p) { return p.softmax ? p.shape.V : p.shape.L + 1; }
template <int G> int64_t blocks_for(const Shape& s) { return (s.rows() + kRowsOfBlock<G> - 1) / kRowsOfBlock<G>; }

// `size` elements of an array, read `n` at a time.
template <int n, int size, class A> CTC_DEVICE Piece<A, size> load_piece(const A* from) {
  Piece<A, size> piece;
#pragma unroll
  for (int k = 0; k < size; k += n) {
    const Piece<A, n> some = *reinterpret_cast<const Piece<A, n>*>(from + k);
#pragma unroll
    for (int j = 0; j < n; ++j) piece.at[k + j] = some.at[j];
  }
  return piece;
}
template <class A> CTC_DEVICE void store_piece(A* to, Piece<A> piece) { *reinterpret_cast<Piece<A>*>(to) = piece; }

// Pieces that are loaded before any is used: with more, 16-bit elements, twice as many of them, do not fit the
// registers.
template <class A, int size> constexpr int kAhead = size > 4 ? 2 : 4;

// Calls use(piece, i) for each piece i that falls to this thread.
template <int G, int n, int size, class A, class Use>
CTC_DEVICE void for_each_piece(const A* first, int64_t pieces, Use use) {
  for (int64_t i = thread_of_group<G>(); i < pieces; i += G * kAhead<A, size>) {
    Piece<A, size> piece[kAhead<A, size>];
#pragma unroll
    for (int u = 0; u < kAhead<A, size>; ++u)
      if (i + u * G < pieces) piece[u] = load_piece<n, size>(first + (i + u * G) * size);
#pragma unroll
    for (int u = 0; u < kAhead<A, size>; ++u)
      if (i + u * G < pieces) use(piece[u], i + u * G);
  }
}

// Calls use(x) for all that falls to this thread of a row: pieces, then elements. Elements are dealt by their number,
// not by their address, because sums depend on it and an address depends on the batch. A row that does not begin at a
// multiple of a piece's bytes is read in smaller steps.
template <int G, class A, class Use> CTC_DEVICE void for_each(const A* row, int64_t V, Use use) {
  // As many 16-bit elements as floats: a row has the same sum in every dtype that its numbers fit.
  constexpr int kWhole = min_of(4, Piece<A>::size), kPart = sizeof(A) == 2 ? 2 : 1;
  const int64_t pieces = V / kWhole;
  const auto use_piece = [&](const Piece<A, kWhole>& piece, int64_t) { use(piece); };
  const auto aligned_to = [row](size_t bytes) { return reinterpret_cast<uintptr_t>(row) % bytes == 0; };
  if (aligned_to(kWhole * sizeof(A)))
    for_each_piece<G, kWhole, kWhole>(row, pieces, use_piece);
  else if (kPart > 1 && aligned_to(kPart * sizeof(A)))
    for_each_piece<G, kPart, kWhole>(row, pieces, use_piece);
  else
    for_each_piece<G, 1, kWhole>(row, pieces, use_piece);
  for (int64_t v = pieces * kWhole + thread_of_group<G>(); v < V; v += G) use(row[v]);
}

// Calls use(v, logit, direction) for the classes of a row that fall to this thread, in order. Four are loaded before
// any is used, because a load does not pass the store or the branch of the class before it.
template <int G, class A, class Use>
CTC_DEVICE void for_each_with_direction(const A* logits, const A* directions, int64_t V, Use use) {
  using F = Computed<A>;
  constexpr int kAtOnce = 4;
  for (int64_t first = thread_of_group<G>(); first < V; first += kAtOnce * G) {
    F x[kAtOnce], u[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (const int64_t v = first + i * G; v < V) x[i] = widen(logits[v]), u[i] = widen(directions[v]);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (const int64_t v = first + i * G; v < V) use(v, x[i], u[i]);
  }
}

// A row to write, in pieces of 16 bytes at their addresses, and the elements before and after them one by one: any V,
// any alignment.
template <class A> struct Cut {
  int64_t head, pieces, loose;
  CTC_DEVICE Cut(const A* row, int64_t V) {
    const int64_t to_boundary = (16 - (reinterpret_cast<uintptr_t>(row) & 15)) % 16 / sizeof(A);
    head = min_of(V, to_boundary);
    pieces = (V - head) / Piece<A>::size;
    loose = V - pieces * Piece<A>::size;
  }
  CTC_DEVICE int64_t at_loose(int64_t i) const { return i < head ? i : i + pieces * Piece<A>::size; }
};

// out[v] = f(x[v]); out may be x. By pieces where both are cut alike, as whole arrays of XLA are.
template <int G, class X, class A, class Function>
CTC_DEVICE void transform(const X* x, A* out, int64_t V, Function f) {
  if constexpr (sizeof(X) == sizeof(A)) {
    if (((reinterpret_cast<uintptr_t>(x) ^ reinterpret_cast<uintptr_t>(out)) & 15) == 0) {
      const Cut<A> cut(out, V);
      for_each_piece<G, Piece<X>::size, Piece<X>::size>(x + cut.head, cut.pieces,
                                                        [&](const Piece<X>& given, int64_t i) {
                                                          Piece<A> result;
#pragma unroll
                                                          for (int k = 0; k < Piece<A>::size; ++k)
                                                            result.at[k] = f(given.at[k]);
                                                          store_piece(out + cut.head + i * Piece<A>::size, result);
                                                        });
      for (int64_t i = thread_of_group<G>(); i < cut.loose; i += G) out[cut.at_loose(i)] = f(x[cut.at_loose(i)]);
      return;
    }
  }
  for (int64_t v = thread_of_group<G>(); v < V; v += G) out[v] = f(x[v]);
}

template <int G, class A> CTC_DEVICE void fill(A* out, int64_t V, A value) {
  const Cut<A> cut(out, V);
  Piece<A> piece;
#pragma unroll
  for (int k = 0; k < Piece<A>::size; ++k) piece.at[k] = value;
  for (int64_t i = thread_of_group<G>(); i < cut.pieces; i += G)
    store_piece(out + cut.head + i * Piece<A>::size, piece);
  for (int64_t i = thread_of_group<G>(); i < cut.loose; i += G) out[cut.at_loose(i)] = value;
}

// ---- the softmax -------------------------------------------------------------------------------

// Sum of exp(x - top) over some of a row. Entries equal to top are counted, not added to the others: where one class
// has nearly all of the probability, what is left keeps its digits.
template <class F> struct Softmax {
  F top = kLowest<F>;  // not -inf: (-inf) - (-inf) is NaN
  F ties = 0, tail = 0;

  CTC_DEVICE void rise(F to) {
    if (!(to > top)) return;
    tail = (tail + ties) * exp_of_nonpositive(top - to);
    ties = 0, top = to;
  }
  CTC_DEVICE void add(F x) {
    const F e = exp_of_nonpositive(x - top);
    tail += x == top ? F(0) : e;  // NaN gets in here
    ties += x == top ? F(1) : F(0);
  }
  template <class A> CTC_DEVICE void use(A x) { rise(widen(x)), add(widen(x)); }
  template <class A, int n> CTC_DEVICE void use(const Piece<A, n>& piece) {
    F most = widen(piece.at[0]);
#pragma unroll
    for (int k = 1; k < n; ++k) most = max_of<F>(widen(piece.at[k]), most);  // a NaN is passed over here
    rise(most);
#pragma unroll
    for (int k = 0; k < n; ++k) add(widen(piece.at[k]));
  }
  // NaN, +inf or nothing but -inf: no softmax.
  CTC_DEVICE bool defined() const { return top < infinity<F>() && ties + tail > 0; }
  CTC_DEVICE Sum<F> sum() const { return {defined() ? ties : not_a_number<F>(), tail}; }
  CTC_DEVICE F scale() const { return scale_of(sum()); }
};

// Of `kLanes` lanes side by side, in each of them: the same bits. All rise to the largest top at once, so that each
// needs one exp and not one for each step.
template <int kLanes = kWarp, class F> CTC_DEVICE Softmax<F> of_lanes(Softmax<F> mine) {
  F top = mine.top;
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    top = max_of(top, __shfl_xor_sync(kAllLanes, top, distance));
  mine.rise(top);
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    mine.ties += __shfl_xor_sync(kAllLanes, mine.ties, distance);
    mine.tail += __shfl_xor_sync(kAllLanes, mine.tail, distance);
  }
  return mine;
}

// Of the whole row, in every thread of the group: the same bits.
template <int G, class F> CTC_DEVICE Softmax<F> of_group(Softmax<F> mine) {
  mine = of_lanes(mine);
  if constexpr (G == kWarp) return mine;
  Softmax<F>* const parts = reinterpret_cast<Softmax<F>*>(shared_memory());
  if (lane_index() == 0) parts[warp_index()] = mine;
  __syncthreads();
  return of_lanes<G / kWarp>(parts[lane_index() % (G / kWarp)]);
}

// Of log-scores: the largest entry of those that are read, in every thread of the group; 0 if all are -inf, and NaN if
// one is NaN or +inf.
template <int G, class A> CTC_DEVICE Computed<A> reference_of_scores(const Rows<A>& in, int64_t r, int64_t sequence) {
  using F = Computed<A>;
  Softmax<F> scores;  // whose tail is only a mark: NaN stays when the top rises
  for (int64_t c = thread_of_group<G>(); c <= in.shape.L; c += G) {
    const int32_t label = in.class_of(sequence, c);
    if (label < 0) continue;
    const F x = widen(in.acts[r * in.shape.V + label]);
    scores.rise(x);
    if (!(x < infinity<F>())) scores.tail = not_a_number<F>();
  }
  scores = of_group<G>(scores);
  return scores.tail != scores.tail ? scores.tail : scores.top > kLowest<F> ? scores.top : F(0);
}

// exp(x - shift) as a value of the lattice, for x <= shift. `dither` is that of the row.
template <class F> CTC_DEVICE Scaled<F> emission(F x, F shift, int32_t dither) {
  if (dither == kNearest && x > F(-kNear<F>) && is_near<F>(shift)) return near_emission<F>(x, reduce<F>(shift));
  return any_emission(x, shift, dither);
}

// The same of several: without a branch for each.
template <int n, class F> CTC_DEVICE void emissions(const F (&x)[n], F shift, int32_t dither, Scaled<F> (&out)[n]) {
  bool near = is_near<F>(shift);
  const Reduced<F> reduced = reduce<F>(near ? shift : F(0));
  near &= dither == kNearest;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    out[i] = near_emission<F>(max_of(x[i], F(-kNear<F>)), reduced);  // farther, or NaN: a q that no int holds
    near &= x[i] > F(-kNear<F>);
  }
  if (near) return;
#pragma unroll
  for (int i = 0; i < n; ++i) out[i] = emission(x[i], shift, dither);
}

}  // namespace cuda
}  // namespace jax_ctc

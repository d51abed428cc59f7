// SPDX-License-Identifier: Apache-2.0
// The memory that kernels pass on to each other: one block of bytes a sequence, an extra result of the custom call.
// Host and device.
#pragma once

#include "../common/recursion.h"
#include "cell.h"

namespace jax_ctc {
namespace cuda {

#ifndef JAX_CTC_GAP
#define JAX_CTC_GAP \
  0  // bytes behind each array, that tests/kernels/sanitized_cuda.cpp forbids to touch; a multiple of 16
#endif

// Places an array of n elements at `at`, which then is behind it.
template <class A> CTC_FN void take(A*& array, int64_t n, char*& at) {
  array = reinterpret_cast<A*>(at);
  at += n * int64_t(sizeof(A)) + JAX_CTC_GAP;
}

// What the labels of a sequence turned out to be.
struct SequenceSummary {
  int32_t count;     // without padding
  int32_t valid;     // all of them are classes, and the length is one
  int32_t feasible;  // the length is enough for them
  int32_t frames;    // in use
};

// What the sweeps of a sequence came to. Written by the block that ends last.
struct alignas(16) SweepResult {
  double log_sums;    // of all rows
  int32_t reference;  // exponent of the total over all alignments
  int32_t has_gradient;
  int32_t blocks;   // of this sequence, that have ended
  int32_t started;  // blocks of the whole launch; in the result of the first sequence
};

// The frames in use of a sequence are divided into chunks of 8. Training stores one state of each recursion a chunk:
// alpha before its first frame, beta after its last one. The others are computed again (chunk.cuh). One chunk begins at
// the middle, where the recursions meet, so the first and the last one may be shorter. A state has 16 bytes a pair and
// is written and read once. With both recursions that is 8 bytes a pair and frame, as much as one reading of the
// emissions. Chunks of 16 frames would save 4 bytes. But a warp that computes 16 frames again gets 48 pairs right,
// not 56.
constexpr int kChunk = 8;
struct Chunks {
  int32_t frames, missing;  // of the first chunk

  explicit CTC_INLINE Chunks(int32_t n) : frames(n), missing((kChunk - n / 2 % kChunk) % kChunk) {}
  CTC_INLINE int32_t count() const { return (frames + missing + kChunk - 1) / kChunk; }
  CTC_INLINE int32_t of(int32_t frame) const { return (frame + missing) / kChunk; }
  CTC_INLINE int32_t begin(int32_t chunk) const { return max_of(chunk * kChunk - missing, 0); }
  CTC_INLINE int32_t end(int32_t chunk) const { return min_of((chunk + 1) * kChunk - missing, frames); }
  // Sequences of up to T frames have no more chunks than these frames fill.
  static CTC_INLINE int64_t most_frames(int64_t T) { return T + 2 * (kChunk - 1); }
};

// What a Hessian-vector product needs of a row and of the direction there.
template <class F> struct DirectedRow {
  F shift, scale;  // softmax(x) = scale * exp(x - shift); scale 0 or NaN: every result in this row is 0 or NaN
  F centre, mean;  // means of the direction: under the occupancies; under the softmax, minus `centre`
};

// The sum over a row of exp(x - top), kept apart: the ties, entries equal to top, and the others. Where `ties` is NaN
// the row has no softmax. Of log-scores `tail` is -top, or NaN if an entry is NaN or +inf.
template <class F> struct Sum {
  F ties, tail;
};
template <class F> CTC_FN F scale_of(Sum<F> sum) { return 1 / (sum.ties + sum.tail); }
// softmax(x), from the emission exp(x - top).
template <class F> CTC_FN F probability(Scaled<F> emission, F scale) {
  return emission.m * pow2<F>(emission.e) * scale;
}

// Of a class in a row of emissions of all classes: the blank is first. And back.
CTC_FN int32_t place_of_class(int32_t v, int32_t blank) { return v == blank ? 0 : v + (v < blank); }
CTC_FN int32_t class_at(int32_t place, int32_t blank) { return place == 0 ? blank : place - (place <= blank); }

// The arrays of one sequence; the lattice of a Hessian-vector product is of Duals, the others' of Scaled. Label k is
// the k-th that is not padding, pair k is (blank k, label k), k <= count; frames are T, columns L + 1. Each array's
// size but the last one's is a multiple of its alignment for every T and L, and the total is bilinear in them: Python
// computes it for symbolic sizes from four numbers (scratch_bytes in ctc.h).
template <class Value> struct Workspace {
  using F = decltype(Value::m);
  static constexpr bool kHvp = std::is_same_v<Value, Dual<F>>;

  int64_t T, columns;
  SequenceSummary* summary;
  SweepResult* result;
  Pair<Cell<Value>>* ends;   // (2, columns): where each recursion's sweep ends
  int32_t *value, *column;   // (columns) of label k: its class; where its emission is: its column in labels + 1, or
                             // the place of its class
  int32_t *next, *is_first;  // (columns) of label k: the next one equal to it or -1; whether none before is
  Cell<Value>* edges;        // (frames, 2): the label at the right edge of a strip, before each frame
  Cell<Value>* emissions;    // (frames, columns): of the blank and of each label position, or of each class
  Sum<F>* sums;              // (frames)
  DirectedRow<F>* directed_rows;  // hvp: (frames)
  F* changes;                     // hvp: (frames, columns): of the occupancies, in the first column of each class
  Pair<Cell<Value>>* states;      // training: (chunks, 2, columns): alpha before a frame's emission, beta after one
  int64_t bytes;

  CTC_INLINE Workspace(void* base, int64_t frames, int64_t L, bool training) : T(frames), columns(L + 1) {
    char* const begin = static_cast<char*>(base);  // no integer: the compiler must see that it points to global memory
    char* at = begin;
    take(summary, 2, at), take(result, 1, at);  // 64 bytes
    take(ends, 2 * columns, at);
    take(value, columns, at), take(column, columns, at), take(next, columns, at), take(is_first, columns, at);
    take(edges, 2 * T, at);
    take(emissions, T * columns, at);
    take(sums, T, at);
    take(directed_rows, kHvp ? T : 0, at);
    take(changes, kHvp ? T * columns : 0, at);
    // From a multiple of 16 on, with room for that, and as many as a bilinear function of T and L can have.
    states = reinterpret_cast<Pair<Cell<Value>>*>(begin + (at - begin + 15) / 16 * 16);
    constexpr int64_t kBytesOfFrame = 2 * sizeof(Pair<Cell<Value>>) / kChunk;
    bytes = at - begin + (training ? 16 + Chunks::most_frames(T) * columns * kBytesOfFrame + JAX_CTC_GAP : 0);
  }
  CTC_INLINE Pair<Cell<Value>>* ends_of(Recursion r) const { return ends + r * columns; }
  CTC_INLINE Pair<Cell<Value>>* states_of(Recursion r, int64_t chunk) const {
    return states + (2 * chunk + r) * columns;
  }
  CTC_INLINE Cell<Value>* edges_of(Recursion r) const { return edges + r; }  // every other one
};

}  // namespace cuda
}  // namespace jax_ctc

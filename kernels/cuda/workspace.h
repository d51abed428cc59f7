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
  int32_t blocks;  // that have ended
};

// What a Hessian-vector product needs of a row and of the direction there.
template <class F> struct DirectedRow {
  F shift, scale;  // softmax(x) = scale * exp(x - shift); scale 0 or NaN: every result in this row is 0 or NaN
  F centre, mean;  // means of the direction: under the occupancies; under the softmax, minus `centre`
};

// The sum over a row of exp(x - top), kept apart: how many entries are equal to top, and the others. Where the count is
// NaN the row has no softmax. Of log-scores `tail` is -top, or NaN if an entry is NaN or +inf.
template <class F> struct Sum {
  F count, tail;
};

// The arrays of one sequence; the lattice of a Hessian-vector product is of Duals, the others' of Scaled. Label k is
// the k-th that is not padding, pair k is (blank k, label k), k <= count; frames are T, columns L + 1. Each array's
// size is a multiple of its alignment for every T and L, and the total is bilinear in them: Python computes it for
// symbolic sizes from four numbers (scratch_bytes in ctc.h).
template <class Value> struct Workspace {
  using F = decltype(Value::m);
  static constexpr bool kHvp = std::is_same_v<Value, Dual<F>>;

  int64_t T, columns;
  SequenceSummary* summary;
  SweepResult* result;
  Pair<Cell<Value>>* ends;        // (2, columns): where each recursion's sweep ends
  Pair<Cell<Value>>* states;      // training: (2, frames, columns): alpha before the frame's emission, beta after it
  int32_t *value, *column;        // (columns) of label k: its class; its column in labels + 1
  int32_t *next, *is_first;       // (columns) of label k: the next one equal to it or -1; whether none before is
  Cell<Value>* edges;             // (frames, 2): the label at the right edge of a strip, before each frame
  Cell<Value>* emissions;         // (frames, columns): of the blank and of each label position
  Sum<F>* sums;                   // (frames)
  DirectedRow<F>* directed_rows;  // hvp: (frames)
  F* changes;                     // hvp: (frames, columns): of the occupancies, in the first column of each class
  int64_t bytes;

  CTC_INLINE Workspace(void* base, int64_t frames, int64_t L, bool training) : T(frames), columns(L + 1) {
    char* const begin = static_cast<char*>(base);  // no integer: the compiler must see that it points to global memory
    char* at = begin;
    take(summary, 2, at), take(result, 1, at);  // 64 bytes
    take(ends, 2 * columns, at);
    take(states, training ? 2 * T * columns : 0, at);
    take(value, columns, at), take(column, columns, at), take(next, columns, at), take(is_first, columns, at);
    take(edges, 2 * T, at);
    take(emissions, T * columns, at);
    take(sums, T, at);
    take(directed_rows, kHvp ? T : 0, at);
    take(changes, kHvp ? T * columns : 0, at);
    bytes = at - begin;
  }
  CTC_INLINE Pair<Cell<Value>>* ends_of(Recursion r) const { return ends + r * columns; }
  CTC_INLINE Pair<Cell<Value>>* states_of(Recursion r) const { return states + r * T * columns; }
  CTC_INLINE Cell<Value>* edges_of(Recursion r) const { return edges + r; }  // every other one

 private:
  template <class A> static CTC_INLINE void take(A*& array, int64_t n, char*& at) {
    array = reinterpret_cast<A*>(at);
    at += n * int64_t(sizeof(A)) + JAX_CTC_GAP;
  }
};

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// The memory that kernels pass on to each other: one block of bytes a sequence, an extra result of the custom call.
// Host and device.
#pragma once

#include "../recursion.h"

namespace jax_ctc {
namespace cuda {

enum Direction { kAlpha, kBeta };

// What the labels of a sequence turned out to be.
struct Labels {
  int32_t count;     // without padding
  int32_t good;      // all of them are classes, and the length is one
  int32_t feasible;  // the length is enough for them
  int32_t frames;    // in use
};

// The arrays of one sequence. Label k is the k-th that is not padding, pair k is (blank k, label k), k <= count; frames
// are T, columns L + 1. Each array's size is a multiple of its alignment for every T and L, and the total is bilinear
// in them: Python computes it for symbolic sizes from four numbers (scratch_bytes in ctc.h).
template <class F> struct Workspace {
  int64_t T, columns;
  Labels* labels;
  Pair<Scaled<F>>* ends;     // (2, columns): where each direction stands between two sweeps
  Pair<Scaled<F>>* states;   // training: (2, frames, columns): alpha before the frame's emission, beta after it
  int32_t *value, *column;   // (columns) of label k: its class; its column in labels + 1
  int32_t *next, *is_first;  // (columns) of label k: the next one equal to it or -1; whether none before is
  Scaled<F>* edges;          // (2, frames): the label at the right edge of a strip, before each frame
  Scaled<F>* emissions;      // (frames, columns): of the blank and of each label position
  double* log_sums;          // (frames): log sum exp(x - shift) in nats; NaN: the row has no softmax
  int64_t bytes;

  CTC_INLINE Workspace(void* base, int64_t frames, int64_t L, bool training) : T(frames), columns(L + 1) {
    char* const begin = static_cast<char*>(base);  // no integer: the compiler must see that it points to global memory
    char* at = begin;
    take(labels, 4, at);  // 64 bytes
    take(ends, 2 * columns, at);
    take(states, training ? 2 * T * columns : 0, at);
    take(value, columns, at), take(column, columns, at), take(next, columns, at), take(is_first, columns, at);
    take(edges, 2 * T, at);
    take(emissions, T * columns, at);
    take(log_sums, T, at);
    bytes = at - begin;
  }
  CTC_INLINE Pair<Scaled<F>>* ends_of(Direction d) const { return ends + d * columns; }
  CTC_INLINE Pair<Scaled<F>>* states_of(Direction d) const { return states + d * T * columns; }
  CTC_INLINE Scaled<F>* edges_of(Direction d) const { return edges + d * T; }

 private:
  template <class A> static CTC_INLINE void take(A*& array, int64_t n, char*& at) {
    array = reinterpret_cast<A*>(at);
    at += n * int64_t(sizeof(A));
  }
};

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// A row of V logits in pieces, and what is prefetched while one of them is read.
#pragma once

#include "half.h"
#include "target.h"

namespace jax_ctc {
namespace {

// Memory that is prefetched a little at a time, because a processor has room for 10 to 16 lines that are on their way,
// and waits when there are more. Into the second-level cache there is room for some 48: what is `later` bytes behind a
// line goes there, if kLater.
template <bool kLater> struct Ahead {
  static constexpr int64_t kLine = 64;
  uintptr_t at, end;
  intptr_t later;
  template <int64_t kBytes> CTC_INLINE void prefetch() {
    if (at >= end) return;
    for (int64_t byte = 0; byte < kBytes; byte += kLine) prefetch_line(at + byte);
    at += kBytes;
  }
  void prefetch_rest() {
    for (; at < end; at += kLine) prefetch_line(at);
  }

 private:
  CTC_INLINE void prefetch_line(uintptr_t line) const {
    __builtin_prefetch(reinterpret_cast<const void*>(line));
    if (kLater) __builtin_prefetch(reinterpret_cast<const void*>(line + later), 0, 2);
  }
};

// A row of acts in pieces of up to 1024 entries, equal but for the last one, and the row that is read after it. While a
// piece is read the next one is prefetched into the first-level cache, and a later one into the second-level cache: the
// rows of a sequence lie too far apart for the hardware to do it, and one piece ahead is too late for memory.
struct Pieces {
  static constexpr int64_t kMost = 1024, kStep = 64;  // entries
  const char *row, *next;
  int64_t element, V, size, count;
  Pieces(const void* row, int64_t element, int64_t V, const void* next)
      : row(static_cast<const char*>(row)),
        next(static_cast<const char*>(next)),
        element(element),
        V(V),
        size(kMost),
        count(1) {
    if (V <= kMost) return;
    const uint32_t steps = (V + kStep - 1) / kStep, least = (V + kMost - 1) / kMost;
    const uint32_t of_piece = (steps + least - 1) / least;
    size = of_piece * kStep, count = (steps + of_piece - 1) / of_piece;
  }
  int64_t begin(int64_t k) const { return min_of(k * size, V); }
  int64_t length(int64_t k) const { return begin(k + 1) - begin(k); }
  // Entries [from, from + n) as F: in `wide` if acts are halves, else the row itself.
  template <class F> const F* read(Dtype dtype, int64_t from, int64_t n, F* wide) const {
    return widened(dtype, row + from * element, n, wide);
  }
  // The piece after piece k. With kLater, which is for rows of two pieces and more, a piece of this row or the next one
  // comes later: the fourth after piece k if there are so many.
  template <bool kLater> Ahead<kLater> ahead(int64_t k) const {
    const uintptr_t from = place(k + 1);
    const int64_t after = k + 1 < count ? k + 1 : 0, later = min_of<int64_t>(4, count);
    return {from, from + length(after) * element, kLater ? intptr_t(place(k + later) - from) : 0};
  }

 private:
  uintptr_t place(int64_t k) const {
    return reinterpret_cast<uintptr_t>(k < count ? row : next) + (k < count ? k : k - count) * size * element;
  }
};

}  // namespace
}  // namespace jax_ctc

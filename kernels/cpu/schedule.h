// SPDX-License-Identifier: Apache-2.0
// Divides a batch among threads, by sequences or by rows. A small amount of work stays on one thread.
#pragma once

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "ctc.h"
#include "labels.h"
#include "memory.h"

namespace jax_ctc {

// The least work for which other threads help. Where they still look for work, because something ran on them a moment
// ago, it pays from 20 us on: (100, 16, 32, 20) takes 41 us in place of 69. Where they sleep, it pays from 100 us on:
// the same call takes 82 us in place of 75.
#if defined(JAX_CTC_TEST)
using tested::kForkNanoseconds;
#else
constexpr double kForkNanoseconds = 6e4;
#endif

inline int64_t threads_for(const Problem& p, double nanoseconds) {
  return nanoseconds < kForkNanoseconds ? 1 : p.threads;
}

// Nanoseconds, roughly. A row costs 25 ns, and 0.3 ns an element, or 8 ns for each of a few that are read alone. A pair
// of states costs 2 ns a frame.
inline double sequence_work(const Batch& p, int64_t length) {
  const double row = 0.3 * double(p.shape.V), pairs = double(p.shape.L + 1);
  return double(length) * (25 + (p.softmax ? row : std::min(row, 8 * pairs)) + 2 * pairs);
}
inline double row_work(double rows, int64_t V) { return 0.4 * rows * double(V); }
inline double row_work(const Shape& s) { return row_work(double(s.rows()), s.V); }

// Calls run(sequence) for every sequence, the longest first, so that no long one is left over at the end. `passes` is
// the number of passes over acts.
template <class Run> void for_each_sequence(const Problem& p, double passes, Executor& executor, Run run) {
  const int64_t n = p.shape.sequences();
  double work = 0;
  for (int64_t i = 0; i < n; ++i)
    if (is_valid_length(p.shape, p.lengths[i])) work += passes * sequence_work(p, p.lengths[i]);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const auto is_longer = [&](int64_t a, int64_t b) { return p.lengths[a] > p.lengths[b]; };
  if (!std::is_sorted(order.begin(), order.end(), is_longer)) std::stable_sort(order.begin(), order.end(), is_longer);
  parallel_for(executor, threads_for(p, work), n, [&](int64_t k) {
    const AtEnd trimmed{[] { thread_scratch().trim(); }};
    run(order[k]);
  });
}

// Whether threads would wait for a fifth of their time or more, if each takes whole sequences, the longest first.
inline bool sequences_leave_threads_idle(const Problem& p, const Executor& executor) {
  const int64_t threads = std::min(p.threads, executor.threads());
  if (p.shape.sequences() >= 4 * threads) return false;
  std::vector<int64_t> lengths, frames(threads);  // frames of each thread: a heap, the fewest first
  for (int64_t i = 0; i < p.shape.sequences(); ++i)
    if (is_valid_length(p.shape, p.lengths[i])) lengths.push_back(p.lengths[i]);
  std::sort(lengths.begin(), lengths.end(), std::greater<>());
  for (const int64_t length : lengths) {
    std::pop_heap(frames.begin(), frames.end(), std::greater<>());
    frames.back() += length;
    std::push_heap(frames.begin(), frames.end(), std::greater<>());
  }
  const double most = double(*std::max_element(frames.begin(), frames.end()));
  return most * double(threads) > 1.25 * std::accumulate(lengths.begin(), lengths.end(), 0.0);
}

// A row of acts. Its frame and its sequence are counted from row to row, because to divide for them takes as long as to
// scale a short row.
struct RowIndex {
  int64_t row, frame, sequence, column;
  RowIndex(const Shape& s, int64_t row)
      : row(row), frame(s.frame_of_row(row)), sequence(s.sequence_of_row(row)), column(sequence % s.B) {}
  void advance(const Shape& s) {
    ++row, ++sequence;
    if (++column < s.B) return;
    column = 0, sequence -= s.B;
    if (++frame == s.T) frame = 0, sequence += s.B;
  }
};

// Calls run(first, end) for blocks of rows, in memory order. `nanoseconds` is the work, roughly. A block has about 2 MB
// of acts, because that is one huge page, or less, so that there are `least` for each thread.
template <class Run>
void for_each_block(const Problem& p, double nanoseconds, Executor& executor, Run run, int64_t least = 2) {
  const Shape& s = p.shape;
  const int64_t row_bytes = std::max<int64_t>(1, s.V * element_size(p.dtype));
  const int64_t share = s.rows() / (least * std::max<int64_t>(1, executor.threads()));
  const int64_t block = std::max<int64_t>(1, std::min((int64_t(1) << 21) / row_bytes, share));
  const int64_t blocks = (s.rows() + block - 1) / block;
  parallel_for(executor, threads_for(p, nanoseconds), blocks, [&](int64_t k) {
    const AtEnd trimmed{[] { thread_scratch().trim(); }};
    run(RowIndex(s, k * block), std::min(s.rows(), (k + 1) * block));
  });
}

// Calls run(row) for every row.
template <class Run>
void for_each_row(const Problem& p, double nanoseconds, Executor& executor, Run run, int64_t least_blocks = 2) {
  const auto run_block = [&](RowIndex at, int64_t end) {
    for (; at.row < end; at.advance(p.shape)) run(at);
  };
  for_each_block(p, nanoseconds, executor, run_block, least_blocks);
}

}  // namespace jax_ctc

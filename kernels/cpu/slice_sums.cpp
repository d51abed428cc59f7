// SPDX-License-Identifier: Apache-2.0
// The sums over a slice of V classes, of a batch, and their cotangents.
#include <algorithm>
#include <cstring>

#include "ctc.h"
#include "dispatch.h"
#include "memory.h"
#include "schedule.h"

namespace jax_ctc {
namespace {

template <class F> Slice<F> slice_at(const Problem& p, RowIndex row) {
  const Shape& s = p.shape;
  return {p.dtype, at(p.acts, row.row * s.V, p.dtype), s.V, p.labels + row.sequence * s.L, s.L, &thread_scratch()};
}

// The sums of a short row take some 50 ns.
double work(const Shape& s) { return row_work(s) + 50 * double(s.rows()); }

bool in_use(const Problem& p, RowIndex row) { return row.frame < p.lengths[row.sequence]; }

template <class F> void run_sums(const Problem& p, Sums out, Executor& executor) {
  const Shape& s = p.shape;
  for_each_row(p, work(s), executor, [&](RowIndex index) {
    const int64_t row = index.row;
    F *top = row_of<F>(out.top, row, 1), *ties = row_of<F>(out.ties, row, 1), *tail = row_of<F>(out.tail, row, 1);
    F* scores = row_of<F>(out.scores, row, s.L);
    if (in_use(p, index)) {
      const int64_t next = std::min(row + 1, s.rows() - 1);
      kernels<F>().sums(slice_at<F>(p, index), at(p.acts, next * s.V, p.dtype), top, ties, tail, scores);
    } else {
      *top = *ties = *tail = 0;
      std::fill_n(scores, s.L, F(0));
    }
  });
}

template <class F> void run_sums_cotangent(const Problem& p, const F* top, const F* ct_tail, const F* ct_scores,
                                           void* out, Executor& executor) {
  const Shape& s = p.shape;
  advise_huge_pages(out, s.rows() * s.V * element_size(p.dtype));
  for_each_row(p, work(s), executor, [&](RowIndex index) {
    const int64_t row = index.row;
    void* to = at(out, row * s.V, p.dtype);
    if (in_use(p, index))
      kernels<F>().sums_cotangent(slice_at<F>(p, index), top[row], ct_tail[row], ct_scores + row * s.L, to);
    else
      std::memset(to, 0, s.V * element_size(p.dtype));
  });
}

}  // namespace

void sums(const Problem& p, Sums out, Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) { run_sums<decltype(zero)>(p, out, executor); });
}

void sums_cotangent(const Problem& p, const void* top, const void* ct_tail, const void* ct_scores, void* out,
                    Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) {
    using F = decltype(zero);
    run_sums_cotangent<F>(p, static_cast<const F*>(top), static_cast<const F*>(ct_tail),
                          static_cast<const F*>(ct_scores), out, executor);
  });
}

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// The most probable class of each frame of a batch.
#include <algorithm>

#include "ctc.h"
#include "dispatch.h"
#include "memory.h"
#include "schedule.h"

namespace jax_ctc {
namespace {

// Rows that are in use, until there are as many as the kernel takes at once.
template <class F> class Group {
 public:
  Group(const Problem& p, const TopClasses& out) : p_(p), out_(out), rows_{p.dtype, p.shape.V, 0, {}} {}

  void add(int64_t row) {
    numbers_[rows_.count] = row;
    rows_.acts[rows_.count++] = acts_of(row);
    if (rows_.count == RowGroup::kMost) run();
  }
  void run() {
    if (rows_.count == 0) return;
    TopClass<F> found[RowGroup::kMost];
    const int64_t next = std::min(numbers_[rows_.count - 1] + 1, p_.shape.rows() - 1);
    kernels<F>().top_classes(rows_, acts_of(next), found);
    for (int64_t k = 0; k < rows_.count; ++k) write(numbers_[k], found[k]);
    rows_.count = 0;
  }
  void write(int64_t row, const TopClass<F>& x) const {
    out_.best[row] = x.best, *row_of<F>(out_.top, row, 1) = x.top, *row_of<F>(out_.others, row, 1) = x.others;
  }

 private:
  const void* acts_of(int64_t row) const { return at(p_.acts, row * p_.shape.V, p_.dtype); }

  const Problem& p_;
  const TopClasses& out_;
  RowGroup rows_;
  int64_t numbers_[RowGroup::kMost];
};

template <class F> void run_top_class(const Problem& p, const TopClasses& out, Executor& executor) {
  const double nanoseconds = row_work(p.shape) + 30 * double(p.shape.rows());
  for_each_block(p, nanoseconds, executor, [&](RowIndex at, int64_t end) {
    Group<F> group(p, out);
    for (; at.row < end; at.advance(p.shape))
      if (at.frame < p.lengths[at.sequence])
        group.add(at.row);
      else
        group.write(at.row, {-1, 0, 0});
    group.run();
  });
}

}  // namespace

void top_class(const Problem& p, TopClasses out, Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) { run_top_class<decltype(zero)>(p, out, executor); });
}

}  // namespace jax_ctc

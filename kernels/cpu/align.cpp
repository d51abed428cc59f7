// SPDX-License-Identifier: Apache-2.0
// The best alignment of each sequence of a batch.
#include <algorithm>
#include <limits>
#include <vector>

#include "ctc.h"
#include "dispatch.h"
#include "labels.h"
#include "memory.h"
#include "rows_ahead.h"
#include "schedule.h"
#include "sequence.h"

namespace jax_ctc {
namespace {

// The different labels of a sequence, sorted, and which of them each label is. The star is above all classes, so it is
// the last one; the blank takes its place.
struct Symbols {
  std::vector<int32_t> values, slots, classes;
  int64_t star;

  void read(const std::vector<int32_t>& labels, int64_t V, int32_t blank) {
    values = labels;
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    star = !values.empty() && values.back() == V ? int64_t(values.size()) - 1 : -1;
    slots.clear(), classes.clear();
    for (const int32_t label : labels) {
      slots.push_back(int32_t(std::lower_bound(values.begin(), values.end(), label) - values.begin()));
      classes.push_back(label < V ? label : blank);
    }
    if (star >= 0) values.back() = blank;
  }
  void trim() { jax_ctc::trim(values), jax_ctc::trim(slots), jax_ctc::trim(classes); }
};

template <class F>
void align_sequence(const Problem& p, int64_t sequence, KnownRows<F> known, bool star, Alignment out) {
  constexpr F kNaN = std::numeric_limits<F>::quiet_NaN(), kInfinity = std::numeric_limits<F>::infinity();
  const Shape& s = p.shape;
  const int64_t first = first_row(s, sequence);
  const int32_t length = p.lengths[sequence];
  F* score = static_cast<F*>(out.score) + sequence;
  int32_t *path = out.path + first, *label_index = out.label_index + first;
  int64_t aligned = 0;  // frames
  thread_local UnpaddedLabels labels;
  thread_local Symbols symbols;
  const AtEnd trimmed{[] { labels.trim(), symbols.trim(); }};
  Batch with_star = p;
  with_star.shape.V += star;
  if (!is_valid_length(s, length) || !labels.read(with_star, p.labels + sequence * s.L)) {
    *score = kNaN;
  } else {
    symbols.read(labels.values, s.V, p.blank);
    const Sequence<F> in = sequence_of<F>(p, sequence, labels, known);
    const SequenceAlignment to = {symbols.values.data(),
                                  int64_t(symbols.values.size()),
                                  symbols.star,
                                  symbols.slots.data(),
                                  symbols.classes.data(),
                                  labels.columns.data(),
                                  path,
                                  label_index,
                                  s.B};
    const Outcome outcome = kernels<F>().align(in, to, score);
    if (outcome == Outcome::kFinite) aligned = length;
    if (outcome == Outcome::kNoAlignment) *score = -kInfinity;
    if (outcome == Outcome::kNoSoftmax) *score = kNaN;
  }
  for (int64_t t = aligned; t < s.T; ++t) path[t * s.B] = label_index[t * s.B] = -1;
}

}  // namespace

void align(const Problem& p, bool star, Alignment out, Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) {
    using F = decltype(zero);
    const RowsAhead<F> ahead(p, p.softmax && !star, executor);
    for_each_sequence(p, 1, executor, [&](int64_t i) { align_sequence<F>(p, i, ahead.of_sequence(i), star, out); });
  });
}

}  // namespace jax_ctc

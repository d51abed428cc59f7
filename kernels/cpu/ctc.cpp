// SPDX-License-Identifier: Apache-2.0
#include "ctc.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "corrections.h"
#include "dispatch.h"
#include "labels.h"
#include "memory.h"
#include "rows_ahead.h"
#include "schedule.h"
#include "scores.h"
#include "sequence.h"

namespace jax_ctc {
namespace {

// Sets the residuals of frames [begin, end) of a sequence to `value`.
template <class F>
void fill_residuals(const Batch& p, Residuals residuals, int64_t sequence, int64_t begin, int64_t end, F value) {
  const Shape& s = p.shape;
  const int64_t factors = p.factors();
  if (value != value && !p.softmax && s.dense()) {
    constexpr Dtype kDtype = sizeof(F) == 4 ? Dtype::kF32 : Dtype::kF64;
    return fill_scores_with_nan(p, residuals.columns, kDtype, sequence, begin, end);
  }
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = s.first_row(sequence) + t * s.B;
    std::fill_n(row_of<F>(residuals.columns, row, s.columns()), s.columns(), value);
    if (factors > 0) std::fill_n(row_of<F>(residuals.rows, row, factors), factors, value);
  }
}

template <class F>
void run_sequence(const Problem& p, int64_t sequence, KnownRows<F> known, F* cost, Residuals residuals) {
  constexpr F kNaN = std::numeric_limits<F>::quiet_NaN();
  const Shape& s = p.shape;
  const bool training = residuals.columns != nullptr;
  const int64_t first = first_row(s, sequence);
  const int32_t length = p.lengths[sequence];
  thread_local UnpaddedLabels labels;
  const AtEnd trimmed{[] { labels.trim(); }};
  if (!is_valid_length(s, length) || !labels.read(p, p.labels + sequence * s.L)) {
    *cost = kNaN;
    if (training) fill_residuals<F>(p, residuals, sequence, 0, s.T, 0);
    return;
  }
  const Sequence<F> in = sequence_of<F>(p, sequence, labels, known);
  SequenceResiduals<F> out;
  if (training) {
    if (!s.dense()) {
      out.has_gaps = in.L > 0 && labels.columns.back() != in.L;
      labels.share_columns(s.V);
      out.repeated = labels.repeated.data(), out.repeats = labels.repeated.size();
      if (p.softmax) out.rows = row_of<F>(residuals.rows, first, 2), out.rows_stride = 2 * s.B;
    }
    out.columns = row_of<F>(residuals.columns, first, s.columns()), out.columns_stride = s.B * s.columns();
    out.width = s.columns(), out.column_of_label = labels.columns.data(), out.dense = s.dense();
  }
  const Outcome outcome = kernels<F>().cost(in, out, cost);
  if (outcome == Outcome::kNoAlignment) *cost = std::numeric_limits<F>::infinity();
  if (outcome == Outcome::kNoSoftmax) *cost = kNaN;
  if (training) {
    if (outcome != Outcome::kFinite)
      fill_residuals<F>(p, residuals, sequence, 0, length, outcome == Outcome::kNoSoftmax ? kNaN : F(0));
    fill_residuals<F>(p, residuals, sequence, length, s.T, 0);
  }
}

template <class F> void run_forward(const Problem& p, void* cost, Residuals residuals, Executor& executor) {
  if (residuals.columns != nullptr)
    advise_huge_pages(residuals.columns, p.shape.rows() * p.shape.columns() * sizeof(F));
  const RowsAhead<F> ahead(p, p.softmax, executor);
  for_each_sequence(p, residuals.columns != nullptr ? 3 : 1, executor, [&](int64_t i) {
    run_sequence<F>(p, i, ahead.of_sequence(i), static_cast<F*>(cost) + i, residuals);
  });
}

template <class F> Row<F> row_at(const Problem& p, Residuals residuals, int64_t row, Corrections corrections) {
  const Shape& s = p.shape;
  const F* normaliser = row_of<F>(residuals.rows, row, 2);
  return {p.dtype,       at(p.acts, row * s.V, p.dtype),
          s.V,           normaliser[0],
          normaliser[1], row_of<F>(residuals.columns, row, s.columns()),
          corrections,   &thread_scratch()};
}

// Writes cotangent * gradient of one row. Its sequence has valid arguments.
template <class F> void write_gradient_row(const Problem& p, Residuals residuals, RowIndex at,
                                           const BatchCorrections& corrections, F cotangent, void* out) {
  const Shape& s = p.shape;
  if (cotangent == 0 || at.frame >= p.lengths[at.sequence]) {
    std::memset(out, 0, s.V * element_size(p.dtype));
  } else if (s.dense()) {
    kernels<F>().dense_gradient(row_of<F>(residuals.columns, at.row, s.V), s.V, cotangent, p.dtype, out);
  } else if (!p.softmax) {
    write_scores_gradient(p, row_of<F>(residuals.columns, at.row, s.columns()), corrections.of(at.sequence), cotangent,
                          out);
  } else {
    const Row<F> r = row_at<F>(p, residuals, at.row, corrections.of(at.sequence));
    if (r.scale == 0)
      std::memset(out, 0, s.V * element_size(p.dtype));
    else
      kernels<F>().gradient(r, cotangent, out);
  }
}

template <class F>
void run_cotangent(const Problem& p, Residuals residuals, const F* cotangents, void* gradient, Executor& executor) {
  const Shape& s = p.shape;
  // `columns` is the gradient, and the result overwrites it. So there is nothing to do if all cotangents are 1.
  if (s.dense() && gradient == residuals.columns &&
      std::all_of(cotangents, cotangents + s.sequences(), [](F c) { return c == 1; }))
    return;
  advise_huge_pages(gradient, s.rows() * s.V * element_size(p.dtype));
  const BatchCorrections corrections(p, !s.dense());
  for_each_row(p, row_work(p.shape), executor, [&](RowIndex row) {
    const int64_t i = row.sequence;
    const F cotangent = corrections.valid(i) ? cotangents[i] : F(0);
    write_gradient_row<F>(p, residuals, row, corrections, cotangent, at(gradient, row.row * s.V, p.dtype));
  });
}

template <class F> double tangent_of_row(const Problem& p, Residuals residuals, int64_t row, Corrections corrections,
                                         const void* direction) {
  const Shape& s = p.shape;
  if (s.dense())
    return kernels<F>().dense_tangent(row_of<F>(residuals.columns, row, s.V), s.V, p.dtype, direction,
                                      &thread_scratch());
  if (!p.softmax) return scores_tangent(p, row_of<F>(residuals.columns, row, s.columns()), corrections, direction);
  const Row<F> r = row_at<F>(p, residuals, row, corrections);
  return r.scale == 0 ? 0 : kernels<F>().tangent(r, direction);
}

template <class F>
void run_tangent(const Problem& p, Residuals residuals, const void* direction, F* tangents, Executor& executor) {
  const Shape& s = p.shape;
  const BatchCorrections corrections(p, !s.dense());
  std::vector<double> of_row(s.rows());
  for_each_row(p, row_work(s), executor, [&](RowIndex at_row) {
    const int64_t row = at_row.row, i = at_row.sequence;
    if (corrections.valid(i) && at_row.frame < p.lengths[i])
      of_row[row] = tangent_of_row<F>(p, residuals, row, corrections.of(i), at(direction, row * s.V, p.dtype));
  });
  std::vector<double> sums(s.sequences());  // in the order of frames, whichever thread had them
  const double* row = of_row.data();
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t t = 0; t < s.T; ++t)
      for (int64_t b = 0; b < s.B; ++b) sums[n * s.B + b] += *row++;
  std::copy(sums.begin(), sums.end(), tangents);
}

// Sets frames [begin, end) of a result like acts to 0 or to NaN.
void fill_like_acts(const Problem& p, void* out, int64_t sequence, int64_t begin, int64_t end, bool nan) {
  const Shape& s = p.shape;
  if (nan && !p.softmax) return fill_scores_with_nan(p, out, p.dtype, sequence, begin, end);
  for (int64_t t = begin; t < end; ++t) {
    // All bits set is a NaN in every dtype.
    void* row = at(out, (s.first_row(sequence) + t * s.B) * s.V, p.dtype);
    std::memset(row, nan ? 0xff : 0, s.V * element_size(p.dtype));
  }
}

template <class Word> bool has_nonzero(const Word* floats, int64_t n) {
  return std::any_of(floats, floats + n, [](Word bits) { return Word(bits << 1) != 0; });  // without the sign
}

// Whether a direction, like acts, is not 0 at some frame in use.
bool is_given(const Problem& p, const void* direction, int64_t sequence, int64_t length) {
  const Shape& s = p.shape;
  for (int64_t t = 0; t < length; ++t) {
    const void* row = at(direction, (first_row(s, sequence) + t * s.B) * s.V, p.dtype);
    const bool given = element_size(p.dtype) == 2   ? has_nonzero(static_cast<const uint16_t*>(row), s.V)
                       : element_size(p.dtype) == 4 ? has_nonzero(static_cast<const uint32_t*>(row), s.V)
                                                    : has_nonzero(static_cast<const uint64_t*>(row), s.V);
    if (given) return true;
  }
  return false;
}

template <class F> void hvp_of_sequence(const Problem& p, int64_t sequence, Residuals residuals, F cotangent,
                                        const void* direction, bool masked, void* out) {
  const Shape& s = p.shape;
  const int64_t first = first_row(s, sequence);
  const int32_t length = p.lengths[sequence];
  thread_local UnpaddedLabels labels;
  const AtEnd trimmed{[] { labels.trim(); }};
  if (cotangent == 0 || !is_valid_length(s, length) || !labels.read(p, p.labels + sequence * s.L) ||
      (masked && !is_given(p, direction, sequence, length)))
    return fill_like_acts(p, out, sequence, 0, s.T, false);
  const Sequence<F> in = sequence_of<F>(p, sequence, labels);
  // A caller may pass anything in the place of a dense gradient of float32, so that XLA needs no copy of it.
  const bool kept = !s.dense() || p.dtype != Dtype::kF32;
  const HvpArguments<F> arguments = {at(direction, first * s.V, p.dtype),
                                     p.factors() == 0 ? nullptr : row_of<F>(residuals.rows, first, 2),
                                     2 * s.B,
                                     kept ? row_of<F>(residuals.columns, first, s.columns()) : nullptr,
                                     s.B * s.columns(),
                                     s.dense(),
                                     labels.columns.data(),
                                     cotangent,
                                     at(out, first * s.V, p.dtype)};
  const Outcome outcome = kernels<F>().hvp(in, arguments);
  if (outcome != Outcome::kFinite) fill_like_acts(p, out, sequence, 0, length, outcome == Outcome::kNoSoftmax);
  fill_like_acts(p, out, sequence, length, s.T, false);
}

template <class F> void run_hvp(const Problem& p, Residuals residuals, const F* cotangents, const void* direction,
                                bool masked, void* out, Executor& executor) {
  advise_huge_pages(out, p.shape.rows() * p.shape.V * element_size(p.dtype));
  for_each_sequence(p, 5, executor,
                    [&](int64_t i) { hvp_of_sequence<F>(p, i, residuals, cotangents[i], direction, masked, out); });
}

}  // namespace

void loss(const Problem& p, void* cost, Executor& executor) { forward(p, cost, {nullptr, nullptr}, executor); }

void forward(const Problem& p, void* cost, Residuals residuals, Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) { run_forward<decltype(zero)>(p, cost, residuals, executor); });
}

void tangent(const Problem& p, Residuals residuals, const void* direction, void* tangents, Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) {
    using F = decltype(zero);
    run_tangent<F>(p, residuals, direction, static_cast<F*>(tangents), executor);
  });
}

void cotangent(const Problem& p, Residuals residuals, const void* cotangents, void* gradient, Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) {
    using F = decltype(zero);
    run_cotangent<F>(p, residuals, static_cast<const F*>(cotangents), gradient, executor);
  });
}

void hvp(const Problem& p, Residuals residuals, const void* cotangents, const void* direction, bool masked, void* out,
         Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) {
    using F = decltype(zero);
    run_hvp<F>(p, residuals, static_cast<const F*>(cotangents), direction, masked, out, executor);
  });
}

}  // namespace jax_ctc

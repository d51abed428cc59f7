// SPDX-License-Identifier: Apache-2.0
#include "ctc.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <type_traits>
#include <vector>

#include "dispatch.h"

namespace jax_ctc {
namespace {

class OutOfScratch final : public std::bad_alloc {
 public:
  explicit OutOfScratch(size_t bytes) {
    std::snprintf(text_, sizeof text_, "a thread asked for %zu bytes of scratch memory", bytes);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[96];
};

class ThreadScratch final : public Scratch {
 public:
  char* reserve(size_t bytes) override {
    tested::unpoison(memory_.get(), size_);
    if (bytes > size_) {
      release();
      memory_.reset(static_cast<char*>(::operator new(bytes, kAlignment, std::nothrow)));
      if (!memory_) throw OutOfScratch(bytes);
      size_ = bytes;
    }
    tested::poison(memory_.get() + bytes, size_ - bytes);
    return memory_.get();
  }
  // A long sequence's memory is not held for ever.
  void trim() {
    if (size_ > kKept) release();
  }

 private:
  void release() {
    memory_.reset();
    size_ = 0;
  }

  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kKept = 8 << 20;
  struct Free {
    void operator()(char* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t size_ = 0;
};

ThreadScratch& thread_scratch() {
  thread_local ThreadScratch scratch;
  return scratch;
}

template <class F> const Kernels<F>& kernels();
template <> const Kernels<float>& kernels() { return instruction_set().f32; }
template <> const Kernels<double>& kernels() { return instruction_set().f64; }

template <class P> P* at(P* base, int64_t element, Dtype dtype) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return static_cast<Byte*>(base) + element * element_size(dtype);
}

// A large result comes in pages that nobody has touched. In pages of 2 MB that costs a tenth of what it does in 4 KB.
// Advice: nothing depends on whether it is taken.
void advise_huge_pages(void* array, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  constexpr int64_t kLarge = 32 << 20;
  if (bytes < kLarge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(array) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(array) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)array, (void)bytes;
#endif
}

// A fork pays from about 100 us of work on: it costs 1 us on a quiet machine, 30 on a busy one.
#if defined(JAX_CTC_TEST)
using tested::kForkNanoseconds;
#else
constexpr double kForkNanoseconds = 1e5;
#endif

int64_t threads_for(const Problem& p, double nanoseconds) { return nanoseconds < kForkNanoseconds ? 1 : p.threads; }

// Rough: a row costs 25 ns and 0.3 ns an element, a pair of states 2 ns a frame.
double sequence_work(const Shape& s, int64_t length) {
  return double(length) * (25 + 0.3 * double(s.V) + 2.0 * double(s.L + 1));
}

bool valid_length(const Shape& s, int32_t length) { return length >= 0 && length <= s.T; }

// Where the first row of a sequence is in an array of rows, if it has any.
int64_t first_row(const Shape& s, int64_t sequence) { return s.T > 0 ? s.first_row(sequence) : 0; }

// Which sequences have good arguments; the others have no gradient. Residuals say so too where they are what `forward`
// made of the same labels, but a program may hand in anything.
std::vector<char> good_sequences(const Problem& p) {
  const Shape& s = p.shape;
  std::vector<char> good(s.sequences());
  for (int64_t i = 0; i < s.sequences(); ++i) {
    const int32_t* row = p.labels + i * s.L;
    bool bad = !valid_length(s, p.lengths[i]);
    for (int64_t k = 0; k < s.L; ++k) bad |= !is_padding(row[k]) & is_bad_label(row[k], s.V, p.blank);
    good[i] = !bad;
  }
  return good;
}

// The labels of one sequence without its padding, and where each one stood. False: one is not a label.
struct Labels {
  std::vector<int32_t> values, slots;
  std::vector<int32_t> repeated;  // those that share the slot of one before them

  bool read(const Problem& p, const int32_t* row) {
    values.clear(), slots.clear(), repeated.clear();
    for (int64_t i = 0; i < p.shape.L; ++i) {
      if (is_padding(row[i])) continue;
      if (is_bad_label(row[i], p.shape.V, p.blank)) return false;
      values.push_back(row[i]), slots.push_back(int32_t(1 + i));
    }
    return true;
  }
  // Equal labels share the first one's slot.
  void share_slots() {
    const size_t n = values.size();
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] < values[b]; });
    for (size_t k = 1; k < n; ++k)
      if (values[order[k]] == values[order[k - 1]]) {
        slots[order[k]] = slots[order[k - 1]];
        repeated.push_back(order[k]);
      }
  }
};

template <class F> F* row_of(void* base, int64_t row, int64_t width) { return static_cast<F*>(base) + row * width; }

// The kept rows of frames [begin, end) of a sequence, all `value`.
template <class F> void fill(const Shape& s, Kept kept, int64_t sequence, int64_t begin, int64_t end, F value) {
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = s.first_row(sequence) + t * s.B;
    std::fill_n(row_of<F>(kept.columns, row, s.columns()), s.columns(), value);
    if (!s.dense()) std::fill_n(row_of<F>(kept.rows, row, 2), 2, value);
  }
}

template <class F> Sequence<F> sequence_of(const Problem& p, int64_t sequence, const Labels& labels) {
  const Shape& s = p.shape;
  const int64_t L = labels.values.size();
  const int32_t length = p.lengths[sequence];
  return {p.dtype,
          at(p.acts, first_row(s, sequence) * s.V, p.dtype),
          s.B * s.V,
          length,
          s.V,
          labels.values.data(),
          L,
          p.blank,
          frames_needed(labels.values.data(), L) <= length,
          &thread_scratch()};
}

template <class F> void run_sequence(const Problem& p, int64_t sequence, F* cost, Kept kept) {
  constexpr F kNaN = std::numeric_limits<F>::quiet_NaN();
  const Shape& s = p.shape;
  const bool training = kept.columns != nullptr;
  const int64_t first = first_row(s, sequence);
  const int32_t length = p.lengths[sequence];
  thread_local Labels labels;
  if (!valid_length(s, length) || !labels.read(p, p.labels + sequence * s.L)) {
    *cost = kNaN;
    if (training) fill<F>(s, kept, sequence, 0, s.T, 0);
    return;
  }
  const Sequence<F> in = sequence_of<F>(p, sequence, labels);
  Residuals<F> out;
  if (training) {
    if (!s.dense()) {
      out.padded = in.L > 0 && labels.slots.back() != in.L;
      labels.share_slots();
      out.repeated = labels.repeated.data(), out.repeats = labels.repeated.size();
      out.rows = row_of<F>(kept.rows, first, 2), out.rows_stride = 2 * s.B;
    }
    out.columns = row_of<F>(kept.columns, first, s.columns()), out.columns_stride = s.B * s.columns();
    out.width = s.columns(), out.slot = labels.slots.data(), out.dense = s.dense();
  }
  const Verdict verdict = kernels<F>().cost(in, out, cost);
  if (verdict == Verdict::kImpossible) *cost = std::numeric_limits<F>::infinity();
  if (verdict == Verdict::kUndefined) *cost = kNaN;
  if (training) {
    if (verdict != Verdict::kFine) fill<F>(s, kept, sequence, 0, length, verdict == Verdict::kUndefined ? kNaN : F(0));
    fill<F>(s, kept, sequence, length, s.T, 0);
  }
  thread_scratch().trim();
}

// Every sequence, the longest first, so that none is left over at the end. `passes`: how many there are over acts.
template <class Run> void for_each_sequence(const Problem& p, double passes, Executor& executor, Run run) {
  const int64_t n = p.shape.sequences();
  double work = 0;
  for (int64_t i = 0; i < n; ++i)
    if (valid_length(p.shape, p.lengths[i])) work += passes * sequence_work(p.shape, p.lengths[i]);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p.lengths[a] > p.lengths[b]; });
  parallel_for(executor, threads_for(p, work), n, [&](int64_t k) { run(order[k]); });
}

template <class F> void run_batch(const Problem& p, void* cost, Kept kept, Executor& executor) {
  if (kept.columns != nullptr) advise_huge_pages(kept.columns, p.shape.rows() * p.shape.columns() * sizeof(F));
  for_each_sequence(p, kept.columns != nullptr ? 3 : 1, executor,
                    [&](int64_t i) { run_sequence<F>(p, i, static_cast<F*>(cost) + i, kept); });
}

template <class F> Row<F> row_at(const Problem& p, Kept kept, int64_t row) {
  const Shape& s = p.shape;
  const F* normaliser = row_of<F>(kept.rows, row, 2);
  return {p.dtype,
          at(p.acts, row * s.V, p.dtype),
          s.V,
          normaliser[0],
          normaliser[1],
          row_of<F>(kept.columns, row, s.columns()),
          p.labels + s.sequence_of_row(row) * s.L,
          s.L,
          p.blank,
          &thread_scratch()};
}

// Cotangent times the gradient of one row of a sequence with good arguments.
template <class F> void gradient_row(const Problem& p, Kept kept, int64_t row, F cotangent, void* out) {
  const Shape& s = p.shape;
  if (cotangent == 0 || s.frame_of_row(row) >= p.lengths[s.sequence_of_row(row)]) {
    std::memset(out, 0, s.V * element_size(p.dtype));
  } else if (s.dense()) {
    kernels<F>().scale(row_of<F>(kept.columns, row, s.V), s.V, cotangent, p.dtype, out);
  } else {
    const Row<F> r = row_at<F>(p, kept, row);
    if (r.scale == 0)
      std::memset(out, 0, s.V * element_size(p.dtype));
    else
      kernels<F>().gradient(r, cotangent, out);
  }
}

// Every row, in blocks in memory order of about 2 MB of acts each: one huge page a thread at a time.
template <class Run> void for_each_row(const Problem& p, Executor& executor, Run run) {
  const Shape& s = p.shape;
  const int64_t block = std::max<int64_t>(1, (1 << 21) / std::max<int64_t>(1, s.V * element_size(p.dtype)));
  const int64_t blocks = (s.rows() + block - 1) / block;
  parallel_for(executor, threads_for(p, 0.4 * double(s.rows()) * double(s.V)), blocks, [&](int64_t k) {
    for (int64_t row = k * block; row < std::min(s.rows(), (k + 1) * block); ++row) run(row);
  });
}

template <class F>
void run_cotangent(const Problem& p, Kept kept, const F* cotangents, void* gradient, Executor& executor) {
  const Shape& s = p.shape;
  // The gradient itself was kept, in the place where the result goes: nothing to do for a plain sum of costs.
  if (s.dense() && gradient == kept.columns &&
      std::all_of(cotangents, cotangents + s.sequences(), [](F c) { return c == 1; }))
    return;
  advise_huge_pages(gradient, s.rows() * s.V * element_size(p.dtype));
  const std::vector<char> good = good_sequences(p);
  for_each_row(p, executor, [&](int64_t row) {
    const int64_t sequence = s.sequence_of_row(row);
    const F cotangent = good[sequence] ? cotangents[sequence] : F(0);
    gradient_row<F>(p, kept, row, cotangent, at(gradient, row * s.V, p.dtype));
  });
}

template <class F> Slice<F> slice_at(const Problem& p, int64_t row) {
  const Shape& s = p.shape;
  return {p.dtype,          at(p.acts, row * s.V, p.dtype), s.V, p.labels + s.sequence_of_row(row) * s.L, s.L,
          &thread_scratch()};
}
bool in_use(const Problem& p, int64_t row) {
  return p.shape.frame_of_row(row) < p.lengths[p.shape.sequence_of_row(row)];
}

template <class F> void run_sums(const Problem& p, Sums out, Executor& executor) {
  const Shape& s = p.shape;
  for_each_row(p, executor, [&](int64_t row) {
    F *top = row_of<F>(out.top, row, 1), *count = row_of<F>(out.count, row, 1), *tail = row_of<F>(out.tail, row, 1);
    F* scores = row_of<F>(out.scores, row, s.L);
    if (in_use(p, row)) {
      const int64_t next = std::min(row + 1, s.rows() - 1);
      kernels<F>().sums(slice_at<F>(p, row), at(p.acts, next * s.V, p.dtype), top, count, tail, scores);
    } else {
      *top = *count = *tail = 0;
      std::fill_n(scores, s.L, F(0));
    }
  });
}

template <class F> void run_sums_cotangent(const Problem& p, const F* top, const F* ct_tail, const F* ct_scores,
                                           void* out, Executor& executor) {
  const Shape& s = p.shape;
  advise_huge_pages(out, s.rows() * s.V * element_size(p.dtype));
  for_each_row(p, executor, [&](int64_t row) {
    void* to = at(out, row * s.V, p.dtype);
    if (in_use(p, row))
      kernels<F>().sums_cotangent(slice_at<F>(p, row), top[row], ct_tail[row], ct_scores + row * s.L, to);
    else
      std::memset(to, 0, s.V * element_size(p.dtype));
  });
}

template <class F> double tangent_row(const Problem& p, Kept kept, int64_t row, const void* direction) {
  const Shape& s = p.shape;
  if (s.dense()) return kernels<F>().dot(row_of<F>(kept.columns, row, s.V), s.V, p.dtype, direction, &thread_scratch());
  const Row<F> r = row_at<F>(p, kept, row);
  return r.scale == 0 ? 0 : kernels<F>().tangent(r, direction);
}

template <class F>
void run_tangent(const Problem& p, Kept kept, const void* directions, F* tangents, Executor& executor) {
  const Shape& s = p.shape;
  const std::vector<char> good = good_sequences(p);
  parallel_for(executor, threads_for(p, 0.4 * double(s.rows()) * double(s.V)), s.sequences(), [&](int64_t i) {
    double sum = 0;
    for (int64_t t = 0; good[i] && t < p.lengths[i]; ++t) {
      const int64_t row = s.first_row(i) + t * s.B;
      sum += tangent_row<F>(p, kept, row, at(directions, row * s.V, p.dtype));
    }
    tangents[i] = F(sum);
  });
}

// Frames [begin, end) of a result like acts, all 0 or all NaN.
void fill_like_acts(const Problem& p, void* out, int64_t sequence, int64_t begin, int64_t end, bool nan) {
  const Shape& s = p.shape;
  for (int64_t t = begin; t < end; ++t) {
    // All bits set are a NaN in every dtype.
    void* row = at(out, (s.first_row(sequence) + t * s.B) * s.V, p.dtype);
    std::memset(row, nan ? 0xff : 0, s.V * element_size(p.dtype));
  }
}

template <class F> void product_of_sequence(const Problem& p, int64_t sequence, Kept kept, F cotangent,
                                            const void* directions, void* out) {
  const Shape& s = p.shape;
  const int64_t first = first_row(s, sequence);
  const int32_t length = p.lengths[sequence];
  thread_local Labels labels;
  if (cotangent == 0 || !valid_length(s, length) || !labels.read(p, p.labels + sequence * s.L))
    return fill_like_acts(p, out, sequence, 0, s.T, false);
  const Sequence<F> in = sequence_of<F>(p, sequence, labels);
  const Along<F> along = {at(directions, first * s.V, p.dtype),
                          s.dense() ? nullptr : row_of<F>(kept.rows, first, 2),
                          2 * s.B,
                          row_of<F>(kept.columns, first, s.columns()),
                          s.B * s.columns(),
                          labels.slots.data(),
                          cotangent,
                          at(out, first * s.V, p.dtype)};
  const Verdict verdict = kernels<F>().product(in, along);
  if (verdict != Verdict::kFine) fill_like_acts(p, out, sequence, 0, length, verdict == Verdict::kUndefined);
  fill_like_acts(p, out, sequence, length, s.T, false);
  thread_scratch().trim();
}

template <class F> void run_product(const Problem& p, Kept kept, const F* cotangents, const void* directions, void* out,
                                    Executor& executor) {
  advise_huge_pages(out, p.shape.rows() * p.shape.V * element_size(p.dtype));
  for_each_sequence(p, 5, executor,
                    [&](int64_t i) { product_of_sequence<F>(p, i, kept, cotangents[i], directions, out); });
}

}  // namespace

void loss(const Problem& p, void* cost, Executor& executor) { forward(p, cost, {nullptr, nullptr}, executor); }

void forward(const Problem& p, void* cost, Kept kept, Executor& executor) {
  if (p.dtype == Dtype::kF64)
    run_batch<double>(p, cost, kept, executor);
  else
    run_batch<float>(p, cost, kept, executor);
}

void tangent(const Problem& p, Kept kept, const void* directions, void* tangents, Executor& executor) {
  if (p.dtype == Dtype::kF64)
    run_tangent<double>(p, kept, directions, static_cast<double*>(tangents), executor);
  else
    run_tangent<float>(p, kept, directions, static_cast<float*>(tangents), executor);
}

void cotangent(const Problem& p, Kept kept, const void* cotangents, void* gradient, Executor& executor) {
  if (p.dtype == Dtype::kF64)
    run_cotangent<double>(p, kept, static_cast<const double*>(cotangents), gradient, executor);
  else
    run_cotangent<float>(p, kept, static_cast<const float*>(cotangents), gradient, executor);
}

void product(const Problem& p, Kept kept, const void* cotangents, const void* directions, void* out,
             Executor& executor) {
  if (p.dtype == Dtype::kF64)
    run_product<double>(p, kept, static_cast<const double*>(cotangents), directions, out, executor);
  else
    run_product<float>(p, kept, static_cast<const float*>(cotangents), directions, out, executor);
}

void sums(const Problem& p, Sums out, Executor& executor) {
  if (p.dtype == Dtype::kF64)
    run_sums<double>(p, out, executor);
  else
    run_sums<float>(p, out, executor);
}

void sums_cotangent(const Problem& p, const void* top, const void* ct_tail, const void* ct_scores, void* out,
                    Executor& executor) {
  const auto run = [&](auto zero) {
    using F = decltype(zero);
    run_sums_cotangent<F>(p, static_cast<const F*>(top), static_cast<const F*>(ct_tail),
                          static_cast<const F*>(ct_scores), out, executor);
  };
  p.dtype == Dtype::kF64 ? run(0.0) : run(0.0f);
}

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Memory of a batch: the scratch memory of each thread, rows within arrays, pages of large results.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdio>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "../common/problem.h"
#include "simd/interface.h"

namespace jax_ctc {

// What a thread keeps for its next call, of each kind: at most this many bytes.
constexpr size_t kLargestKept = 8 << 20;

// Frees the memory of a large array. A small one's stays for the next call.
template <class T> void trim(std::vector<T>& kept) {
  if (kept.capacity() * sizeof(T) > kLargestKept) std::vector<T>().swap(kept);
}

// Runs at the end of a scope, also if an exception ends it.
template <class Run> struct AtEnd {
  Run run;
  ~AtEnd() { run(); }
};
template <class Run> AtEnd(Run) -> AtEnd<Run>;

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
  Room reserve(size_t bytes) override {
    if (bytes > size_) {
      release();
      memory_.reset(static_cast<char*>(::operator new(bytes, kAlignment, std::nothrow)));
      if (!memory_) throw OutOfScratch(bytes);
      size_ = bytes;
    }
    tested::poison(memory_.get(), size_);  // an arena gives it out
    return {memory_.get(), size_};
  }
  void trim() {
    if (size_ > kLargestKept) release();
  }

 private:
  void release() {
    tested::unpoison(memory_.get(), size_);
    memory_.reset();
    size_ = 0;
  }

  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(char* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t size_ = 0;
};

inline ThreadScratch& thread_scratch() {
  thread_local ThreadScratch scratch;
  return scratch;
}

// An element of an array of this dtype.
template <class P> P* at(P* base, int64_t element, Dtype dtype) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return static_cast<Byte*>(base) + element * element_size(dtype);
}

// Row `row` of an array with `width` elements a row.
template <class F> F* row_of(void* base, int64_t row, int64_t width) { return static_cast<F*>(base) + row * width; }

// The number of a sequence's first row, or 0 if there are no frames.
inline int64_t first_row(const Shape& s, int64_t sequence) { return s.T > 0 ? s.first_row(sequence) : 0; }

// Asks for pages of 2 MB. A large result comes in pages that nobody has touched, and touching them costs a tenth of
// what it costs with pages of 4 KB: 26 MB took 4 ms in every other call. This is advice: no result depends on whether
// the system takes it.
inline void advise_huge_pages(void* array, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  constexpr int64_t kLarge = 4 << 20;
  if (bytes < kLarge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(array) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(array) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)array, (void)bytes;
#endif
}

}  // namespace jax_ctc

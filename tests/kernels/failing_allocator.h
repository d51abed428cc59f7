// SPDX-License-Identifier: Apache-2.0
// operator new that fails at an allocation of the test's choice, in whichever thread that falls.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>

namespace failing {

// The allocation that fails, counted from 1; below 1: none.
inline std::atomic<int64_t> at{0};

inline void* allocate(size_t bytes, size_t alignment) noexcept {
  if (at.load(std::memory_order_relaxed) > 0 && at.fetch_sub(1, std::memory_order_relaxed) == 1) return nullptr;
  return std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
}
inline void* allocate_or_throw(size_t bytes, size_t alignment) {
  void* p = allocate(bytes, alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace failing

void* operator new(size_t n) { return failing::allocate_or_throw(n, 16); }
void* operator new(size_t n, const std::nothrow_t&) noexcept { return failing::allocate(n, 16); }
void* operator new(size_t n, std::align_val_t a) { return failing::allocate_or_throw(n, size_t(a)); }
void* operator new(size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return failing::allocate(n, size_t(a));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

// SPDX-License-Identifier: Apache-2.0
// For the emulator: stores that other threads do not see before something orders them.
//
// With -fsanitize=thread the compiler calls a function before each store of a kernel. No sanitizer is linked: the
// functions stand here. They note what was in memory. When a thread is put aside its stores are taken back, and are put
// there again when it goes on. So it sees them, and others see what was there before: until a __syncwarp for the lanes
// of its warp, a barrier for the warps that meet there, a fence or the end of the launch for other blocks. Shuffles and
// votes order nothing. A thread or a warp may hold back so many stores and no more; then the oldest are seen.
//
// Loads are not moved: each sees what is there when it is executed.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

namespace emulator {

#if defined(__SANITIZE_THREAD__)
constexpr bool kBuffersStores = true;
#else
constexpr bool kBuffersStores = false;
#endif

struct Store {
  char* at;
  size_t bytes;
  char other[16];  // what is not in memory: the value before while the store is there, the stored one while it is not
};
using Stores = std::vector<Store>;  // in their order

class StoreBuffer {
 public:
  void begin_block(int threads, const char* shared, size_t shared_bytes) {
    of_thread_.assign(threads, {});
    of_warp_.assign((threads + 31) / 32, {});
    there_ = -1, shared_ = shared, shared_bytes_ = shared_bytes;
  }
  // A thread runs, then no more.
  void enter(int thread, const char* stack, size_t stack_bytes) {
    if (!kBuffersStores) return;
    thread_ = thread, stack_ = stack, stack_bytes_ = stack_bytes;
    bring(thread / 32);
    put(of_thread_[thread]);
  }
  void leave() {
    if (!kBuffersStores) return;
    take_back(of_thread_[thread_]);
    thread_ = -1;
    for (const Order& order : ordered_) carry_out(order);
    ordered_.clear();
  }
  // Of the thread that runs.
  void note(void* to, size_t bytes) {
    char* const begin = static_cast<char*>(to);
    if (!kBuffersStores || (begin >= stack_ && begin < stack_ + stack_bytes_)) return;
    Stores& mine = of_thread_[thread_];
    for (size_t i = 0; i < bytes; i += sizeof Store::other) {
      Store s = {begin + i, std::min(bytes - i, sizeof Store::other), {}};
      std::memcpy(s.other, s.at, s.bytes);
      mine.push_back(s);
    }
    if (mine.size() > kMost) pass_on(mine, of_warp_[there_], mine.size() / 2), limit(of_warp_[there_]);
  }
  // From here on the lanes of a warp see each other's stores; or these warps (a bit each) do.
  void order_warp(int warp) { order({warp, 0}); }
  void order_warps(unsigned warps) { order({-1, warps}); }
  // All blocks see what all threads of this one do.
  void fence() { of_block_.clear(); }

  void end_block() {
    if (!kBuffersStores) return;
    order_warps(~0u);
    take_back(of_block_);
    for (const Store& s : of_block_)
      if (s.at < shared_ || s.at >= shared_ + shared_bytes_) of_launch_.push_back(s);
    of_block_.clear();
  }
  void end_launch() { put(of_launch_), of_launch_.clear(); }

 private:
  struct Order {
    int warp;
    unsigned warps;
  };
  static constexpr size_t kMost = 256;

  static void change(Store& s) {
    char now[sizeof s.other];
    std::memcpy(now, s.at, s.bytes), std::memcpy(s.at, s.other, s.bytes), std::memcpy(s.other, now, s.bytes);
  }
  static void put(Stores& stores) { std::for_each(stores.begin(), stores.end(), change); }
  static void take_back(Stores& stores) { std::for_each(stores.rbegin(), stores.rend(), change); }
  static void pass_on(Stores& from, Stores& to, size_t n) {  // the oldest; both are in memory
    to.insert(to.end(), from.begin(), from.begin() + n);
    from.erase(from.begin(), from.begin() + n);
  }
  void limit(Stores& of_warp) {
    if (of_warp.size() > kMost) pass_on(of_warp, of_block_, of_warp.size() - kMost / 2);
  }
  void bring(int warp) {  // what the warp's lanes see
    if (there_ == warp) return;
    if (there_ >= 0) take_back(of_warp_[there_]);
    put(of_warp_[warp]), there_ = warp;
  }
  void order(Order o) {
    if (kBuffersStores && thread_ >= 0)
      ordered_.push_back(o);  // when the thread has been put aside
    else if (kBuffersStores)
      carry_out(o);
  }
  void carry_out(const Order& o) {
    for (int warp = 0; warp < int(of_warp_.size()); ++warp) {
      if (warp != o.warp && !(o.warps >> warp & 1)) continue;
      bring(warp);
      const size_t end = std::min(of_thread_.size(), size_t(warp + 1) * 32);
      for (size_t lane = size_t(warp) * 32; lane < end; ++lane) {
        put(of_thread_[lane]);
        pass_on(of_thread_[lane], of_warp_[warp], of_thread_[lane].size());
      }
      if (o.warps != 0)
        pass_on(of_warp_[warp], of_block_, of_warp_[warp].size());
      else
        limit(of_warp_[warp]);
    }
  }

  std::vector<Stores> of_thread_, of_warp_;  // what a thread alone sees, or a warp
  Stores of_block_, of_launch_;              // what this block sees; what the blocks before have done
  int thread_ = -1, there_ = -1;             // the one that runs; the warp whose stores are in memory
  const char *stack_ = nullptr, *shared_ = nullptr;
  size_t stack_bytes_ = 0, shared_bytes_ = 0;
  std::vector<Order> ordered_;
};
inline StoreBuffer stores;
inline bool kernel_runs = false;  // its own code, not the emulator's

// What watches stores is not watched.
#define CTC_UNWATCHED __attribute__((noinline, no_sanitize("thread")))

// Says what was before.
CTC_UNWATCHED inline bool watch(bool kernel) {
  const bool before = kernel_runs;
  kernel_runs = kernel;
  return before;
}

// The emulator's own work, in the middle of a kernel.
struct NotTheKernel {
  const bool before = watch(false);
  ~NotTheKernel() { watch(before); }
};

CTC_UNWATCHED inline void before_store(void* to, size_t bytes) {
  if (!kernel_runs) return;
  watch(false);
  stores.note(to, bytes);
  watch(true);
}

}  // namespace emulator

#if defined(__SANITIZE_THREAD__)
extern "C" {
// Weak, because each object has a copy.
#define CTC_CALLED __attribute__((weak)) CTC_UNWATCHED
#define CTC_ACCESS(n)                                                          \
  CTC_CALLED void __tsan_read##n(void*) {}                                     \
  CTC_CALLED void __tsan_unaligned_read##n(void*) {}                           \
  CTC_CALLED void __tsan_write##n(void* to) { emulator::before_store(to, n); } \
  CTC_CALLED void __tsan_unaligned_write##n(void* to) { emulator::before_store(to, n); }
CTC_ACCESS(1)
CTC_ACCESS(2)
CTC_ACCESS(4)
CTC_ACCESS(8)
CTC_ACCESS(16)
#undef CTC_ACCESS
CTC_CALLED void __tsan_read_range(void*, long) {}
CTC_CALLED void __tsan_write_range(void* to, long bytes) { emulator::before_store(to, bytes); }
CTC_CALLED void __tsan_init() {}
CTC_CALLED void __tsan_func_entry(void*) {}
// GCC 12 declares it with a pointer and GCC 16 with nothing, so C++ has another name for it.
void func_exit() asm("__tsan_func_exit");
CTC_CALLED void func_exit() {}
// Of the guard of a static variable.
CTC_CALLED unsigned char __tsan_atomic8_load(const volatile void* from, int) {
  return *static_cast<const volatile unsigned char*>(from);
}
}
#endif

// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels as C++ on a CPU: a fiber for each thread, real barriers and lane exchanges, copies that arrive
// late.
//
// Blocks run one after another. The threads of a block run in an order drawn anew all the time from the seed, and some
// are left behind, so what is right only by luck of timing (a missing barrier, a copy not waited for) goes wrong for
// some seed. Operations that not all threads reach end the program with a report. What was written is seen at once, or
// as late as it may be (store_buffer.h).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "stack.h"
#include "store_buffer.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = void*;  // there is but one

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

constexpr unsigned kLanes = 32;

struct Copy {
  char* to;
  const char* from;
  int bytes;
  bool committed;  // the last of its group
};

struct Fiber {
  Stack stack;
  Index thread;
  bool done = false;
  const char* waits_for = nullptr;  // a name; null: it can run
  std::function<bool()> may_go_on;  // for those that wait
  std::deque<Copy> copies;          // started and not yet carried out
  int groups = 0;                   // of them, ended by a commit
};

// What the lanes of a warp do together.
struct Exchange {
  uint64_t value[kLanes], result[kLanes];
  unsigned arrived = 0, took_part = 0, generation = 0;
  const char* operation = nullptr;
};

struct Barrier {
  int arrived = 0, expected = 0;
  unsigned generation = 0, warps = 0;  // a bit for each that has arrived
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from one launch to the next
  std::vector<Exchange> warps;
  Barrier barriers[16];  // 0: the whole block
  std::vector<unsigned> alive;
  Fiber* current = nullptr;
  int threads = 0, living = 0;
  Index block, grid, block_size;
  char* shared = nullptr;
  int32_t before = 0;  // of block_adds
  std::mt19937 random{1};
  std::function<void()> kernel;
  int64_t launches = 0;
  std::deque<std::array<int64_t, 3>> last_launches;  // six of them: blocks, threads, bytes of shared memory
};
inline Machine& machine() {
  static Machine m;
  return m;
}

inline void seed(unsigned s) { machine().random.seed(s); }
inline int& shared_memory_limit() {
  static int bytes = 227 << 10;
  return bytes;
}
inline int& multiprocessors() {
  static int count = 132;
  return count;
}
inline bool& refuses_attributes() {  // of kernels
  static bool refuses = false;
  return refuses;
}
inline int& last_error() {  // of the calls of this thread
  thread_local int error = 0;
  return error;
}
inline char* shared_memory() { return machine().shared; }
[[noreturn]] inline void fail(const char* what) {
  Machine& m = machine();
  std::fprintf(stderr, "emulator: block %u: %s\n", m.block.x, what);
  for (int i = 0; i < m.threads; ++i)
    if (!m.fibers[i]->done)
      std::fprintf(stderr, "  thread %d: %s\n", i, m.fibers[i]->waits_for ? m.fibers[i]->waits_for : "can run");
  std::abort();
}

inline int thread() { return machine().current->thread.x; }

// Bytes that a kernel may have on the current device, `given` from now on if that is not 0. There is a device for each
// limit.
inline int allowed_shared_memory(const void* kernel, int given = 0) {
  static std::mutex one_at_a_time;
  static std::map<std::pair<const void*, int>, int> allowed;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  int& bytes = allowed.try_emplace({kernel, shared_memory_limit()}, 48 << 10).first->second;
  if (given != 0 && given < bytes) fail("a launch takes shared memory from what other threads launch");
  return bytes = given != 0 ? given : bytes;
}

// ---- threads wait ------------------------------------------------------------------------------

inline void wait(const char* what, std::function<bool()> may_go_on) {
  const NotTheKernel here;
  Fiber& me = *machine().current;
  me.waits_for = what, me.may_go_on = std::move(may_go_on);
  me.stack.pause();
}

inline void complete(Exchange& x, int warp) {
  std::memcpy(x.result, x.value, sizeof x.value);
  x.took_part = x.arrived, x.arrived = 0, ++x.generation;
  if (std::strcmp(x.operation, "__syncwarp") == 0) stores.order_warp(warp);  // no other one orders memory
}

// All lanes of the warp that live put in a value and see everybody's.
inline const Exchange& exchange(const char* operation, unsigned mask, uint64_t value) {
  const NotTheKernel here;
  Machine& m = machine();
  const int warp = thread() / kLanes, lane = thread() % kLanes;
  Exchange& x = m.warps[warp];
  if (mask != 0xffffffffu) fail("only exchanges among all lanes are emulated");
  if (x.arrived == 0) x.operation = operation;
  if (std::strcmp(x.operation, operation) != 0) fail("lanes of a warp meet in different operations");
  x.value[lane] = value, x.arrived |= 1u << lane;
  const unsigned generation = x.generation;
  // Who came last lets all of them go on, itself too, in any order.
  if ((x.arrived & m.alive[warp]) == m.alive[warp]) complete(x, warp);
  wait(operation, [&x, generation] { return x.generation != generation; });
  return x;  // it cannot be used again before this lane arrives
}

inline void barrier(int id, int threads) {
  const NotTheKernel here;
  Machine& m = machine();
  Barrier& b = m.barriers[id];
  if (id < 0 || id > 15 || threads % kLanes != 0) fail("no such barrier");
  if (b.arrived > 0 && b.expected != threads) fail("threads at a barrier disagree on how many they are");
  b.expected = threads, b.warps |= 1u << thread() / kLanes;
  const unsigned generation = b.generation;
  if (++b.arrived == threads) {
    stores.order_warps(b.warps);
    b.arrived = 0, b.warps = 0, ++b.generation;
  }
  wait("a barrier of some warps", [&b, generation] { return b.generation != generation; });
}

inline void block_barrier() {
  const NotTheKernel here;
  Machine& m = machine();
  Barrier& b = m.barriers[0];
  const unsigned generation = b.generation;
  ++b.arrived;
  wait("__syncthreads", [&m, &b, generation] {
    if (b.generation == generation && b.arrived == m.living) {
      stores.order_warps(~0u);
      b.arrived = 0, ++b.generation;
    }
    return b.generation != generation;
  });
}

// Adds 1 for the block, and tells all of its threads what was there before.
inline int32_t block_adds(int32_t* to) {
  const NotTheKernel here;
  block_barrier();
  if (thread() == 0) stores.fence(), machine().before = (*to)++;
  block_barrier();
  return machine().before;
}

// Whether a look at what another block stores comes before it has: half of them do.
inline bool too_early() {
  const NotTheKernel here;
  return machine().random() % 2 == 0;
}
// Seen by all at once.
template <class T> void store_now(T* to, T value) {
  const NotTheKernel here;
  std::memcpy(to, &value, sizeof value);
}

// ---- copies that arrive late -------------------------------------------------------------------

inline void carry_out(Fiber& f) {
  const Copy c = f.copies.front();
  f.copies.pop_front();
  if (c.bytes == 0) return;  // the end of a group
  stores.note(c.to, c.bytes);
  std::memcpy(c.to, c.from, c.bytes);
}
inline void copy_async(void* to, const void* from, int bytes) {
  const NotTheKernel here;
  const auto aligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  if ((bytes != 4 && bytes != 8 && bytes != 16) || !aligned(to) || !aligned(from)) fail("a copy that is not aligned");
  machine().current->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, false});
}
inline void copy_commit() {  // an entry of no bytes ends the group
  const NotTheKernel here;
  Fiber& me = *machine().current;
  me.copies.push_back({nullptr, nullptr, 0, true});
  ++me.groups;
}
inline void copy_wait(int pending) {
  const NotTheKernel here;
  Fiber& me = *machine().current;
  while (me.groups > pending) {
    me.groups -= me.copies.front().committed;
    carry_out(me);
  }
}

// ---- launches ----------------------------------------------------------------------------------

inline void run_thread() {
  Machine& m = machine();
  watch(true);
  m.kernel();
  watch(false);
  Fiber& me = *m.current;
  me.done = true, --m.living;
  m.alive[me.thread.x / kLanes] &= ~(1u << me.thread.x % kLanes);
  me.copies.clear();
  me.stack.pause();
}

// Lanes that have returned are not waited for.
inline void release_exchanges() {
  Machine& m = machine();
  for (size_t w = 0; w < m.warps.size(); ++w) {
    Exchange& x = m.warps[w];
    if (x.arrived == 0 || m.alive[w] == 0 || (x.arrived & m.alive[w]) != m.alive[w]) continue;
    complete(x, int(w));
  }
}

inline void run_block(int threads, size_t shared_bytes) {
  Machine& m = machine();
  // Alone on the heap at its exact size: the address sanitizer sees its ends. NaN patterns before anything is written.
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max<size_t>(1, shared_bytes)) != 0) fail("no memory");
  const std::unique_ptr<char, void (*)(void*)> shared(static_cast<char*>(memory), std::free);
  std::memset(memory, 0xff, shared_bytes);
  m.shared = shared.get();
  m.threads = m.living = threads;
  m.warps.assign((threads + kLanes - 1) / kLanes, Exchange());
  m.alive.assign(m.warps.size(), 0);
  for (Barrier& b : m.barriers) b = Barrier();
  while (int(m.fibers.size()) < threads) m.fibers.push_back(std::make_unique<Fiber>());
  for (int i = 0; i < threads; ++i) {
    Fiber& f = *m.fibers[i];
    f.thread = {unsigned(i), 0, 0}, f.done = false, f.waits_for = nullptr, f.groups = 0;
    f.copies.clear();
    f.stack.start(run_thread);
    m.alive[i / kLanes] |= 1u << i % kLanes;
  }
  stores.begin_block(threads, m.shared, shared_bytes);
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  int frozen = -1;
  for (int64_t pass = 0; m.living > 0; ++pass) {
    std::shuffle(order.begin(), order.end(), m.random);
    if (pass % 24 == 0) frozen = m.random() % 2 ? int(m.random() % threads) : -1;
    bool progress = false;
    for (int i : order) {
      Fiber& f = *m.fibers[i];
      if (f.done || (f.waits_for != nullptr && !f.may_go_on())) continue;
      progress = true;
      // A fiber runs until it waits, which is kinder than a GPU: so some are left behind, one of them for long.
      if (i == frozen || m.random() % 8 == 0) continue;
      f.waits_for = nullptr;
      m.current = &f;
      stores.enter(i, f.stack.begin(), Stack::kBytes);
      if (!f.copies.empty() && f.copies.front().bytes > 0 && m.random() % 4 == 0) carry_out(f);
      f.stack.take_turn();
      stores.leave();
    }
    release_exchanges();
    if (!progress) {
      for (int i = 0; i < threads && !progress; ++i)
        progress = !m.fibers[i]->done && m.fibers[i]->may_go_on && m.fibers[i]->may_go_on();
      if (!progress && m.living > 0) fail("nobody can go on");
    }
  }
  stores.end_block();
  m.shared = nullptr;
}

inline void launch(const void* kernel_address, unsigned blocks, int threads, size_t shared_bytes,
                   std::function<void()> kernel) {
  static std::mutex one_at_a_time;  // XLA calls from several threads
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  Machine& m = machine();
  if (threads < 1 || threads > 1024 || threads % kLanes != 0) fail("a block of a size that there is not");
  if (shared_bytes > size_t(shared_memory_limit())) fail("more shared memory than there is");
  if (shared_bytes > size_t(allowed_shared_memory(kernel_address))) fail("more shared memory than the kernel may have");
  m.kernel = std::move(kernel);
  ++m.launches;
  m.last_launches.push_back({int64_t(blocks), threads, int64_t(shared_bytes)});
  if (m.last_launches.size() > 6) m.last_launches.pop_front();
  m.grid.x = blocks, m.block_size.x = unsigned(threads);
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), m.random);
  for (unsigned b : order) {
    m.block.x = b;
    run_block(threads, shared_bytes);
  }
  stores.end_launch();
}

template <class T> uint64_t packed(T v) {
  static_assert(sizeof v <= 8, "one exchange carries 8 bytes");
  uint64_t u = 0;
  std::memcpy(&u, &v, sizeof v);
  return u;
}
template <class T> T unpacked(uint64_t u) {
  T v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}

// As far off as ex2.approx.ftz may be: exact for integers, else up to 1.7e-7, always the same for the same x.
inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  if (y < 1.17549435e-38f) return 0;
  if (x == std::floor(x) || !(y < INFINITY)) return y;
  uint32_t h = uint32_t(packed(x)) * 2654435761u;
  h = (h ^ h >> 15) * 2246822519u;
  h ^= h >> 13;
  return y * (1 + (float(h & 0xffff) / 32768 - 1) * 1.7e-7f);
}

}  // namespace emulator

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = emulator::shared_memory_limit(), cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulator::multiprocessors() : device;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error(), cudaSuccess); }
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (emulator::refuses_attributes()) return emulator::last_error() = 1;
  return emulator::allowed_shared_memory(kernel, bytes), cudaSuccess;
}

#define threadIdx (emulator::machine().current->thread)
#define blockIdx (emulator::machine().block)
#define blockDim (emulator::machine().block_size)
#define gridDim (emulator::machine().grid)

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::exchange("__syncwarp", mask, 0); }
template <class T> T __shfl_sync(unsigned mask, T v, int from) {
  return emulator::unpacked<T>(emulator::exchange("__shfl_sync", mask, emulator::packed(v)).result[from & 31]);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, int by) {
  const int lane = emulator::thread() % 32;
  return emulator::unpacked<T>(
      emulator::exchange("__shfl_up_sync", mask, emulator::packed(v)).result[lane < by ? lane : lane - by]);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, int by) {
  const int lane = emulator::thread() % 32;
  return emulator::unpacked<T>(
      emulator::exchange("__shfl_down_sync", mask, emulator::packed(v)).result[lane + by > 31 ? lane : lane + by]);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits) {
  const int lane = emulator::thread() % 32;
  return emulator::unpacked<T>(emulator::exchange("__shfl_xor_sync", mask, emulator::packed(v)).result[lane ^ bits]);
}
inline unsigned __ballot_sync(unsigned mask, int yes) {
  const emulator::Exchange& x = emulator::exchange("__ballot_sync", mask, yes != 0);
  unsigned lanes = 0;
  for (int i = 0; i < 32; ++i) lanes |= unsigned(x.took_part >> i & 1 && x.result[i]) << i;
  return lanes;
}
inline int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }

// Half precision: rounded to the nearest, ties to even; NaN stays NaN.
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return emulator::unpacked<float>(uint64_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t u = uint32_t(emulator::packed(x));
  return {x != x ? uint16_t(0x7fff) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) { return float(emulator::unpacked<_Float16>(x.bits)); }
inline __half __float2half_rn(float x) { return {uint16_t(emulator::packed(_Float16(x)))}; }

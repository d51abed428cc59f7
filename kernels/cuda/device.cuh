// SPDX-License-Identifier: Apache-2.0
// What kernels use of the machine. The only file that differs between nvcc and the emulator, a header that runs kernels
// as C++ on a CPU (tests/kernels/emulator.h): nothing else here looks at __CUDACC__.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

#include "cell.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define CTC_DEVICE __device__ __forceinline__
#else
#include "emulator.h"
#define CTC_DEVICE inline
#endif

namespace jax_ctc {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

#if defined(__CUDACC__)

CTC_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}
CTC_DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Global to shared memory behind the thread's back. The thread itself sees the bytes after copy_wait, others after a
// barrier that follows it.
template <int kBytes> CTC_DEVICE void copy_async(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
               : "memory");
}
CTC_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending> CTC_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The barrier of some warps of a block, by number: 1 to 15.
template <int id> CTC_DEVICE void barrier(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(id), "r"(threads) : "memory");
}

CTC_DEVICE void load_shared(unsigned address, Scaled<float>& v) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=f"(v.m), "=r"(v.e) : "r"(address));
}
CTC_DEVICE void load_shared(unsigned address, Scaled<double>& v) {
  asm volatile("ld.shared.v2.b64 {%0, %1}, [%2];" : "=d"(v.m), "=l"(v.e) : "r"(address));
}
CTC_DEVICE void load_shared(unsigned address, Dual<float>& v) {
  asm volatile("{.reg .b32 x; ld.shared.v4.b32 {%0, %1, %2, x}, [%3];}"
               : "=f"(v.m), "=r"(v.e), "=f"(v.d)
               : "r"(address));
}
CTC_DEVICE void load_shared(unsigned address, Dual<double>& v) {
  asm volatile("ld.shared.v2.b64 {%0, %1}, [%3]; ld.shared.b64 %2, [%3+16];"
               : "=d"(v.m), "=l"(v.e), "=d"(v.d)
               : "r"(address));
}
// Two side by side.
template <class Value> CTC_DEVICE void load_shared(unsigned address, Value& v, Value& w) {
  load_shared(address, v);
  load_shared(address + sizeof(Cell<Value>), w);
}
CTC_DEVICE void load_shared(unsigned address, Scaled<float>& v, Scaled<float>& w) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=f"(v.m), "=r"(v.e), "=f"(w.m), "=r"(w.e) : "r"(address));
}
// An array in shared memory, read through volatile assembly so that loads stay where they are written. Otherwise the
// compiler hoists so many loads that registers spill.
template <class Value> struct SharedArray {
  unsigned address;
  explicit CTC_DEVICE SharedArray(const Cell<Value>* p) : address(shared_address(p)) {}
  CTC_DEVICE Value operator[](int i) const {
    Value v;
    load_shared(address + i * sizeof(Cell<Value>), v);
    return v;
  }
  // Two side by side, from an even i on.
  CTC_DEVICE void read(int i, Value& v, Value& w) const { load_shared(address + i * sizeof(Cell<Value>), v, w); }
};

// To shared or global memory, by the lanes where `yes`. As a plain `if` it became a branch, 6 to 13 cycles a frame.
#define CTC_IF(yes, stores) "{.reg .pred p; setp.ne.u32 p, " yes ", 0; " stores "}"
CTC_DEVICE void store_if(bool yes, Scaled<float>* to, Scaled<float> v) {
  asm volatile(CTC_IF("%3", "@p st.v2.b32 [%0], {%1, %2};")::"l"(to), "f"(v.m), "r"(v.e), "r"(unsigned(yes)));
}
CTC_DEVICE void store_if(bool yes, Scaled<double>* to, Scaled<double> v) {
  asm volatile(CTC_IF("%3", "@p st.v2.b64 [%0], {%1, %2};")::"l"(to), "d"(v.m), "l"(v.e), "r"(unsigned(yes)));
}
CTC_DEVICE void store_if(bool yes, DualCell<float>* to, Dual<float> v) {
  asm volatile(CTC_IF("%4", "@p st.v4.b32 [%0], {%1, %2, %3, %3};")::"l"(to), "f"(v.m), "r"(v.e), "f"(v.d),
               "r"(unsigned(yes)));
}
CTC_DEVICE void store_if(bool yes, DualCell<double>* to, Dual<double> v) {
  asm volatile(CTC_IF("%4", "@p st.v2.b64 [%0], {%1, %2}; @p st.b64 [%0+16], %3;")::"l"(to), "d"(v.m), "l"(v.e),
               "d"(v.d), "r"(unsigned(yes)));
}
// To global memory, two values side by side.
CTC_DEVICE void store_pair_if(bool yes, void* to, Scaled<float> a, Scaled<float> b) {
  asm volatile(CTC_IF("%5", "@p st.global.v4.b32 [%0], {%1, %2, %3, %4};")::"l"(to), "f"(a.m), "r"(a.e), "f"(b.m),
               "r"(b.e), "r"(unsigned(yes)));
}
CTC_DEVICE void store_pair_if(bool yes, void* to, Scaled<double> a, Scaled<double> b) {
  asm volatile(CTC_IF("%5", "@p st.global.v2.b64 [%0], {%1, %2}; @p st.global.v2.b64 [%0+16], {%3, %4};")::"l"(to),
               "d"(a.m), "l"(a.e), "d"(b.m), "l"(b.e), "r"(unsigned(yes)));
}
CTC_DEVICE void store_pair_if(bool yes, void* to, Dual<float> a, Dual<float> b) {
  asm volatile(
      CTC_IF("%7",
             "@p st.global.v4.b32 [%0], {%1, %2, %3, %3}; @p st.global.v4.b32 [%0+16], {%4, %5, %6, %6};")::"l"(to),
      "f"(a.m), "r"(a.e), "f"(a.d), "f"(b.m), "r"(b.e), "f"(b.d), "r"(unsigned(yes)));
}
CTC_DEVICE void store_pair_if(bool yes, void* to, Dual<double> a, Dual<double> b) {
  asm volatile(CTC_IF("%7",
                      "@p st.global.v2.b64 [%0], {%1, %2}; @p st.global.b64 [%0+16], %3; "
                      "@p st.global.v2.b64 [%0+32], {%4, %5}; @p st.global.b64 [%0+48], %6;")::"l"(to),
               "d"(a.m), "l"(a.e), "d"(a.d), "d"(b.m), "l"(b.e), "d"(b.d), "r"(unsigned(yes)));
}
#undef CTC_IF

// A value in memory, 8 or 16 bytes at once: its type alone would promise 4.
CTC_DEVICE Scaled<float> load(const Scaled<float>* from) {
  const float2 v = *reinterpret_cast<const float2*>(from);
  return {v.x, __float_as_int(v.y)};
}
CTC_DEVICE Scaled<double> load(const Scaled<double>* from) {
  const double2 v = *reinterpret_cast<const double2*>(from);
  return {v.x, __double_as_longlong(v.y)};
}
CTC_DEVICE Dual<float> load(const DualCell<float>* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  return {v.x, __float_as_int(v.y), v.z};
}
CTC_DEVICE Dual<double> load(const DualCell<double>* from) {
  const double2 v = *reinterpret_cast<const double2*>(from);
  return {v.x, __double_as_longlong(v.y), from->d};
}
CTC_DEVICE void store(Scaled<float>* to, Scaled<float> v) {
  *reinterpret_cast<float2*>(to) = make_float2(v.m, __int_as_float(v.e));
}
CTC_DEVICE void store(Scaled<double>* to, Scaled<double> v) {
  *reinterpret_cast<double2*>(to) = make_double2(v.m, __longlong_as_double(v.e));
}
CTC_DEVICE void store(DualCell<float>* to, Dual<float> v) {
  *reinterpret_cast<float4*>(to) = make_float4(v.m, __int_as_float(v.e), v.d, v.d);
}
CTC_DEVICE void store(DualCell<double>* to, Dual<double> v) {
  *reinterpret_cast<double2*>(to) = make_double2(v.m, __longlong_as_double(v.e));
  to->d = v.d;
}

// Adds 1 for the block, and tells all of its threads what was there before; `before` is in shared memory. Who comes
// after another block sees what that one has written. All threads call it. No __shared__ variable: a kernel that has
// one may not have all of the shared memory that the device offers.
CTC_DEVICE int32_t block_adds(int32_t* to, int32_t* before) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *before = atomicAdd(to, 1);
    __threadfence();
  }
  __syncthreads();
  return *before;
}

// The same, but the compiler does not know it: what depends on it is not kept from before.
CTC_DEVICE char* computed_again(char* p) {
  asm volatile("" : "+l"(p));
  return p;
}

CTC_DEVICE float exp2_approx(float x) {  // relative error up to 1.7e-7, exact for integers
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class Arguments> cudaError_t start(void (*kernel)(Arguments), unsigned blocks, int threads, size_t shared,
                                             cudaStream_t stream, const Arguments& arguments) {
  kernel<<<blocks, threads, shared, stream>>>(arguments);
  return cudaGetLastError();
}

#else

inline char* shared_memory() { return emulator::shared_memory(); }
template <class F> Scaled<F> load(const Scaled<F>* from) { return *from; }
template <class F> Dual<F> load(const DualCell<F>* from) { return {from->m, from->e, from->d}; }
template <class F> void store(Scaled<F>* to, Scaled<F> v) { *to = v; }
template <class F> void store(DualCell<F>* to, Dual<F> v) { *to = {v.m, v.e, v.d, v.d}; }
template <class Value> struct SharedArray {
  const Cell<Value>* at;
  explicit SharedArray(const Cell<Value>* p) : at(p) {}
  Value operator[](int i) const { return load(at + i); }
  void read(int i, Value& v, Value& w) const { v = load(at + i), w = load(at + i + 1); }
};
template <int kBytes> inline void copy_async(void* to, const void* from) { emulator::copy_async(to, from, kBytes); }
inline void copy_commit() { emulator::copy_commit(); }
template <int kPending> inline void copy_wait() { emulator::copy_wait(kPending); }
template <int id> inline void barrier(int threads) { emulator::barrier(id, threads); }
template <class Value> void store_if(bool yes, Cell<Value>* to, Value v) {
  if (yes) store(to, v);
}
template <class Value> void store_pair_if(bool yes, void* to, Value a, Value b) {
  if (yes) store(static_cast<Cell<Value>*>(to), a), store(static_cast<Cell<Value>*>(to) + 1, b);
}
inline int32_t block_adds(int32_t* to, int32_t* before) { return emulator::block_adds(to, before); }
inline char* computed_again(char* p) { return p; }
inline float exp2_approx(float x) { return emulator::exp2_approx(x); }

template <class Arguments> cudaError_t start(void (*kernel)(Arguments), unsigned blocks, int threads, size_t shared,
                                             cudaStream_t, const Arguments& arguments) {
  emulator::launch(reinterpret_cast<const void*>(kernel), blocks, threads, shared, [&] { kernel(arguments); });
  return cudaSuccess;
}

#endif

// ---- launches ----------------------------------------------------------------------------------

constexpr size_t kSharedMemoryUnasked = 48 << 10;  // bytes that any kernel may have

// Bytes of shared memory that a block may have on the current device.
inline int shared_memory_limit() {
  int device = 0, bytes = kSharedMemoryUnasked;
  if (cudaGetDevice(&device) == cudaSuccess)
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// Lets a kernel have all shared memory of the current device, once for each of both. Never less than all: the limit is
// the kernel's, not the launch's, and a lower one would fail the larger launch of another thread.
inline cudaError_t allow_all_shared_memory(const void* kernel) {
  static std::mutex one_at_a_time;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0;
  if (const cudaError_t e = cudaGetDevice(&device); e != cudaSuccess) return e;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (allowed.count({kernel, device}) != 0) return cudaSuccess;
  const cudaError_t e =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory_limit());
  if (e == cudaSuccess) allowed.insert({kernel, device});
  return e;
}

// Launches without waiting; null, or what is wrong. No programmatic dependent launch: on an H200 it packed the
// lattice's blocks onto the few multiprocessors that were free early, which made training 2.3 times as slow at (400,
// 16, 32, 100).
template <class Arguments> const char* launch(void (*kernel)(Arguments), int64_t blocks, int threads, size_t shared,
                                              cudaStream_t stream, const Arguments& arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > INT32_MAX) return "more blocks than a grid can have";
  cudaError_t e = cudaSuccess;
  if (shared > kSharedMemoryUnasked) e = allow_all_shared_memory(reinterpret_cast<const void*>(kernel));
  if (e == cudaSuccess) e = start(kernel, unsigned(blocks), threads, shared, stream, arguments);
  return e == cudaSuccess ? nullptr : cudaGetErrorString(e);
}

// A cell, or anything else of 4, 8 or a multiple of 16 bytes.
template <class T> CTC_DEVICE void copy_async(T* to, const T* from) {
  constexpr int kAtOnce = sizeof(T) < 16 ? int(sizeof(T)) : 16;
#pragma unroll
  for (int i = 0; i < int(sizeof(T)); i += kAtOnce)
    copy_async<kAtOnce>(reinterpret_cast<char*>(to) + i, reinterpret_cast<const char*>(from) + i);
}

// ---- numbers -----------------------------------------------------------------------------------

template <class F> constexpr F kLowest = sizeof(F) == 4 ? F(-FLT_MAX) : F(-DBL_MAX);
template <class F> CTC_DEVICE F not_a_number() { return F(NAN); }
template <class F> CTC_DEVICE F infinity() { return F(INFINITY); }

// exp(x) for x <= 0. -inf gives 0, NaN stays.
CTC_DEVICE float exp_of_nonpositive(float x) { return exp2_approx(x * 1.44269504088896341f); }
CTC_DEVICE double exp_of_nonpositive(double x) { return exp(x); }
CTC_DEVICE float log_of(float x) { return logf(x); }
CTC_DEVICE double log_of(double x) { return log(x); }
CTC_DEVICE float log_of_1_and(float x) { return log1pf(x); }
CTC_DEVICE double log_of_1_and(double x) { return log1p(x); }

CTC_DEVICE float widen(float x) { return x; }
CTC_DEVICE double widen(double x) { return x; }
CTC_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
CTC_DEVICE float widen(__half x) { return __half2float(x); }
template <class A, class F> struct Narrow {
  static CTC_DEVICE A of(F x) { return x; }
};
template <> struct Narrow<__nv_bfloat16, float> {
  static CTC_DEVICE __nv_bfloat16 of(float x) { return __float2bfloat16_rn(x); }
};
template <> struct Narrow<__half, float> {
  static CTC_DEVICE __half of(float x) { return __float2half_rn(x); }
};

// What is computed in, for acts of A.
template <class A> struct ComputedIn {
  using type = float;
};
template <> struct ComputedIn<double> {
  using type = double;
};
template <class A> using Computed = typename ComputedIn<A>::type;

// Elements of an array that are moved at once: 16 bytes of them, or less.
template <class A, int n = 16 / int(sizeof(A))> struct alignas(n * sizeof(A)) Piece {
  static constexpr int size = n;
  A at[n];
};

// ---- warps -------------------------------------------------------------------------------------

CTC_DEVICE int lane_index() { return threadIdx.x % kWarp; }
CTC_DEVICE int warp_index() { return threadIdx.x / kWarp; }
// The same, as a value that the compiler knows to be one in all lanes: what depends on it does not part them.
CTC_DEVICE int uniform_warp_index() { return __shfl_sync(kAllLanes, warp_index(), 0); }

template <class F> CTC_DEVICE Scaled<F> from_lane_below(Scaled<F> v) {
  return {__shfl_up_sync(kAllLanes, v.m, 1), __shfl_up_sync(kAllLanes, v.e, 1)};
}
template <class F> CTC_DEVICE Dual<F> from_lane_below(Dual<F> v) {
  return {__shfl_up_sync(kAllLanes, v.m, 1), __shfl_up_sync(kAllLanes, v.e, 1), __shfl_up_sync(kAllLanes, v.d, 1)};
}
template <class F> CTC_DEVICE Scaled<F> from_lane_above(Scaled<F> v, int distance) {
  return {__shfl_down_sync(kAllLanes, v.m, distance), __shfl_down_sync(kAllLanes, v.e, distance)};
}
// The same bits in every lane: a + b and b + a are the same.
template <class F> CTC_DEVICE F sum_of_lanes(F x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}
template <class F> CTC_DEVICE Number<F> sum_of_lanes(Number<F> x) {
  return {sum_of_lanes(x.value), sum_of_lanes(x.change)};
}

// a / b and a % b for a >= 0, b > 0; 64-bit division is a call of some 100 instructions.
CTC_DEVICE int64_t quotient(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// What kernels use of the machine, by nvcc: intrinsics, assembly and the start of a kernel. The build's include path
// chooses this file. An emulator, which runs kernels as C++ on a CPU, has a file of this name with the same
// declarations.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../cell.h"

#define CTC_DEVICE __device__ __forceinline__

namespace jax_ctc {
namespace cuda {

CTC_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}
CTC_DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Copies by SharedArray::copy.
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
// To memory, by the lanes where `yes`. As a plain `if` it became a branch, 6 to 13 cycles a frame.
#define CTC_IF(yes, stores) "{.reg .pred p; setp.ne.u32 p, " yes ", 0; " stores "}"
#define CTC_STORE_IF(name, st, Address, a)                                                                         \
  CTC_DEVICE void name(bool yes, Address to, Scaled<float> v) {                                                    \
    asm volatile(CTC_IF("%3", "@p " st ".v2.b32 [%0], {%1, %2};")::a(to), "f"(v.m), "r"(v.e), "r"(unsigned(yes))); \
  }                                                                                                                \
  CTC_DEVICE void name(bool yes, Address to, Scaled<double> v) {                                                   \
    asm volatile(CTC_IF("%3", "@p " st ".v2.b64 [%0], {%1, %2};")::a(to), "d"(v.m), "l"(v.e), "r"(unsigned(yes))); \
  }                                                                                                                \
  CTC_DEVICE void name(bool yes, Address to, Dual<float> v) {                                                      \
    asm volatile(CTC_IF("%4", "@p " st ".v4.b32 [%0], {%1, %2, %3, %3};")::a(to), "f"(v.m), "r"(v.e), "f"(v.d),    \
                 "r"(unsigned(yes)));                                                                              \
  }                                                                                                                \
  CTC_DEVICE void name(bool yes, Address to, Dual<double> v) {                                                     \
    asm volatile(CTC_IF("%4", "@p " st ".v2.b64 [%0], {%1, %2}; @p " st ".b64 [%0+16], %3;")::a(to), "d"(v.m),     \
                 "l"(v.e), "d"(v.d), "r"(unsigned(yes)));                                                          \
  }
CTC_STORE_IF(store_if, "st", void*, "l")
CTC_STORE_IF(store_shared_if, "st.shared", unsigned, "r")
#undef CTC_STORE_IF
// An array in shared memory, read and written through volatile assembly so that loads stay where they are written.
// Otherwise the compiler hoists so many loads that registers spill.
template <class Value> struct SharedArray {
  unsigned address;
  explicit CTC_DEVICE SharedArray(const Cell<Value>* p) : SharedArray(shared_address(p)) {}
  CTC_DEVICE SharedArray from(int i) const { return SharedArray(address + i * unsigned(sizeof(Cell<Value>))); }
  CTC_DEVICE Value operator[](int i) const {
    Value v;
    load_shared(address + i * sizeof(Cell<Value>), v);
    return v;
  }
  // Two side by side, from an even i on.
  CTC_DEVICE void read(int i, Value& v, Value& w) const { load_shared(address + i * sizeof(Cell<Value>), v, w); }
  // Copies from global memory asynchronously (cp.async). This thread sees the bytes after copy_wait, others after a
  // barrier that follows it.
  CTC_DEVICE void copy(int i, const Cell<Value>* from) const {
    constexpr int kAtOnce = sizeof(*from) < 16 ? int(sizeof(*from)) : 16;
#pragma unroll
    for (int k = 0; k < int(sizeof(*from)); k += kAtOnce)
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address + i * unsigned(sizeof(*from)) + k),
                   "l"(reinterpret_cast<const char*>(from) + k), "n"(kAtOnce)
                   : "memory");
  }
  CTC_DEVICE void store_if(bool yes, int i, Value v) const {
    store_shared_if(yes, address + i * unsigned(sizeof(Cell<Value>)), v);
  }

 private:
  // The compiler does not know the address: it would compute it again for each tile, from the block's window.
  explicit CTC_DEVICE SharedArray(unsigned a) : address(a) { asm volatile("" : "+r"(address)); }
};

// 8 bytes that come whole, and that other blocks see although nothing orders them.
CTC_DEVICE void store_now(Scaled<float>* to, Scaled<float> v) {
  asm volatile("{.reg .b64 x; mov.b64 x, {%1, %2}; st.relaxed.gpu.global.b64 [%0], x;}" ::"l"(to), "f"(v.m), "r"(v.e));
}
CTC_DEVICE Scaled<float> load_now(const Scaled<float>* from) {
  Scaled<float> v;
  asm volatile("{.reg .b64 x; ld.relaxed.gpu.global.b64 x, [%2]; mov.b64 {%0, %1}, x;}"
               : "=f"(v.m), "=r"(v.e)
               : "l"(from));
  return v;
}
// Until another block has stored something. It must have started before this one: blocks that have started go on.
template <class Condition, class Look> CTC_DEVICE void wait_until(Condition come, Look look_again) {
  while (!come()) look_again();
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
// Of memory that the kernel does not write, so that a load need not wait for a store before it.
CTC_DEVICE Scaled<float> load_unchanged(const Scaled<float>* from) {
  const float2 v = __ldg(reinterpret_cast<const float2*>(from));
  return {v.x, __float_as_int(v.y)};
}
CTC_DEVICE Scaled<double> load_unchanged(const Scaled<double>* from) {
  const double2 v = __ldg(reinterpret_cast<const double2*>(from));
  return {v.x, __double_as_longlong(v.y)};
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

// Whether the block is the last of `all` that call it, which counts them in `calls`. The last one sees what the others
// have written. All threads of a block call it. The answer goes through the barrier, and not through shared memory.
CTC_DEVICE bool block_is_last(int32_t* calls, int32_t all) {
  __syncthreads();
  bool last = false;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(calls, 1) == all - 1;
    __threadfence();
  }
  return __syncthreads_or(last);
}

// How many blocks have called it before; `before` is in shared memory. It orders nothing. All threads call it. No
// __shared__ variable: a kernel that has one may not have all of the shared memory that the device offers.
CTC_DEVICE int32_t block_number(int32_t* to, int32_t* before) {
  if (threadIdx.x == 0) *before = atomicAdd(to, 1);
  __syncthreads();
  const int32_t number = *before;
  __syncthreads();  // `before` is free again
  return number;
}

// The same pointer, but the compiler does not know it: what depends on it is not kept from before.
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

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// What kernels use of the machine, on the emulator: the same declarations as in kernels/cuda/nvidia/machine.cuh.
#pragma once

#include <cstdint>

#include "../../../kernels/cuda/cell.h"
#include "emulator.h"

#define CTC_DEVICE inline

namespace jax_ctc {
namespace cuda {

inline char* shared_memory() { return emulator::shared_memory(); }
template <class F> Scaled<F> load(const Scaled<F>* from) { return *from; }
template <class F> Dual<F> load(const DualCell<F>* from) { return {from->m, from->e, from->d}; }
template <class F> Scaled<F> load_unchanged(const Scaled<F>* from) { return load(from); }
template <class F> void store(Scaled<F>* to, Scaled<F> v) { *to = v; }
template <class F> void store(DualCell<F>* to, Dual<F> v) { *to = {v.m, v.e, v.d, v.d}; }
template <class Value> struct SharedArray {
  Cell<Value>* at;
  explicit SharedArray(const Cell<Value>* p) : at(const_cast<Cell<Value>*>(p)) {}
  SharedArray from(int i) const { return SharedArray(at + i); }
  Value operator[](int i) const { return load(at + i); }
  void read(int i, Value& v, Value& w) const { v = load(at + i), w = load(at + i + 1); }
  void copy(int i, const Cell<Value>* from) const {
    constexpr int kAtOnce = sizeof(*from) < 16 ? int(sizeof(*from)) : 16;
    for (int k = 0; k < int(sizeof(*from)); k += kAtOnce)
      emulator::copy_async(reinterpret_cast<char*>(at + i) + k, reinterpret_cast<const char*>(from) + k, kAtOnce);
  }
  void store_if(bool yes, int i, Value v) const {
    if (yes) store(at + i, v);
  }
};
inline void copy_commit() { emulator::copy_commit(); }
template <int kPending> inline void copy_wait() { emulator::copy_wait(kPending); }
template <int id> inline void barrier(int threads) { emulator::barrier(id, threads); }
template <class Value> void store_if(bool yes, Cell<Value>* to, Value v) {
  if (yes) store(to, v);
}
template <class Value> void store_pair_if(bool yes, void* to, Value a, Value b) {
  if (yes) store(static_cast<Cell<Value>*>(to), a), store(static_cast<Cell<Value>*>(to) + 1, b);
}
inline void store_now(Scaled<float>* to, Scaled<float> v) { emulator::store_now(to, v); }
inline Scaled<float> load_now(const Scaled<float>* from) { return emulator::too_early() ? Scaled<float>{0, 0} : *from; }
template <class Condition, class Look> void wait_until(Condition come, Look look_again) {
  for (int i = 0; i < 100 && !come(); ++i) look_again();
  if (!come()) emulator::fail("a block waits for one that starts later");  // those that started before have ended
}
inline bool block_is_last(int32_t* calls, int32_t all) { return emulator::block_adds(calls) == all - 1; }
inline int32_t block_number(int32_t* to, int32_t*) { return emulator::block_adds(to); }
inline char* computed_again(char* p) { return p; }
inline float exp2_approx(float x) { return emulator::exp2_approx(x); }

template <class Arguments> cudaError_t start(void (*kernel)(Arguments), unsigned blocks, int threads, size_t shared,
                                             cudaStream_t, const Arguments& arguments) {
  emulator::launch(reinterpret_cast<const void*>(kernel), blocks, threads, shared, [&] { kernel(arguments); });
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace jax_ctc

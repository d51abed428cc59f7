// SPDX-License-Identifier: Apache-2.0
// The lanes of a warp: who they are and what they exchange.
#pragma once

#include "machine.cuh"

namespace jax_ctc {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

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

}  // namespace cuda
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// The labels of a sequence without their padding, by one block. What the other kernels know of labels comes from here.
#pragma once

#include "device.cuh"
#include "scratch.h"

namespace jax_ctc {
namespace cuda {

// All threads of the block call it. `row` has L entries, of which those below 0 are padding.
template <class Value> CTC_DEVICE void prepare_labels(const int32_t* row, const Shape& s, int32_t blank, int32_t length,
                                                      const Workspace<Value>& ws) {
  const int lane = lane_index();
  const bool length_is_good = length >= 0 && length <= s.T;
  int32_t* const count = reinterpret_cast<int32_t*>(shared_memory());
  if (warp_index() == 0) {
    int32_t n = 0;
    bool good = length_is_good;
    for (int64_t begin = 0; begin < s.L; begin += kWarp) {
      const int64_t i = begin + lane;
      const int32_t label = i < s.L ? row[i] : -1;
      const bool here = !is_padding(label);
      good &= __any_sync(kAllLanes, here && is_bad_label(label, s.V, blank)) == 0;
      const unsigned lanes = __ballot_sync(kAllLanes, here);
      const int32_t k = n + __popc(lanes & ((1u << lane) - 1));
      if (here) ws.value[k] = label, ws.column[k] = int32_t(1 + i);
      n += __popc(lanes);
    }
    __syncwarp();
    int repeats = 0;  // each needs a blank before it
    for (int32_t k = 1 + lane; k < n; k += kWarp) repeats += !may_skip(ws.value, k);
    repeats = sum_of_lanes(repeats);
    if (lane == 0) {
      const bool feasible = good && int64_t(n) + repeats <= length;
      *ws.labels = Labels{good ? n : 0, good, feasible, length_is_good ? length : 0};
      *count = n;
    }
  }
  __syncthreads();
  const int32_t n = *count;
  for (int32_t k = threadIdx.x; k < n; k += blockDim.x) {
    int32_t next = k + 1, previous = k - 1;
    while (next < n && ws.value[next] != ws.value[k]) ++next;
    while (previous >= 0 && ws.value[previous] != ws.value[k]) --previous;
    ws.next[k] = next < n ? next : -1;
    ws.is_first[k] = previous < 0;
  }
}

}  // namespace cuda
}  // namespace jax_ctc

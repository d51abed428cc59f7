// SPDX-License-Identifier: Apache-2.0
// The labels of a sequence without their padding, by one block. What the other kernels know of labels comes from here.
#pragma once

#include "warp.cuh"
#include "workspace.h"

namespace jax_ctc {
namespace cuda {

// The first label after label k that is equal to it, or -1. Eight are read at a time, so that one load does not wait
// for the comparison of another; past the end the last one is read again.
CTC_DEVICE int32_t next_equal(const int32_t* value, int32_t k, int32_t count) {
  constexpr int kAtOnce = 8;
  const int32_t wanted = value[k];
  for (int32_t begin = k + 1; begin < count; begin += kAtOnce) {
    int32_t found = -1;
#pragma unroll
    for (int i = kAtOnce - 1; i >= 0; --i) {
      const int32_t j = min_of(begin + i, count - 1);
      if (value[j] == wanted) found = j;
    }
    if (found >= 0) return found;
  }
  return -1;
}

// What the labels of a sequence turned out to be, and how many there are without padding, also where they are invalid.
struct Unpadded {
  SequenceSummary summary;
  int32_t count;
};

// By one warp, and the same in all of its lanes. `row` has L entries, of which those below 0 are padding; the others go
// to `value`, and 1 + their places in the row to `column`.
CTC_DEVICE Unpadded unpadded(const int32_t* row, const Shape& s, int32_t blank, int32_t length, int32_t* value,
                             int32_t* column) {
  const int lane = lane_index();
  const bool length_is_valid = length >= 0 && length <= s.T;
  int32_t n = 0;
  bool valid = length_is_valid;
  for (int64_t begin = 0; begin < s.L; begin += kWarp) {
    const int64_t i = begin + lane;
    const int32_t label = i < s.L ? row[i] : -1;
    const bool here = !is_padding(label);
    valid &= __any_sync(kAllLanes, is_bad_label(label, s.V, blank)) == 0;
    const unsigned lanes = __ballot_sync(kAllLanes, here);
    const int32_t k = n + __popc(lanes & ((1u << lane) - 1));
    if (here) value[k] = label, column[k] = int32_t(1 + i);
    n += __popc(lanes);
  }
  __syncwarp();
  int repeats = 0;  // each needs a blank before it
  for (int32_t k = 1 + lane; k < n; k += kWarp) repeats += !may_skip(value, k);
  repeats = sum_of_lanes(repeats);
  const bool feasible = valid && int64_t(n) + repeats <= length;
  return {{valid ? n : 0, valid, feasible, length_is_valid ? length : 0}, n};
}

// All threads of the block call it. Which labels are equal is found out for `training` alone: the cost does not depend
// on it. `by_class`: emissions are.
template <class Value> CTC_DEVICE void prepare_labels(const int32_t* row, const Shape& s, int32_t blank, int32_t length,
                                                      const Workspace<Value>& ws, bool training, bool by_class) {
  int32_t* const count = reinterpret_cast<int32_t*>(shared_memory());
  if (warp_index() == 0) {
    const Unpadded labels = unpadded(row, s, blank, length, ws.value, ws.column);
    if (by_class)
      for (int32_t k = lane_index(); k < labels.count; k += kWarp) ws.column[k] = place_of_class(ws.value[k], blank);
    if (lane_index() == 0) {
      *ws.summary = labels.summary;
      ws.result->blocks = ws.result->started = 0;
      *count = labels.count;
    }
  }
  if (!training) return;
  __syncthreads();
  const int32_t n = *count;
  for (int32_t k = threadIdx.x; k < n; k += blockDim.x) ws.next[k] = next_equal(ws.value, k, n), ws.is_first[k] = true;
  __syncthreads();
  for (int32_t k = threadIdx.x; k < n; k += blockDim.x)
    if (ws.next[k] >= 0) ws.is_first[ws.next[k]] = false;
}

}  // namespace cuda
}  // namespace jax_ctc

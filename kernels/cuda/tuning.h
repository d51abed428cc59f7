// SPDX-License-Identifier: Apache-2.0
// How large kernels are launched, and the arithmetic behind it. Host code; results do not depend on any of it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace jax_ctc {
namespace cuda {

// The lattice: a warp sweeps 32 pairs (a blank and a label) in one direction. In cycles of a lone warp a frame costs
// about 50, nearly all of it waiting, in which other warps can work: a multiprocessor issues 4 instructions a cycle and
// a warp has some 35 a frame, so that up to 5 warps a scheduler, 20 in all, cost little more than one. A block has 512
// threads at the most, so that each may have 128 registers; with double twice that and half the threads.
template <class F> constexpr int kLatticeThreads = sizeof(F) == 4 ? 512 : 256;
template <class F> constexpr int kMostLatticeWarps =
    kLatticeThreads<F> / 64;  // of a direction; more pairs go in strips
constexpr int kVerdictBytes = 128;

struct LatticeShape {
  int warps;  // of each direction
  int threads;
  size_t shared;
};

// `warp_bytes` of shared memory a warp: 8.6 KB (float), so 8 and 8 of them need 138 KB; devices with less sweep in more
// strips.
template <class F> LatticeShape lattice_shape(int64_t L, size_t warp_bytes, bool training, size_t shared_limit) {
  const int64_t wanted = (L + 1 + 31) / 32, fitting = int64_t((shared_limit - kVerdictBytes) / (2 * warp_bytes));
  const int64_t warps = std::max<int64_t>(1, std::min<int64_t>({kMostLatticeWarps<F>, wanted, fitting}));
  // If a warp is left over, it sums the rows' log-normalisers during the sweep; otherwise the last sweeping warp does
  // so afterwards. Training ends with a pass that multiplies alpha and beta at every frame, and any number of warps can
  // share it: 8, so that two blocks fit a multiprocessor's registers, or 16 if the sweeps need more than 8.
  const int64_t at_the_end = training ? (2 * warps + 1 <= 8 ? 8 : 16) : 0;
  const int threads = int(std::min<int64_t>(kLatticeThreads<F>, 32 * std::max(2 * warps + 1, at_the_end)));
  return {int(warps), threads, kVerdictBytes + 2 * size_t(warps) * warp_bytes};
}

}  // namespace cuda
}  // namespace jax_ctc

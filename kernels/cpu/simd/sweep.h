// SPDX-License-Identifier: Apache-2.0
// Both sweeps over the lattice of one sequence.
//
// Beta sweeps from the last frame to the first and gives the total, the sum over all alignments. For a posterior beta
// stores its states. Then alpha sweeps from the first frame to the last and multiplies its states with beta's. If the
// states of all frames do not fit the cache, beta stores a checkpoint every `block` frames, and each block is computed
// again when alpha reaches it. The total alone takes beta's sweep alone, so it has the same bits.
//
// `Source` supplies the emissions. It must define:
//   Value                      the value type
//   read(begin, end, product)  computes one block and, in the first pass, multiplies the row sums into `product`
//   emissions(t)               of a frame in the block that was read last
//   frame_bytes()              the bytes of the emissions of one frame
#pragma once

#include "emissions.h"

namespace jax_ctc {
namespace {

// The frames whose states of beta are stored at once. A checkpoint and the states and emissions of a frame take so many
// bytes.
//
// The states of all frames are stored while they fit 3 MB, because it is cheaper to fetch them from the third-level
// cache than to compute them again. Beyond that, a block has 512 KB, a quarter or half of the second-level cache of
// many processors. If the checkpoints of such blocks are large, a block has about sqrt(T) frames, because then a block
// and all checkpoints together are small. The total alone needs only one block of emissions. The result is a multiple
// of kFrames, or T.
inline int64_t block_length(int64_t T, bool posterior, int64_t checkpoint, int64_t frame) {
#if defined(JAX_CTC_TEST)
  if (tested::block_length > 0) return tested::block_length;
#endif
  constexpr int64_t kLargeCheckpoints = 256 << 20;
  if (!posterior) return kFoldEvery;
  if (T <= (3 << 20) / frame) return max_of<int64_t>(T, 1);
  const int64_t in_cache = max_of<int64_t>(kFoldEvery, (1 << 19) / frame / kFrames * kFrames);
  if (T / in_cache < kLargeCheckpoints / checkpoint) return in_cache;
  // The block with the least memory, block * frame + T / block * checkpoint.
  const double least = __builtin_sqrt(double(T) * double(checkpoint) / double(frame));
  return max_of(in_cache, int64_t(least) / kFrames * kFrames);
}

template <class Source> class Lattice {
  using Value = typename Source::Value;
  using F = typename Parts<Value>::F;

 public:
  Lattice(const Sequence<F>& in, Source& source, bool with_posterior)
      : in(in), source(source), T(in.length), L(in.L), pairs(padded<F>(L + 1)), posterior(with_posterior) {
    const int64_t checkpoint = States<Value>::size(pairs) * sizeof(F);
    block = block_length(T, posterior, checkpoint, checkpoint + source.frame_bytes());
  }

  int64_t block;  // frames whose states are stored at once
  RunningProduct row_sums;
  Scaled<F> z = {};  // the total

  void lay_out(Arena& arena) {
    const int64_t states = States<Value>::size(pairs);
    arena.take(skip, pairs);
    arena.take(work[0], states), arena.take(work[1], states);
    if (posterior) {
      arena.take(stored, min_of(block, T) * states), arena.take(checkpoints, blocks() * states);
      arena.take(gamma, kFrames * kParts * pairs);
    }
  }

  void initialise() {
    for (int64_t i = 0; i < pairs; ++i) skip[i] = i < L && may_skip(in.labels, i) ? -1 : 0;
    states(work[0]).start(L);
  }

  // Returns false if a row has no softmax.
  bool sweep_beta() {
    States<Value> at = states(work[0]), next = states(work[1]);
    for (int64_t k = blocks() - 1; k >= 0; --k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (!source.read(begin, end, &row_sums)) return false;
      if (posterior) checkpoint(k).copy(at);
      for (int64_t t = end - 1; t >= begin; --t) {
        const States<Value> to = posterior && k == 0 ? stored_at(t, 0) : next;  // alpha starts with this block
        step_beta(t, at, to);
        next = at, at = to;
      }
    }
    z = total_of(L, at);
    return true;
  }

  bool has_path() const { return z.e >= kNoPath; }

  // Calls keep(t, sum over the blanks, sum over the labels) for every frame, in order. The sums are of alpha * beta.
  // Meanwhile products(t) has those of the labels, of frame t and of the frames before it in its group of kFrames.
  template <class Keep> void sweep_alpha(Keep keep) {
    States<Value> at = states(work[0]), next = states(work[1]);
    at.start(0), next.start(0);
    for (int64_t i = 0; i < kFrames * kParts * pairs; ++i) gamma[i] = 0;
    for (int64_t k = 0; k < blocks(); ++k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (k > 0) {
        source.read(begin, end, nullptr);
        States<Value> beta = checkpoint(k);
        for (int64_t t = end - 1; t >= begin; --t) {
          step_beta(t, beta, stored_at(t, begin));
          beta = stored_at(t, begin);
        }
      }
      for (int64_t t = begin; t < end; ++t) {
        Posterior<Value> at_frame = {stored_at(t, begin), z.e, products(t), kFrames * pairs, {}, {}};
        step_at<kAlpha, true>(t, window<F>(t, T, L, pairs), skip, source.emissions(t), at, next, &at_frame);
        keep(t, sum_of_lanes(at_frame.blank_sum), sum_of_lanes(at_frame.label_sum));
        const States<Value> spare = at;
        at = next, next = spare;
      }
    }
  }

  // alpha * beta of `pairs` labels at frame t. The second part, of Duals, is the derivative.
  F* products(int64_t t, int part = 0) const { return gamma + (part * kFrames + t % kFrames) * pairs; }

 private:
  static constexpr int kParts = sizeof(StateProduct<Value>) / sizeof(F);

  int64_t blocks() const { return (T + block - 1) / block; }

  States<Value> states(F* base) const { return States<Value>::at(base, pairs); }
  // Of frame t in the block that starts with frame `begin`.
  States<Value> stored_at(int64_t t, int64_t begin) const {
    return states(stored + (t - begin) * States<Value>::size(pairs));
  }
  States<Value> checkpoint(int64_t k) const { return states(checkpoints + k * States<Value>::size(pairs)); }

  void step_beta(int64_t t, States<Value> from, States<Value> to) {
    step_at<kBeta, false, Value>(t, window<F>(t, T, L, pairs), skip, source.emissions(t), from, to, nullptr);
  }

  const Sequence<F>& in;
  Source& source;
  const int64_t T, L, pairs;
  const bool posterior;

  Integer<F>* skip;     // the mask of each pair
  F* work[2];           // states of the frame before, and of this one
  F* stored = nullptr;  // beta's states of a block, and of the frame after each block
  F* checkpoints = nullptr;
  F* gamma = nullptr;
};

}  // namespace
}  // namespace jax_ctc

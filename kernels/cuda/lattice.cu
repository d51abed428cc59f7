// SPDX-License-Identifier: Apache-2.0
// emissions -> cost, and for training the states of both recursions, alpha and beta: each by a block of its own, or by
// several that sweep a strip of pairs each, or both by one.
//
// For the loss both stop where they meet, in the middle of the frames. For training each goes on through the other's
// half, and leaves its states at one frame of each chunk. Whichever ends last multiplies the states in the middle,
// which gives the cost. So loss and training share every operation that the cost is made of: the same bits.
#include "launch.cuh"
#include "launchers.h"
#include "numbers.cuh"
#include "sweep.cuh"
#include "tuning.h"

namespace jax_ctc {
namespace cuda {
namespace {

template <class F> struct LatticeArguments {
  Shape shape;
  int recursions, warps;  // of a block; that sweep one
  int strips;             // that sweep one together, in a block each
  bool softmax;           // of Batch
  F* cost;                // of a Hessian-vector product null
  char* scratch;
  int64_t stride;
};

template <class F> CTC_DEVICE Scaled<F> value_of(Scaled<F> v) { return v; }
template <class F> CTC_DEVICE Scaled<F> value_of(Dual<F> v) { return {v.m, v.e}; }

// Sum over states of alpha, before frame `middle` and one transition on, times beta: all alignments (eq. 6). By one
// warp, in a fixed order; the total is in lane 0.
template <class Value> CTC_DEVICE auto total_in_the_middle(const Workspace<Value>& ws, int32_t count) {
  using F = decltype(Value::m);
  const auto *const alpha = ws.ends_of(kAlpha), *const beta = ws.ends_of(kBeta);
  const auto at = [](const Cell<Value>& cell) { return value_of(load(&cell)); };
  Scaled<F> sum = Scaled<F>::none();
  // Some pairs are loaded before any is added, so that their loads do not wait for each other.
  constexpr int kAtOnce = 4;
  for (int32_t first = lane_index(); first <= count; first += kAtOnce * kWarp) {
    Pair<Scaled<F>> of_alpha[kAtOnce], of_beta[kAtOnce];
    Scaled<F> left[kAtOnce];
    int32_t labels[kAtOnce][2];  // the one before it, and its own
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int32_t k = first + i * kWarp;
      left[i] = of_alpha[i].label = of_beta[i].label = Scaled<F>::none(), labels[i][0] = labels[i][1] = 0;
      if (k > count) continue;
      of_alpha[i].blank = at(alpha[k].blank), of_beta[i].blank = at(beta[count - k].blank);
      if (k < count) of_alpha[i].label = at(alpha[k].label), of_beta[i].label = at(beta[count - 1 - k].label);
      if (k > 0) left[i] = at(alpha[k - 1].label);
      if (k > 0 && k < count) labels[i][0] = ws.value[k - 1], labels[i][1] = ws.value[k];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int32_t k = first + i * kWarp;
      if (k > count) continue;
      const Integer<F> skip = may_skip(labels[i], 1) ? -1 : 0;
      const Pair<Scaled<F>> before = advance_left_last(of_alpha[i], left[i], skip);
      sum = fold(add(sum, times(before.blank, of_beta[i].blank)));
      if (k < count) sum = fold(add(sum, times(before.label, of_beta[i].label)));
    }
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum = fold(add(sum, from_lane_above(sum, distance)));
  return sum;
}

// Sum over frames of log sum exp(x - top), in nats; of log-scores that of -top. By one warp, while the others sweep.
template <class Value> CTC_DEVICE double sum_of_rows(const Workspace<Value>& ws, int32_t frames, bool softmax) {
  double sum = 0;
#pragma unroll 4
  for (int32_t t = lane_index(); t < frames; t += kWarp) {
    const auto [ties, tail] = ws.sums[t];
    sum += softmax ? double(log_of(ties) + log_of_1_and(tail / ties)) : double(tail);
  }
  return sum_of_lanes(sum);
}

// The cost, and whether there is a gradient. By one warp.
template <class Value, class F> CTC_DEVICE void decide(const LatticeArguments<F>& a, const Workspace<Value>& ws,
                                                       const SequenceSummary& summary, int64_t sequence) {
  const Scaled<F> z = summary.feasible ? total_in_the_middle(ws, summary.count) : Scaled<F>::none();
  if (lane_index() != 0) return;
  SweepResult& result = *ws.result;
  const bool undefined = result.log_sums != result.log_sums, possible = z.e >= kNoPath;
  if (a.cost != nullptr) {
    const double nats = result.log_sums - (log(double(z.m)) + double(z.e) * 0.69314718055994530942);  // eq. 7
    a.cost[sequence] = !summary.valid || undefined ? not_a_number<F>()
                       : !possible                 ? infinity<F>()
                                                   : F(nats > 0 || !a.softmax ? nats : 0);
  }
  result.reference = int32_t(z.e);
  result.has_gradient = summary.valid && !undefined && possible;
}

// most_threads: of a block. kRegistersFor: the threads that __launch_bounds__ is told, which sets the registers of one.
// 512 threads get 128 registers each. A Dual needs some more, a double twice as many. With two pairs a lane 96 are
// enough, so 640 threads are told, and four blocks of five warps fit a multiprocessor. A pair a lane of floats is swept
// by one warp a recursion, or by a warp a scheduler, and another warp feeds each.
template <class Value, int kPairs, int kTile> constexpr int most_threads() {
  if (sizeof(Value::m) == 8) return 256;
  if (sizeof(Value) > 8) return 384;
  return kPairs == 2 ? 512 : kWarp + 2 * kWarp * (kTile == 16 ? 2 : kSchedulers);
}
template <class Value, int kPairs, int kTile> constexpr int kRegistersFor =
    kPairs == 2 ? 640 : most_threads<Value, kPairs, kTile>();

template <class Value, int kPairs, int kTile, bool kTogether, bool kTraining, class F = decltype(Value::m)>
__global__ void __launch_bounds__(kRegistersFor<Value, kPairs, kTile>, 1) lattice_kernel(LatticeArguments<F> a) {
  using Lattice = Strip<Value, kPairs, kTile, kTogether>;
  const bool both = a.recursions == 2;
  uint32_t block = blockIdx.x, strip = 0;
  if constexpr (kTogether) {  // numbered as they start: a block waits for one with a lower number, which goes on
    const Workspace<Value> first(a.scratch, a.shape.T, a.shape.L, kTraining);
    block = block_number(&first.result->started, reinterpret_cast<int32_t*>(shared_memory()));
    strip = block % a.strips, block /= a.strips;
  }
  const int64_t sequence = both ? block : block / 2;
  const int warp_of_block = uniform_warp_index();
  const int sweeping = a.recursions * a.warps;  // and, if fed, as many that feed them; the last one sums rows
  const bool sweeps = warp_of_block < sweeping, sums = warp_of_block == (Lattice::kFed ? 2 * sweeping : sweeping);
  const int index = sweeps ? warp_of_block : warp_of_block - sweeping;
  const Recursion recursion = (both ? index >= a.warps : block % 2 == 1) ? kBeta : kAlpha;
  const int warp = both && recursion == kBeta ? index - a.warps : index;
  const Workspace<Value> ws(a.scratch + sequence * a.stride, a.shape.T, a.shape.L, kTraining);
  const SequenceSummary summary = *ws.summary;
  const int32_t count = summary.count, frames = summary.frames;

  using Memory = typename Lattice::Memory;
  const int32_t half = recursion == kAlpha ? frames / 2 : frames - frames / 2;
  const Lattice strips = {
      recursion,
      ws,
      reinterpret_cast<Memory*>(shared_memory() + kCountBytes) + (both && recursion == kBeta ? a.warps : 0),
      a.warps,
      count,
      frames,
      half,
      kTraining ? frames : half};
  const auto for_each_strip = [&](auto run) {
    if (!summary.feasible) return;
    const int32_t of_one = a.warps * strips.kPairsOfWarp;
    if constexpr (kTogether) {
      if (int32_t(strip) * of_one <= count) run(int32_t(strip) * of_one);
    } else {
      for (int32_t base = 0; base <= count; base += of_one) run(base);
    }
  };
  if (sums) {
    if (both || (recursion == kAlpha && strip == 0)) {
      const double sum = sum_of_rows(ws, frames, a.softmax);
      if (lane_index() == 0) ws.result->log_sums = sum;
    }
  } else if (sweeps) {
    const Sweep<Value, kPairs, kTile, kTogether> sweep = {strips, warp};
    for_each_strip([&](int32_t base) { sweep.template strip<kTraining>(base); });
  } else if constexpr (Lattice::kFed) {
    Feed<Value, kPairs, kTile, kTogether> feed = {strips, warp};
    for_each_strip([&](int32_t base) { feed.strip(base); });
  }
  bool last = true;
  if (both)
    __syncthreads();
  else
    last = block_is_last(&ws.result->blocks, 2 * a.strips);
  if (!last || warp_of_block > 0) return;
  // The arrays' places are computed again: kept in registers during the sweep they would spill.
  const Workspace<Value> swept(computed_again(a.scratch) + sequence * a.stride, a.shape.T, a.shape.L, kTraining);
  decide(a, swept, *swept.summary, sequence);
}

template <class Value, int kPairs, int kTile, bool kTogether, bool kTraining>
const char* launch_lattice_of(const Problem& p, Operation operation, void* cost, void* scratch, int strips = 1) {
  using F = decltype(Value::m);
  const LatticeShape shape = lattice_shape(
      p.shape.L, kPairs, strips, Strip<Value, kPairs, kTile, kTogether>::kFed, most_threads<Value, kPairs, kTile>(),
      sizeof(typename Strip<Value, kPairs, kTile, kTogether>::Memory), shared_memory_limit());
  const LatticeArguments<F> a = {p.shape,
                                 shape.recursions,
                                 shape.warps,
                                 strips,
                                 p.softmax,
                                 static_cast<F*>(cost),
                                 static_cast<char*>(scratch),
                                 scratch_stride(operation, p)};
  return launch(lattice_kernel<Value, kPairs, kTile, kTogether, kTraining>,
                2 / shape.recursions * strips * p.shape.sequences(), shape.threads, shape.shared, p.stream, a);
}

template <class Value, bool kTraining>
const char* launch_lattice_of(const Problem& p, Operation operation, void* cost, void* scratch) {
  if constexpr (std::is_same_v<Value, Scaled<float>>) {
    const int strips = strips_with_schedulers(p.shape.sequences(), p.shape.L, multiprocessors());
    const size_t needed = kCountBytes + kSchedulers * sizeof(typename Strip<Value, 1, 8, true>::Memory);
    if (p.shape.L >= kWarp && strips > 1 && needed <= size_t(shared_memory_limit()))
      return launch_lattice_of<Value, 1, 8, true, kTraining>(p, operation, cost, scratch, strips);
    if (p.shape.L >= kWarp && strips == 1)
      return launch_lattice_of<Value, 1, 8, false, kTraining>(p, operation, cost, scratch);
    if (p.shape.L >= kWarp) return launch_lattice_of<Value, 2, 8, false, kTraining>(p, operation, cost, scratch);
  }
  return launch_lattice_of<Value, 1, 16, false, kTraining>(p, operation, cost, scratch);
}

}  // namespace

const char* launch_lattice(const Problem& p, bool training, void* cost, void* scratch) {
  const auto run = [&](auto type) {
    using Value = Scaled<decltype(type)>;
    return training ? launch_lattice_of<Value, true>(p, Operation::kForward, cost, scratch)
                    : launch_lattice_of<Value, false>(p, Operation::kLoss, cost, scratch);
  };
  return p.dtype == Dtype::kF64 ? run(double()) : run(float());
}

const char* launch_hvp_lattice(const Problem& p, void* scratch) {
  const auto run = [&](auto type) {
    return launch_lattice_of<Dual<decltype(type)>, true>(p, Operation::kHvp, nullptr, scratch);
  };
  return p.dtype == Dtype::kF64 ? run(double()) : run(float());
}

}  // namespace cuda
}  // namespace jax_ctc

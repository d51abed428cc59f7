// SPDX-License-Identifier: Apache-2.0
// emissions -> cost and occupancies; or, of Duals, how occupancies change. A block a sequence: half of its sweeping
// warps are alpha's, half beta's.
//
// Both directions run at once and meet in the middle, which gives the cost. For training each goes on through the
// other's half and leaves all its states; then every warp takes frames in turn and multiplies. So loss and training
// share every operation that the cost is made of: the same bits.
#include "launchers.h"
#include "sweep.cuh"
#include "tuning.h"

namespace jax_ctc {
namespace cuda {
namespace {

template <class F> struct LatticeArguments {
  Shape shape;
  int32_t blank;
  int warps;                 // of each direction
  F *cost, *rows, *columns;  // of a product null: what it makes stays in scratch
  char* scratch;
  int64_t stride;
};

struct Verdict {
  double log_sums;    // of all rows
  int32_t reference;  // exponent of the total
  int32_t has_gradient;
};

template <class F> CTC_DEVICE Scaled<F> value_of(Scaled<F> v) { return v; }
template <class F> CTC_DEVICE Scaled<F> value_of(Dual<F> v) { return {v.m, v.e}; }

// Sum over states of alpha, one transition on, times beta: all alignments (eq. 6). By one warp, in a fixed order; the
// total is in lane 0.
template <class Value> CTC_DEVICE auto total_in_the_middle(const Workspace<Value>& ws, int32_t count) {
  using F = decltype(Value::m);
  const auto *const alpha = ws.ends_of(kAlpha), *const beta = ws.ends_of(kBeta);
  const auto at = [](const Cell<Value>& cell) { return value_of(load(&cell)); };
  Scaled<F> sum = Scaled<F>::none();
#pragma unroll 4
  for (int32_t k = lane_index(); k <= count; k += kWarp) {
    const Scaled<F> left = k > 0 ? at(alpha[k - 1].label) : Scaled<F>::none();
    const Integer<F> skip = k < count && may_skip(ws.value, k) ? -1 : 0;
    const Pair<Scaled<F>> here = {at(alpha[k].blank), at(alpha[k].label)};
    const Pair<Scaled<F>> before = advance_left_last(here, left, skip);
    sum = fold(add(sum, times(before.blank, at(beta[count - k].blank))));
    if (k < count) sum = fold(add(sum, times(before.label, at(beta[count - 1 - k].label))));
  }
#pragma unroll 4
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum = fold(add(sum, from_lane_above(sum, distance)));
  return sum;
}

template <class Value> CTC_DEVICE double sum_of_rows(const Workspace<Value>& ws, int32_t frames) {
  double sum = 0;
  for (int32_t t = lane_index(); t < frames; t += kWarp) sum += ws.log_sums[t];
  return sum_of_lanes(sum);
}

// The cost, and whether there is a gradient. By one warp.
template <class Value, class F> CTC_DEVICE void decide(const LatticeArguments<F>& a, const Workspace<Value>& ws,
                                                       const Labels& labels, int64_t sequence, Verdict& verdict) {
  const Scaled<F> z = labels.feasible ? total_in_the_middle(ws, labels.count) : Scaled<F>::none();
  if (lane_index() != 0) return;
  const bool undefined = verdict.log_sums != verdict.log_sums, possible = z.e >= kNoPath;
  if (a.cost != nullptr) {
    const double nats = verdict.log_sums - (log(double(z.m)) + double(z.e) * 0.69314718055994530942);  // eq. 7
    a.cost[sequence] = !labels.good || undefined ? not_a_number<F>()
                       : !possible               ? infinity<F>()
                                                 : F(nats > 0 ? nats : 0);
  }
  verdict.reference = int32_t(z.e);
  verdict.has_gradient = labels.good && !undefined && possible;
}

CTC_DEVICE int64_t first_row_of(const Shape& s, int64_t sequence) {
  const int64_t outer = quotient(sequence, s.B);
  return outer * s.T * s.B + (sequence - outer * s.B);
}

// Row t of the sequence in an array of rows, `width` values each; first_row is its row 0.
template <class F> CTC_DEVICE F* row_of(F* base, const Shape& s, int64_t first_row, int32_t t, int64_t width) {
  return base + (first_row + t * s.B) * width;
}

// A sequence without a gradient: all rows that it keeps are `value`.
template <class Value, class F> CTC_DEVICE void keep_nothing(const LatticeArguments<F>& a, const Workspace<Value>& ws,
                                                             int64_t first_row, int32_t frames, F value) {
  if (Workspace<Value>::kProduct) {
    for (int32_t t = threadIdx.x; t < frames; t += blockDim.x) ws.along[t].scale = value;
    return;
  }
  const int64_t width = a.shape.columns();
  for (int32_t t = warp_index(); t < frames; t += blockDim.x / kWarp) {
    F* const columns = row_of(a.columns, a.shape, first_row, t, width);
    for (int64_t c = lane_index(); c < width; c += kWarp) columns[c] = value;
    if (!a.shape.dense() && lane_index() < 2) row_of(a.rows, a.shape, first_row, t, 2)[lane_index()] = value;
  }
}

// A state's part of a frame: its product as a share of the sum of all; of Duals how that share changes, so that the
// changes of a frame add up to 0 (eq. 8 and 13).
template <class F> struct Share {
  F scale;
  explicit CTC_DEVICE Share(F sum) : scale(1 / sum) {}
  CTC_DEVICE F operator()(F product) const { return product * scale; }
};
template <class F> struct Share<Number<F>> {
  F scale, mean;
  explicit CTC_DEVICE Share(Number<F> sum) : scale(1 / sum.value), mean(sum.change * scale) {}
  CTC_DEVICE F operator()(Number<F> product) const { return (product.change - product.value * mean) * scale; }
};

// The occupancies of one frame, by one warp: products of both directions' states, normalised by their own sum; those of
// equal labels added in label order. Dense: taken off the softmax that is there. A product's changes go to scratch.
template <class Value, class F> CTC_DEVICE void occupancies(const LatticeArguments<F>& a, const Workspace<Value>& ws,
                                                            int64_t first_row, int32_t t, int32_t count,
                                                            Integer<F> reference) {
  constexpr bool kProduct = Workspace<Value>::kProduct;
  using Product = decltype(product(Value(), Value(), reference));
  const auto *const alpha = ws.states_of(kAlpha) + t * ws.columns, *const beta = ws.states_of(kBeta) + t * ws.columns;
  const auto of_label = [&](int32_t k) {
    return product(load(&alpha[k].label), load(&beta[count - 1 - k].label), reference);
  };
  Product blanks{}, labels{};
#pragma unroll 4
  for (int32_t k = lane_index(); k <= count; k += kWarp) {
    blanks += product(load(&alpha[k].blank), load(&beta[count - k].blank), reference);
    if (k < count) labels += of_label(k);
  }
  blanks = sum_of_lanes(blanks);
  labels = sum_of_lanes(labels);
  const Share<Product> share(blanks + labels);

  const bool dense = !kProduct && a.shape.dense();
  F* const out = kProduct ? ws.changes + t * ws.columns : row_of(a.columns, a.shape, first_row, t, a.shape.columns());
  const auto put = [&](int32_t column, int32_t of_class, F occupancy) {
    if (dense)
      out[of_class] -= occupancy;
    else
      out[column] = occupancy;
  };
  if (lane_index() == 0) put(0, a.blank, share(blanks));
#pragma unroll 4
  for (int32_t k = lane_index(); k < count; k += kWarp) {
    if (!ws.is_first[k]) continue;
    Product sum{};
    for (int32_t i = k; i >= 0; i = ws.next[i]) sum += of_label(i);
    put(ws.column[k], ws.value[k], share(sum));
  }
}

template <class Value, bool kTraining, class F = decltype(Value::m)>
__global__ void __launch_bounds__(kLatticeThreads<F>, 1) lattice_kernel(LatticeArguments<F> a) {
  const int64_t sequence = blockIdx.x;
  const Workspace<Value> ws(a.scratch + sequence * a.stride, a.shape.T, a.shape.L, kTraining);
  const Labels labels = *ws.labels;
  const int warp = uniform_warp_index(), warps = blockDim.x / kWarp, sweeping = 2 * a.warps;
  const int32_t count = labels.count, frames = labels.frames, middle = frames / 2;
  char* const memory = shared_memory();
  Verdict& verdict = *reinterpret_cast<Verdict*>(memory);
  const Direction direction = warp < a.warps ? kAlpha : kBeta;
  const Sweep<Value> sweep = {
      direction,
      ws,
      reinterpret_cast<typename Sweep<Value>::Memory*>(memory + kVerdictBytes) + direction * a.warps,
      a.warps,
      warp - direction * a.warps,
      count,
      frames};
  const int32_t half = direction == kAlpha ? middle : frames - middle, strip = a.warps * kWarp;

  // First to the middle; then, for training, on to the end.
#pragma unroll 4
  for (int part = 0; part < (kTraining ? 2 : 1); ++part) {
    if (warp < sweeping && labels.feasible)
      for (int32_t base = 0; base <= count; base += strip)
        sweep.template strip<kTraining>(base, part == 0 ? 0 : half, part == 0 ? half : frames);
    if (part == 0 && warp == min_of(sweeping, warps - 1)) {
      const double sum = sum_of_rows(ws, frames);
      if (lane_index() == 0) verdict.log_sums = sum;
    }
    __syncthreads();
    if (part == 0) {
      if (warp == 0) decide(a, ws, labels, sequence, verdict);
      if (!kTraining) return;
      __syncthreads();
      if (!verdict.has_gradient) {
        const bool undefined = labels.good && verdict.log_sums != verdict.log_sums;
        keep_nothing(a, ws, first_row_of(a.shape, sequence), labels.good ? frames : int32_t(a.shape.T),
                     undefined ? not_a_number<F>() : F(0));
        return;
      }
    }
  }
  const int64_t first_row = first_row_of(a.shape, sequence);
  for (int32_t t = warp; t < frames; t += warps) occupancies(a, ws, first_row, t, count, verdict.reference);
}

template <class Value, bool kTraining>
const char* launch_lattice_of(const Problem& p, Operation operation, void* cost, Kept kept, void* scratch) {
  using F = decltype(Value::m);
  const LatticeShape shape =
      lattice_shape<F>(p.shape.L, sizeof(typename Sweep<Value>::Memory), kTraining, shared_memory_limit());
  const LatticeArguments<F> a = {p.shape,
                                 p.blank,
                                 shape.warps,
                                 static_cast<F*>(cost),
                                 static_cast<F*>(kept.rows),
                                 static_cast<F*>(kept.columns),
                                 static_cast<char*>(scratch),
                                 scratch_stride(operation, p.dtype, p.shape.T, p.shape.L)};
  return launch(lattice_kernel<Value, kTraining>, p.shape.sequences(), shape.threads, shape.shared,
                static_cast<cudaStream_t>(p.stream), a);
}

}  // namespace

const char* launch_lattice(const Problem& p, void* cost, Kept kept, void* scratch) {
  const auto run = [&](auto type) {
    using Value = Scaled<decltype(type)>;
    return kept.columns != nullptr ? launch_lattice_of<Value, true>(p, Operation::kForward, cost, kept, scratch)
                                   : launch_lattice_of<Value, false>(p, Operation::kLoss, cost, kept, scratch);
  };
  return p.dtype == Dtype::kF64 ? run(double()) : run(float());
}

const char* launch_product_lattice(const Problem& p, void* scratch) {
  const auto run = [&](auto type) {
    return launch_lattice_of<Dual<decltype(type)>, true>(p, Operation::kProduct, nullptr, {}, scratch);
  };
  return p.dtype == Dtype::kF64 ? run(double()) : run(float());
}

}  // namespace cuda
}  // namespace jax_ctc

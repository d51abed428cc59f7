// SPDX-License-Identifier: Apache-2.0
// The states of alpha and beta -> occupancies; or, of Duals, how occupancies change. A warp a frame.
#include "../common/occupancy.h"
#include "launch.cuh"
#include "launchers.h"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

constexpr int kWarpsOfBlock = 8;

template <class F> struct OccupancyArguments {
  Shape shape;
  int32_t blank;
  bool softmax, keeps_rows;  // of Batch; whether `rows` has elements
  F *rows, *columns;         // of a Hessian-vector product null: what it makes stays in scratch
  int64_t frames, tiles;     // frames of a block, blocks of a sequence
  bool in_shared;            // whether FrameMemory is used
  char* scratch;
  int64_t stride;
};

// Shared memory of a block. For very many labels there is too little: what is here is then read again from global
// memory, and results go there at once.
template <class Product, class F> struct FrameMemory {
  Product* products;  // of a warp: of each label
  F* results;         // of a warp: a row of columns
  int32_t* next;      // of each label: the next one equal to it, or -1
  int32_t* head;      // of each label: where its class has its result, or -1 if an equal label is before it

  static constexpr int64_t bytes(int64_t L) {
    return kWarpsOfBlock * (L * int64_t(sizeof(Product)) + (L + 1) * int64_t(sizeof(F))) +
           2 * L * int64_t(sizeof(int32_t));
  }
  CTC_DEVICE explicit FrameMemory(int64_t L) {
    Product* const all = reinterpret_cast<Product*>(shared_memory());
    F* const rows = reinterpret_cast<F*>(all + kWarpsOfBlock * L);
    products = all + warp_index() * L, results = rows + warp_index() * (L + 1);
    next = reinterpret_cast<int32_t*>(rows + kWarpsOfBlock * (L + 1)), head = next + L;
  }
};

// A sequence whose sweeps are done, and what a warp makes of its frames.
template <class Value, class F = decltype(Value::m)> struct Occupancies {
  static constexpr bool kHvp = Workspace<Value>::kHvp;
  using Product = StateProduct<Value>;
  using Memory = FrameMemory<Product, F>;

  const OccupancyArguments<F>& a;
  const Workspace<Value>& ws;
  const Memory& memory;
  int64_t first_row;  // of the sequence
  int32_t count;
  Integer<F> reference;

  CTC_DEVICE bool dense() const { return !kHvp && a.shape.dense(); }
  CTC_DEVICE int64_t width() const { return kHvp ? ws.columns : a.shape.columns(); }
  CTC_DEVICE int64_t row(int64_t t) const { return first_row + t * a.shape.B; }
  CTC_DEVICE F* columns(int64_t t) const {
    return kHvp ? ws.changes + t * ws.columns : a.columns + row(t) * a.shape.columns();
  }
  CTC_DEVICE int32_t next_of(int32_t k) const { return a.in_shared ? memory.next[k] : ws.next[k]; }
  CTC_DEVICE int32_t head_of(int32_t k) const { return a.in_shared ? memory.head[k] : global_head_of(k); }
  CTC_DEVICE int32_t global_head_of(int32_t k) const {
    return !ws.is_first[k] ? -1 : dense() ? ws.value[k] : ws.column[k];
  }

  // All threads of the block call it.
  CTC_DEVICE void read_labels() const {
    if (!a.in_shared) return;
    for (int32_t k = threadIdx.x; k < count; k += blockDim.x)
      memory.next[k] = ws.next[k], memory.head[k] = global_head_of(k);
    __syncthreads();
  }

  // A row of a sequence without a gradient: all its residuals are `value`. Of log-scores, dense, only those of the
  // blank and of the labels; the others are 0 already.
  CTC_DEVICE void keep_nothing(int64_t t, F value) const {
    if (kHvp) {
      if (lane_index() == 0) ws.directed_rows[t].scale = value;
      return;
    }
    F* const out = columns(t);
    if (dense() && !a.softmax) {
      if (lane_index() == 0) out[a.blank] = value;
      for (int32_t k = lane_index(); k < count; k += kWarp) out[ws.value[k]] = value;
      return;
    }
    for (int64_t c = lane_index(); c < width(); c += kWarp) out[c] = value;
    if (a.keeps_rows && lane_index() < 2) a.rows[2 * row(t) + lane_index()] = value;
  }

  // The occupancies of frame t: products of the states of alpha and beta, normalised by their own sum; those of equal
  // labels added in label order. Dense: taken off the softmax that is there. Changes, of a Hessian-vector product, go
  // to scratch.
  CTC_DEVICE void frame(int64_t t) const {
    const auto *const alpha = ws.states_of(kAlpha) + t * ws.columns, *const beta = ws.states_of(kBeta) + t * ws.columns;
    const auto of_label = [&](int32_t k) {
      return product(load(&alpha[k].label), load(&beta[max_of(count - 1 - k, 0)].label), reference);
    };
    Product blanks{}, labels{};
    constexpr int kAtOnce = sizeof(Value) == 8 ? 4 : 2;  // so many loads do not wait for each other
    for (int32_t first = lane_index(); first <= count; first += kAtOnce * kWarp) {
      Product blank[kAtOnce], label[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {  // past the end the last one is read again
        const int32_t k = min_of(first + i * kWarp, count);
        blank[i] = product(load(&alpha[k].blank), load(&beta[count - k].blank), reference);
        label[i] = of_label(k);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int32_t k = first + i * kWarp;
        if (k <= count) blanks += blank[i];
        if (k < count) labels += label[i];
        if (k < count && a.in_shared) memory.products[k] = label[i];
      }
    }
    blanks = sum_of_lanes(blanks);
    labels = sum_of_lanes(labels);
    const Share<Product> share(blanks + labels);

    F* const out = columns(t);
    F* const results = a.in_shared ? memory.results : out;
    if (a.in_shared || !dense())
      for (int64_t c = lane_index(); c < width(); c += kWarp) results[c] = 0;
    __syncwarp();
    const auto put = [&](int32_t column, F occupancy) {
      if (a.in_shared || !dense())
        results[column] = occupancy;
      else
        results[column] -= occupancy;
    };
    if (lane_index() == 0) put(dense() ? a.blank : 0, share(blanks));
    for (int32_t k = lane_index(); k < count; k += kWarp) {
      const int32_t head = head_of(k);
      if (head < 0) continue;
      Product sum{};
      for (int32_t i = k; i >= 0; i = next_of(i)) sum += a.in_shared ? memory.products[i] : of_label(i);
      put(head, share(sum));
    }
    if (!a.in_shared) return;
    __syncwarp();
    if (dense()) {
      for (int64_t first = lane_index(); first < width(); first += kAtOnce * kWarp) {
        F softmax[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) softmax[i] = out[min_of(first + i * kWarp, width() - 1)];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
          if (first + i * kWarp < width()) out[first + i * kWarp] = softmax[i] - results[first + i * kWarp];
      }
    } else {
#pragma unroll 4
      for (int64_t c = lane_index(); c < width(); c += kWarp) out[c] = results[c];
    }
    __syncwarp();  // before the next frame
  }
};

template <class Value, class F = decltype(Value::m)>
__global__ void __launch_bounds__(kWarpsOfBlock* kWarp, sizeof(Value) == 8 ? 3 : 2)
    occupancy_kernel(OccupancyArguments<F> a) {
  const unsigned sequence = blockIdx.x / unsigned(a.tiles);
  const int64_t begin = (blockIdx.x - sequence * unsigned(a.tiles)) * a.frames;
  const Workspace<Value> ws(a.scratch + int64_t(sequence) * a.stride, a.shape.T, a.shape.L, true);
  const SequenceSummary summary = *ws.summary;
  const SweepResult result = *ws.result;
  const int64_t end = min_of<int64_t>(begin + a.frames, summary.valid ? summary.frames : a.shape.T);
  const typename Occupancies<Value>::Memory memory(a.shape.L);
  const Occupancies<Value> occupancies = {
      a, ws, memory, a.shape.first_row(sequence), summary.count, Integer<F>(result.reference)};
  if (result.has_gradient) {
    occupancies.read_labels();
    for (int64_t t = begin + warp_index(); t < end; t += kWarpsOfBlock) occupancies.frame(t);
  } else {
    const F value = summary.valid && result.log_sums != result.log_sums ? not_a_number<F>() : F(0);
    for (int64_t t = begin + warp_index(); t < end; t += kWarpsOfBlock) occupancies.keep_nothing(t, value);
  }
}

template <class Value>
const char* launch_occupancies_of(const Problem& p, Operation operation, Residuals residuals, void* scratch) {
  using F = decltype(Value::m);
  const int64_t shared = Occupancies<Value>::Memory::bytes(p.shape.L);
  const bool in_shared = shared <= shared_memory_limit();
  // Labels are read once a block; but a batch with few rows needs all its blocks at the same time.
  const int64_t frames = kWarpsOfBlock * (p.shape.rows() < 32768 ? 1 : 4);
  const int64_t tiles = (p.shape.T + frames - 1) / frames;
  const OccupancyArguments<F> a = {p.shape,
                                   p.blank,
                                   p.softmax,
                                   p.factors() > 0,
                                   static_cast<F*>(residuals.rows),
                                   static_cast<F*>(residuals.columns),
                                   frames,
                                   tiles,
                                   in_shared,
                                   static_cast<char*>(scratch),
                                   scratch_stride(operation, p.dtype, p.shape.T, p.shape.L)};
  return launch(occupancy_kernel<Value>, p.shape.sequences() * tiles, kWarpsOfBlock * kWarp, in_shared ? shared : 0,
                static_cast<cudaStream_t>(p.stream), a);
}

}  // namespace

const char* launch_occupancies(const Problem& p, Residuals residuals, void* scratch) {
  return p.dtype == Dtype::kF64 ? launch_occupancies_of<Scaled<double>>(p, Operation::kForward, residuals, scratch)
                                : launch_occupancies_of<Scaled<float>>(p, Operation::kForward, residuals, scratch);
}

const char* launch_hvp_occupancies(const Problem& p, void* scratch) {
  return p.dtype == Dtype::kF64 ? launch_occupancies_of<Dual<double>>(p, Operation::kHvp, {}, scratch)
                                : launch_occupancies_of<Dual<float>>(p, Operation::kHvp, {}, scratch);
}

}  // namespace cuda
}  // namespace jax_ctc

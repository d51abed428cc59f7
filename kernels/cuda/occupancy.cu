// SPDX-License-Identifier: Apache-2.0
// The states of alpha and beta that training has kept -> occupancies; or, of Duals, how occupancies change. First a
// warp computes the products of both for a window of pairs at a chunk's frames; then a warp makes a frame's
// occupancies.
#include "launch.cuh"
#include "launchers.h"
#include "products.cuh"
#include "rows.cuh"

namespace jax_ctc {
namespace cuda {
namespace {

// Threads that a block leaves registers for: 96, 168 or 255 each, as a window needs.
template <class Value> constexpr int kThreadsAtOnce = sizeof(Value) == 8 ? 640 : sizeof(Value) == 12 ? 384 : 256;

template <class F> struct OccupancyArguments {
  Shape shape;
  int32_t blank;
  bool softmax, keeps_rows;  // of Batch; whether `rows` has elements
  bool by_class;             // emissions are
  F *rows, *columns;         // of a Hessian-vector product null: what it makes stays in scratch
  OccupancyPlan plan;
  char* scratch;
  int64_t stride;
};

// A sequence whose sweeps are done, and what a block makes of its frames.
template <class Value, class F = decltype(Value::m)> struct Occupancies {
  static constexpr bool kHvp = Workspace<Value>::kHvp;
  using Product = StateProduct<Value>;

  const OccupancyArguments<F>& a;
  const Workspace<Value>& ws;
  const Products<Value>& products;
  const BlockMemory<Value>& memory;
  int64_t first_row;  // of the sequence
  int32_t count;
  Integer<F> reference;
  Chunks chunks;

  CTC_DEVICE bool whole() const { return a.plan.whole; }
  CTC_DEVICE bool dense() const { return !kHvp && a.shape.dense(); }
  CTC_DEVICE int64_t width() const { return kHvp ? ws.columns : a.shape.columns(); }
  CTC_DEVICE int64_t row(int64_t t) const { return first_row + t * a.shape.B; }
  CTC_DEVICE F* columns(int64_t t) const {
    return kHvp ? ws.changes + t * ws.columns : a.columns + row(t) * a.shape.columns();
  }
  CTC_DEVICE int32_t next_of(int32_t k) const { return whole() ? memory.next[k] : ws.next[k]; }
  CTC_DEVICE int32_t head_of(int32_t k) const { return whole() ? memory.head[k] : global_head_of(k); }
  CTC_DEVICE int32_t global_head_of(int32_t k) const {
    return !ws.is_first[k] ? -1 : dense() ? ws.value[k] : ws.column[k];
  }

  // All threads of the block call it.
  CTC_DEVICE void read_labels() const {
    if (!whole()) return;
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

  // The occupancies of `n` chunks from `first` on. All threads of the block call it. The warps share out four kinds of
  // work, with a barrier after each: windows of pairs; frames, for their sums; 32 labels at all frames of a chunk,
  // because what is read of a label is the same at each; and frames, for their results.
  CTC_DEVICE void of_chunks(int32_t first, int32_t n) const {
    const OccupancyPlan& plan = a.plan;
    const int warp = uniform_warp_index();
    const auto share_out = [&](int32_t of_chunk, auto f) {
      for (int32_t i = warp; i < n * of_chunk; i += plan.warps) {
        const int32_t c = i / of_chunk;
        f(chunk(first + c), products.slots_of(c), i - c * of_chunk);
      }
      __syncthreads();
    };
    for (int32_t base = 0; base <= count; base += plan.pitch) {
      const int32_t windows = (min_of(plan.pitch, count + 1 - base) + kOfWindow - 1) / kOfWindow;
      share_out(windows, [&](const auto& chunk, const auto& slots, int32_t i) {
        chunk.products(slots, base, base + i * kOfWindow);
      });
      if (whole()) break;
      products.keep(chunk(first), base, plan.warps);
      __syncthreads();
    }
    share_out(kChunk, [&](const auto& chunk, const auto& slots, int32_t d) {
      if (d < chunk.frames) begin_row(chunk, slots, d, memory.shares[(chunk.index - first) * kChunk + d]);
    });
    share_out((count + kWarp - 1) / kWarp, [&](const auto& chunk, const auto& slots, int32_t i) {
      of_labels(chunk, slots, i * kWarp + lane_index(), memory.shares + (chunk.index - first) * kChunk);
    });
    if (!whole()) return;
    share_out(kChunk, [&](const auto& chunk, const auto& slots, int32_t d) {
      if (d < chunk.frames) end_row(chunk, slots, d);
    });
  }

  CTC_DEVICE Chunk<Value> chunk(int32_t c) const {
    const int32_t begin = chunks.begin(c);
    return {ws, count, reference, c, begin, chunks.end(c) - begin};
  }

  // An element of columns. Whole: a row of them waits where the products of blanks were.
  CTC_DEVICE F& result(const Chunk<Value>& chunk, const Slots<Value>& slots, int d, int64_t c) const {
    return whole() ? slots.blank(d)[c].m : columns(chunk.begin + d)[c];
  }
  // Dense: occupancies are taken off the softmax that is there.
  CTC_DEVICE void put(F& result, F occupancy) const {
    if (whole() || !dense())
      result = occupancy;
    else
      result -= occupancy;
  }

  // What occupancies are shares of at the chunk's frame d, and a row with that of the blank. Changes, of a
  // Hessian-vector product, go to scratch.
  CTC_DEVICE void begin_row(const Chunk<Value>& chunk, const Slots<Value>& slots, int d, Share<Product>& share) const {
    Product blanks{}, labels{};
#pragma unroll 4
    for (int32_t k = lane_index(); k <= count; k += kWarp) {
      blanks += products.of_blank(chunk, slots, d, k);
      if (k < count) labels += products.of_label(chunk, slots, d, k);
    }
    blanks = sum_of_lanes(blanks);
    labels = sum_of_lanes(labels);
    const Share<Product> shares(blanks + labels);
    const int64_t of_blank = dense() ? a.blank : 0;
    const F occupancy = shares(blanks);
    __syncwarp();
    if (whole() || !dense())
      for (int64_t c = lane_index(); c < width(); c += kWarp)
        result(chunk, slots, d, c) = c == of_blank ? occupancy : 0;
    else if (lane_index() == 0)
      put(result(chunk, slots, d, of_blank), occupancy);
    if (lane_index() == 0) share = shares;
  }

  // The occupancies of label k's class at all frames of the chunk, if it is the first of it: products of equal labels
  // are added in label order.
  CTC_DEVICE void of_labels(const Chunk<Value>& chunk, const Slots<Value>& slots, int32_t k,
                            const Share<Product>* shares) const {
    const int32_t head = k < count ? head_of(k) : -1;
    if (head < 0) return;
    Product sum[kChunk] = {};
    for (int32_t i = k; i >= 0; i = next_of(i)) {
#pragma unroll
      for (int d = 0; d < kChunk; ++d) sum[d] += products.of_label(chunk, slots, min_of(d, chunk.frames - 1), i);
    }
#pragma unroll
    for (int d = 0; d < kChunk; ++d)
      if (d < chunk.frames) put(result(chunk, slots, d, head), shares[d](sum[d]));
  }

  CTC_DEVICE void end_row(const Chunk<Value>& chunk, const Slots<Value>& slots, int d) const {
    const int32_t t = chunk.begin + d;
    F* const out = columns(t);
    if constexpr (!kHvp) {
      if (a.by_class) {
        const F scale = scale_of(ws.sums[t]);
        const Cell<Value>* const emissions = ws.emissions + t * ws.columns;
#pragma unroll 4
        for (int32_t v = lane_index(); v < int32_t(a.shape.V); v += kWarp) {
          const Value emission = load_unchanged(emissions + place_of_class(v, a.blank));
          out[v] = probability(emission, scale) - result(chunk, slots, d, v);
        }
        return;
      }
    }
#pragma unroll 4
    for (int64_t c = lane_index(); c < width(); c += kWarp) {
      const F found = result(chunk, slots, d, c);
      out[c] = dense() ? out[c] - found : found;
    }
  }
};

template <class Value, class F = decltype(Value::m)> __global__ void __launch_bounds__(kThreadsAtOnce<Value>, 1)
    occupancy_kernel(OccupancyArguments<F> a) {
  const OccupancyPlan& plan = a.plan;
  const int64_t sequence = quotient(blockIdx.x, plan.parts), part = blockIdx.x - sequence * plan.parts;
  const Workspace<Value> ws(a.scratch + sequence * a.stride, a.shape.T, a.shape.L, true);
  const SequenceSummary summary = *ws.summary;
  const SweepResult result = *ws.result;
  const Chunks chunks(summary.valid ? summary.frames : int32_t(a.shape.T));
  const int32_t first = int32_t(part) * plan.chunks, last = min_of(first + plan.chunks, chunks.count());
  if (first >= last) return;
  const Products<Value> products(ws, plan);
  const BlockMemory<Value> memory(a.shape.L, plan);
  const Occupancies<Value> occupancies = {
      a, ws, products, memory, a.shape.first_row(sequence), summary.count, Integer<F>(result.reference), chunks};
  if (result.has_gradient) {
    occupancies.read_labels();
    for (int32_t c = first; c < last; c += plan.together) occupancies.of_chunks(c, min_of(plan.together, last - c));
  } else {
    const F value = summary.valid && result.log_sums != result.log_sums ? not_a_number<F>() : F(0);
    const int32_t end = chunks.end(last - 1);
    for (int32_t t = chunks.begin(first) + warp_index(); t < end; t += a.plan.warps) occupancies.keep_nothing(t, value);
  }
}

template <class Value>
const char* launch_occupancies_of(const Problem& p, Operation operation, Residuals residuals, void* scratch) {
  using F = decltype(Value::m);
  const OccupancyPlan plan = occupancy_plan_of<Value>(p.shape);
  const OccupancyArguments<F> a = {p.shape,
                                   p.blank,
                                   p.softmax,
                                   p.factors() > 0,
                                   emits_classes<Value>(p),
                                   static_cast<F*>(residuals.rows),
                                   static_cast<F*>(residuals.columns),
                                   plan,
                                   static_cast<char*>(scratch),
                                   scratch_stride(operation, p)};
  return launch(occupancy_kernel<Value>, p.shape.sequences() * plan.parts, plan.warps * kWarp,
                BlockMemory<Value>::bytes(p.shape.L, plan.together, plan.pitch, plan.whole), p.stream, a);
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

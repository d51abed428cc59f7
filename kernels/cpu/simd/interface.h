// SPDX-License-Identifier: Apache-2.0
// What the batch (ctc.cpp) hands to the code of one instruction set, and the table of functions it gets back.
// No vector type and no XLA type here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../common/problem.h"
#include "../tested.h"

namespace jax_ctc {

// Memory that a thread keeps from one sequence to the next.
class Scratch {
 public:
  // At least `bytes`, aligned to 64, contents undefined; invalidates what was given before. Throws std::bad_alloc.
  virtual char* reserve(size_t bytes) = 0;

 protected:
  ~Scratch() = default;
};

// One sequence, its arguments checked: 0 <= length <= T, labels without padding and inside [0, V) without the blank.
template <class F> struct Sequence {
  Dtype dtype;
  const void* acts;     // its first row
  int64_t acts_stride;  // elements from a frame to the next
  int64_t length;       // frames in use
  int64_t V;
  const int32_t* labels;
  int64_t L;
  int32_t blank;
  bool feasible;  // length is enough for the labels and the blanks between equal ones
  Scratch* scratch;
};

// What training keeps of one sequence, a row per frame. All null for the loss alone.
template <class F> struct SequenceResiduals {
  F* rows = nullptr;  // (shift, scale) of the softmax: p = scale * exp(x - shift); absent (null) where dense
  int64_t rows_stride = 0;
  F* columns = nullptr;  // dense: the gradient; else occupancies, of the blank and by label position
  int64_t columns_stride = 0;
  int64_t width = 0;                         // columns of a row
  const int32_t* column_of_label = nullptr;  // compact: the column of each label; equal labels share the first one's
  bool has_gaps = false;              // padding stands between the labels, so label i is not always in column 1 + i
  const int32_t* repeated = nullptr;  // used if not padded: indices of labels that share an earlier label's column
  int64_t repeats = 0;
  bool dense = false;
};

// Rows that the gradient is made of, where not dense. The labels are padding or classes of acts; shift, scale and
// occupancies may be any numbers.
template <class F> struct Row {
  Dtype dtype;
  const void* acts;
  int64_t V;
  F shift, scale;
  const F* occupancy;     // of the blank and of each label position
  const int32_t* labels;  // L positions, padding included
  int64_t L;
  int32_t blank;
  Scratch* scratch;
};

// A Hessian-vector product of one sequence: a row per frame of everything.
template <class F> struct HvpArguments {
  const void* direction;  // like acts, with their stride
  const F* rows;          // as in SequenceResiduals; null where dense
  int64_t rows_stride;
  const F* columns;
  int64_t columns_stride;
  const int32_t* position;  // the column that each label would have if it were not shared
  F cotangent;
  void* out;  // like acts
};

// A row of V classes, all of them or a slice, and the symbols to pick from it; a symbol below 0 is not in this row.
template <class F> struct Slice {
  Dtype dtype;
  const void* acts;
  int64_t V;
  const int32_t* symbols;
  int64_t D;
  Scratch* scratch;
};

// What a sequence turned out to be.
enum class Outcome { kFinite, kNoAlignment, kNoSoftmax };  // a cost; +inf: no alignment; NaN: a row without a softmax

template <class F> struct Kernels {
  // Cost in nats, and the residuals of the frames in use, if wanted and if the verdict is kFinite.
  Outcome (*cost)(const Sequence<F>&, const SequenceResiduals<F>&, F* cost);
  // out = cotangent * Hessian * direction, the frames in use; where the verdict is kFinite.
  Outcome (*hvp)(const Sequence<F>&, const HvpArguments<F>&);
  // out = cotangent * (softmax - occupancy), V elements of the dtype of acts; out may be acts. Here and below, what is
  // exactly 0 stays 0 where the other factor is inf or NaN.
  void (*gradient)(const Row<F>&, F cotangent, void* out);
  // Sum over v of (softmax - occupancy)[v] * direction[v].
  double (*tangent)(const Row<F>&, const void* direction);
  // The largest entry, how many are equal to it, the sum of exp(acts - top) of the others (-inf, NaN and 0 where one is
  // NaN or +inf); and acts at the symbols, 0 for those that are not here. `next`: acts of the row that comes next.
  void (*sums)(const Slice<F>&, const void* next, F* top, F* ties, F* tail, F* scores);
  // out = ct_tail * exp(acts - top), plus ct_scores at the symbols.
  void (*sums_cotangent)(const Slice<F>&, F top, F ct_tail, const F* ct_scores, void* out);
  // gradient and tangent from the unit gradient kept by the forward pass: V elements each; out may be unit.
  void (*scale)(const F* unit, int64_t V, F cotangent, Dtype dtype, void* out);
  double (*dot)(const F* unit, int64_t V, Dtype dtype, const void* direction, Scratch* scratch);
};

struct InstructionSet {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

extern const InstructionSet kBaseline;
#if defined(__x86_64__)
extern const InstructionSet kAvx2, kAvx512;
#endif

}  // namespace jax_ctc

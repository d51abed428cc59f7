// SPDX-License-Identifier: Apache-2.0
// What the files of cpu/ pass to the code of one instruction set, and the table of functions that this code defines.
// There is no vector type and no XLA type here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../common/problem.h"
#include "../tested.h"

namespace jax_ctc {

// Memory with undefined contents, aligned to 64.
struct Room {
  char* memory;
  size_t bytes;
};

// Memory of a thread. It stays allocated from one sequence to the next.
class Scratch {
 public:
  // Returns all there is, at least `bytes`. The memory returned before becomes invalid. Throws std::bad_alloc.
  virtual Room reserve(size_t bytes) = 0;

 protected:
  ~Scratch() = default;
};

// softmax(x)[v] = exp(x[v] - shift) / sum, where shift is the largest entry of the row. So sum >= 1. The entries equal
// to shift are counted and the others are added. So `sum` keeps its digits when one class has nearly all of the
// probability.
template <class F> struct Normaliser {
  F shift;
  double sum;
  // A row has no softmax if it has a NaN or a +inf, or if all entries are -inf.
  bool defined() const { return sum >= 1; }
};

// Rows of up to so many classes may be read four at a time. Those of more are read one by one.
constexpr int64_t kMostClasses = 256;

// What has been read of the rows of one sequence, which have more than kMostClasses, at the frames in use. Null if
// nothing has. Without logits the sequence has too few frames.
template <class F> struct KnownRows {
  const Normaliser<F>* normalisers = nullptr;
  const F* logits = nullptr;  // [frame][label], and behind the labels the blank's
};

// One sequence with valid arguments: 0 <= length <= T, and labels that are in [0, V), are not the blank and have no
// padding. In an alignment V stands for the star.
template <class F> struct Sequence {
  Dtype dtype;
  const void* acts;     // the first row
  int64_t acts_stride;  // elements from one frame to the next
  int64_t length;       // frames in use
  int64_t V;
  const int32_t* labels;
  int64_t L;
  int32_t blank;
  bool softmax;   // acts are logits. Else they are log-scores, of which only the labels' entries are read
  bool feasible;  // the length is enough for the labels and for the blanks between equal ones
  Scratch* scratch;
  KnownRows<F> known;
};

// Where the residuals of one sequence go, a row for each frame. All pointers are null for the loss alone.
template <class F> struct SequenceResiduals {
  // Compact: (shift, scale) of the softmax, p = scale * exp(x - shift). Null if dense, and of log-scores.
  F* rows = nullptr;
  int64_t rows_stride = 0;
  F* columns = nullptr;  // dense: the gradient. Compact: occupancies of the blank and of each label position
  int64_t columns_stride = 0;
  int64_t width = 0;  // columns of a row

  // Compact only.
  const int32_t* column_of_label = nullptr;  // equal labels share the column of their first occurrence
  bool has_gaps = false;                     // padding stands between the labels: label i may not be in column 1 + i
  const int32_t* repeated = nullptr;         // without gaps: indices of labels that share an earlier label's column
  int64_t repeats = 0;

  bool dense = false;
};

// A class that the compact residuals of a sequence correct, and the column of its occupancy.
struct Correction {
  int32_t symbol, column;
};
// Those of one sequence: of the blank, then of each different label.
struct Corrections {
  const Correction* list;
  int64_t count;
  const Correction* begin() const { return list; }
  const Correction* end() const { return list + count; }
};

// One row of acts with its residuals, compact. Shift, scale and occupancies may be any numbers, because a program may
// pass in any residuals.
template <class F> struct Row {
  Dtype dtype;
  const void* acts;
  int64_t V;
  F shift, scale;
  const F* occupancy;  // of the blank and of each label position
  Corrections corrections;
  Scratch* scratch;
};

// The further arguments of a Hessian-vector product of one sequence. All arrays have a row for each frame.
template <class F> struct HvpArguments {
  const void* direction;  // like acts, with the stride of acts
  const F* rows;          // rows and columns are residuals. Null if dense, and of log-scores
  int64_t rows_stride;
  const F* columns;  // null if the caller has none: acts are float32, and the layout is dense
  int64_t columns_stride;
  bool dense;
  const int32_t* own_column;  // compact: the column of each label's position, which equal labels do not share
  F cotangent;
  void* out;  // like acts
};

// A row of V classes, which are all classes or a slice of them, and D symbols. A symbol below 0 is not in this row.
template <class F> struct Slice {
  Dtype dtype;
  const void* acts;
  int64_t V;
  const int32_t* symbols;
  int64_t D;
  Scratch* scratch;
};

// A row of V classes, for the beam search.
struct LogitRow {
  Dtype dtype;
  const void* acts;
  int64_t V;
  int32_t blank;
  Scratch* scratch;
};

// Up to kMost rows of V classes, at least one, for greedy decoding.
struct RowGroup {
  static constexpr int64_t kMost = 4;
  Dtype dtype;
  int64_t V;
  int64_t count;
  const void* acts[kMost];
};

template <class F> struct TopClass {
  int32_t best;  // the first class whose logit is `top`
  F top;         // the largest logit
  F others;      // the sum of exp(logit - top) over the other classes
};

template <class F> struct ClassScore {
  F score;  // the logit
  int32_t label;
};

template <class F> struct BestClasses {
  const F* logits;  // the row, in scratch memory if acts are halves
  F top;            // the largest logit
  double sum;       // of exp(logit - top). 0 if the row has no softmax
  int64_t count;    // of classes in `best`
};

// What an alignment needs of the labels, and where it goes. A slot is a place in a table of the different labels.
struct SequenceAlignment {
  const int32_t* symbols;   // the different labels; in the place of the star, which is no class, the blank
  int64_t D;                // how many
  int64_t star;             // the slot of the star, or -1
  const int32_t* slots;     // symbols[slots[i]] is label i
  const int32_t* classes;   // the same for each label: a class that can be read
  const int32_t* position;  // label i stands in entry position[i] - 1 of the caller's row
  int32_t* path;            // the class of each frame
  int32_t* label_index;     // the entry of the caller's row, or -1 on the blank
  int64_t stride;           // elements from one frame to the next, of both
};

// What the forward pass found out about a sequence.
enum class Outcome {
  kFinite,       // the cost is finite
  kNoAlignment,  // the cost is +inf
  kNoSoftmax,    // the cost is NaN, because a row has no softmax. Of log-scores: an entry is NaN or +inf
};

template <class F> struct Kernels {
  // Writes the cost in nats and, if `residuals` has pointers, the residuals of the frames in use. Writes nothing useful
  // unless it returns kFinite.
  Outcome (*cost)(const Sequence<F>&, const SequenceResiduals<F>& residuals, F* cost);
  // out = cotangent * Hessian * direction at the frames in use, if it returns kFinite.
  Outcome (*hvp)(const Sequence<F>&, const HvpArguments<F>&);

  // Writes the log-probability of the best path and, at the frames in use, the path, if it returns kFinite.
  Outcome (*align)(const Sequence<F>&, const SequenceAlignment& out, F* score);

  // In the products below, a factor that is exactly 0 gives 0, even if the other factor is inf or NaN.
  // Compact: out = cotangent * (softmax - occupancy), V elements of the dtype of acts. `out` may be acts.
  void (*gradient)(const Row<F>&, F cotangent, void* out);
  // Compact: the sum over v of (softmax - occupancy)[v] * direction[v].
  double (*tangent)(const Row<F>&, const void* direction);
  // top: the largest entry. ties: how many entries are equal to it. tail: the sum of exp(acts - top) of the others. If
  // an entry is NaN or +inf, these are -inf, NaN and 0. scores: acts at the symbols, 0 at symbols that are not in the
  // row. `next`: acts of the row that the caller takes next, to be prefetched.
  void (*sums)(const Slice<F>&, const void* next, F* top, F* ties, F* tail, F* scores);
  // out = ct_tail * exp(acts - top), plus ct_scores at the symbols.
  void (*sums_cotangent)(const Slice<F>&, F top, F ct_tail, const F* ct_scores, void* out);

  // Returns the normaliser of a row of all classes. `scores` and `next` as for sums.
  Normaliser<F> (*read_row)(const Slice<F>&, const void* next, F* scores);

  // The most probable class of each row, or (-1, -inf, NaN) if it has no softmax. `next` as for sums.
  void (*top_classes)(const RowGroup&, const void* next, TopClass<F>* found);

  // The normaliser of a row, and classes but the blank: at least the `n` most probable, those of probability 0 left
  // out, in the order of classes. `best` has room for V. `next` as for sums.
  BestClasses<F> (*best_classes)(const LogitRow&, const void* next, int64_t n, ClassScore<F>* best);

  // Dense: as gradient and tangent, from V elements of the kept gradient. `out` may be `gradient`.
  void (*dense_gradient)(const F* gradient, int64_t V, F cotangent, Dtype dtype, void* out);
  double (*dense_tangent)(const F* gradient, int64_t V, Dtype dtype, const void* direction, Scratch* scratch);
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

// SPDX-License-Identifier: Apache-2.0
// Random problems, most of them with something wrong, on arrays of exactly their size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>

#include "../../kernels/common/batch.h"

namespace {

using namespace jax_ctc;

// On the heap, each alone, so that the sanitizer sees its ends.
template <class T> struct Array {
  explicit Array(int64_t n) : data(new T[n]), size(n) {}
  std::unique_ptr<T[]> data;
  int64_t size;
};

std::mt19937 generator;
int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(generator); }
bool sometimes(int one_in) { return below(one_in) == 0; }

double logit() {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  switch (below(400)) {
    case 0: return -infinity;
    case 1: return sometimes(4) ? infinity : 3e4;
    case 2: return sometimes(4) ? std::nan("") : -2e6;
    default: return std::normal_distribution<double>(0, sometimes(9) ? 50 : 2)(generator);
  }
}

int32_t label(int64_t V) {
  constexpr int32_t extremes[] = {-1, -7, INT32_MIN, INT32_MAX, 0};
  if (sometimes(60)) return sometimes(2) ? int32_t(V) : extremes[below(5)];
  return sometimes(12) || V == 1 ? -1 : int32_t(1 + below(V - 1));
}

// F: what is computed in. Half-precision acts are 16 random bits, NaN patterns among them.
template <class F> struct RandomProblem {
  Dtype dtype;
  Shape s;
  Array<F> wide, wide_directions;
  Array<uint16_t> narrow, narrow_directions;
  Array<int32_t> labels, lengths;
  Array<F> cotangents;
  bool softmax = !sometimes(3);

  bool half() const { return is_half(dtype); }
  void* acts() { return half() ? static_cast<void*>(narrow.data.get()) : wide.data.get(); }
  void* directions() { return half() ? static_cast<void*>(narrow_directions.data.get()) : wide_directions.data.get(); }
  Batch batch() { return {dtype, s, acts(), labels.data.get(), lengths.data.get(), 0, softmax}; }
  int64_t kept_rows() const { return s.rows() * (softmax && !s.dense() ? 2 : 0); }
  int64_t kept_columns() const { return s.rows() * s.columns(); }
  bool bad_length(int64_t i) const { return lengths.data[i] < 0 || lengths.data[i] > s.T; }

  [[noreturn]] void fail(int64_t sequence, const char* what, double a, double b) const {
    std::printf("sequence %d of N %d T %d B %d V %d L %d, dtype %d: %s: %.9g and %.9g\n", int(sequence), int(s.N),
                int(s.T), int(s.B), int(s.V), int(s.L), int(dtype), what, a, b);
    std::exit(1);
  }

  static Shape random_shape() {
    const int64_t sizes[] = {0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 40, 65};
    Shape s;
    s.N = 1 + below(3), s.T = sizes[below(12)], s.B = 1 + below(4), s.V = 1 + sizes[below(12)], s.L = sizes[below(12)];
    return s;
  }
  RandomProblem(Dtype type, Shape shape)
      : dtype(type),
        s(shape),
        wide(is_half(type) ? 0 : s.rows() * s.V),
        wide_directions(wide.size),
        narrow(is_half(type) ? s.rows() * s.V : 0),
        narrow_directions(narrow.size),
        labels(s.sequences() * s.L),
        lengths(s.sequences()),
        cotangents(s.sequences()) {
    for (int64_t i = 0; i < wide.size; ++i) wide.data[i] = F(logit()), wide_directions.data[i] = F(logit());
    for (int64_t i = 0; i < narrow.size; ++i)
      narrow.data[i] = uint16_t(below(sometimes(200) ? 65536 : 0x4000)), narrow_directions.data[i] = narrow.data[i];
    for (int64_t i = 0; i < labels.size; ++i) labels.data[i] = label(s.V);
    for (int64_t i = 0; i < lengths.size; ++i)
      lengths.data[i] = sometimes(9) ? (sometimes(2) ? INT32_MAX : -1) : int32_t(below(s.T + (sometimes(9) ? 3 : 1)));
    for (int64_t i = 0; i < cotangents.size; ++i) cotangents.data[i] = F(sometimes(3) ? 0 : logit());
  }
};

}  // namespace

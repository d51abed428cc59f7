// SPDX-License-Identifier: Apache-2.0
// What alpha's sweep needs of beta at the frames of a block: its labels, and what its blanks are computed from.
#pragma once

#include "group_step.h"

namespace jax_ctc {
namespace {

template <class V> class StoredBeta {
  static constexpr int kParts = kPartsOf<V>;

 public:
  explicit StoredBeta(int64_t slots) : pairs(slots) {}

  // The doubles of one frame, about.
  int64_t frame_size() const { return labels_size() + pitch() / kTogether + pitch() / kFrames; }

  void lay_out(Arena& arena, int64_t frames) {
    const int64_t groups = (frames + kFrames - 1) / kFrames, whole = groups * kFrames;
    arena.take(labels, whole * labels_size()), arena.take(blanks, whole / kTogether * pitch());
    arena.take(units, groups * pitch()), arena.take(units_of, groups), arena.take(reaches, groups);
  }

  // The block that starts with frame `begin` is stored next, from its last group to its first.
  void start(int64_t begin) { first = begin, last_units = -1; }

  // The labels of frame t, and a margin of one vector. Label i stands in slot i + 1.
  const double* labels_at(int64_t t) const { return labels + (t - first) * labels_size(); }
  int64_t labels_size() const { return kParts * pitch(); }
  int64_t pitch() const { return pairs + kDoubles; }
  // The blanks, without derivatives, at the last one of kTogether frames. At the frame before, a blank is this plus the
  // label that follows.
  const double* blanks_at(int64_t t) const { return blanks + (t - first) / kTogether * pitch(); }
  // The exponents of a group's units, and behind them a margin of one vector. Successive groups may share them.
  const double* exponents_at(int64_t t) const { return units + units_of[group(t)] * pitch(); }
  bool same_exponents(int64_t t) const { return t > first && units_of[group(t)] == units_of[group(t) - 1]; }
  // No number of the group is more than 2^reach.
  double reach(int64_t t) const { return reaches[group(t)]; }

  // The units of the group of frame t.
  void keep_units(int64_t t, const GroupStates<kBeta, V>& beta, bool changed) {
    if (changed || last_units < 0) {
      double* const to = units + ++last_units * pitch();
      __builtin_memcpy(to, beta.exponent, pairs * sizeof(double));
      for (int k = 0; k < kDoubles; ++k) to[pairs + k] = 0;
    }
    units_of[group(t)] = last_units, reaches[group(t)] = beta.reach;
  }

  // A function that GroupStates::step calls with the states of the kCount frames up to t, from the last to the first.
  template <int kCount> auto keeper(int64_t t, Window window) {
    double *const to = labels_of(t), *const blanks = blanks_of(t);
    const int64_t size = labels_size(), pitch = this->pitch();
    for (int f = 0; f < kCount; ++f) store_parts(to - f * size + window.end, pitch, V{});
    for (int k = 0; k < kCount / kTogether; ++k) store(blanks - k * pitch + window.end, Doubles{});
    return [=](int f, int64_t i, const Pair<V>&, const Pair<V>& after) {
      store_parts(to - f * size + i, pitch, after.label);
      if (kCount > 1 && f % kTogether == 0) store(blanks - f / kTogether * pitch + i, value_of(after.blank));
    };
  }
  // The same for the blanks of a single frame, if it is the last of kTogether.
  void keep_blanks(int64_t t, const double* of_beta) {
    if (t % kTogether != kTogether - 1) return;
    double* const to = blanks_of(t);
    __builtin_memcpy(to, of_beta, pairs * sizeof(double)), store(to + pairs, Doubles{});
  }
  // Alpha takes whole groups. There is nothing behind the last frame.
  void keep_nothing(int64_t t) {
    for (int64_t i = 0; i < labels_size(); ++i) labels_of(t)[i] = 0;
  }

 private:
  int64_t group(int64_t t) const { return (t - first) / kFrames; }
  double* labels_of(int64_t t) { return labels + (t - first) * labels_size(); }
  double* blanks_of(int64_t t) { return blanks + (t - first) / kTogether * pitch(); }

  const int64_t pairs;
  int64_t first = 0, last_units = -1;
  double* labels = nullptr;  // [frame][part][slot]
  double* blanks = nullptr;
  double* units = nullptr;      // whenever they change
  int64_t* units_of = nullptr;  // of each group, which of them
  double* reaches = nullptr;
};

}  // namespace
}  // namespace jax_ctc

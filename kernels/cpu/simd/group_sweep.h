// SPDX-License-Identifier: Apache-2.0
// Both sweeps over the lattice of one sequence as in sweep.h, in groups of frames (group_step.h). They give up where
// numbers do not fit doubles.
#pragma once

#include "group_step.h"
#include "ratios.h"
#include "sweep.h"

namespace jax_ctc {
namespace {

// The frames of alpha that are taken together.
constexpr int kTogether = CTC_VECTOR_BYTES == 16 ? 2 : 4;

// Products alpha * beta of the labels at a group of frames, [frame][pair], as GroupLattice::sweep_alpha gives them.
class GroupProducts {
 public:
  float* at = nullptr;

  void lay_out(Arena& arena, int64_t slots) { pairs = slots, arena.take(at, kFrames * pairs); }
  void start(int64_t t, Window window) {
    const int64_t begin = t == 0 ? 0 : written, end = t == 0 ? pairs : window.begin;
    for (int f = 0; f < kFrames; ++f)
      for (int64_t i = begin; i < end; ++i) at[f * pairs + i] = 0;
    written = window.begin;
  }
  auto adder(int frame) const {
    return [to = at + frame * pairs, pairs = pairs](int64_t i, const Doubles(&of_labels)[kTogether]) {
      for (int k = 0; k < kTogether; ++k) store_narrowed(to + k * pairs + i, of_labels[k]);
    };
  }

 private:
  int64_t pairs = 0;
  int64_t written = 0;  // products from here on may be other than 0
};

class GroupLattice {
 public:
  GroupLattice(const Sequence<float>& in, RatioSource& source, bool with_posterior)
      : in(in), source(source), T(in.length), L(in.L), pairs(padded<float>(L + 1)), posterior(with_posterior) {
    const int64_t word = sizeof(double);
    block = block_length(T, posterior, Beta::copy_size(pairs) * word,
                         (frame_size() + pairs / kFrames) * word + source.frame_bytes());
  }

  int64_t block;  // frames whose states are stored at once
  RunningProduct row_sums;
  Scaled<double> z = {};  // the total

  void lay_out(Arena& arena) {
    arena.take(skip, pairs);
    beta.lay_out(arena, pairs);
    if (!posterior) return;
    alpha.lay_out(arena, pairs);
    const int64_t frames = groups(min_of(block, max_of<int64_t>(T, 1))) * kFrames;
    arena.take(stored, frames * frame_size()), arena.take(checkpoints, blocks() * Beta::copy_size(pairs));
    arena.take(units, groups(frames) * (pairs + kDoubles)), arena.take(units_of, groups(frames));
    arena.take(reach_of, groups(frames));
    arena.take(blank_unit, pairs), arena.take(label_unit, pairs);
  }

  void initialise() {
    for (int64_t i = 0; i < pairs; ++i) skip[i] = i < L && may_skip(in.labels, i) ? 1 : 0;
    beta.start(L, skip);
  }

  // Returns false if a row has no softmax, or numbers do not fit.
  bool sweep_beta() {
    for (int64_t k = blocks() - 1; k >= 0; --k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (!source.read(begin, end, &row_sums)) return false;
      if (posterior) beta.copy_to(checkpoints + k * Beta::copy_size(pairs));
      if (!sweep_block(begin, end, posterior && k == 0)) return false;
    }
    z = beta.total_of(L);
    return true;
  }

  // Gives the products alpha * beta of each group of frames to `to`, in order (eq. 8). Returns false if numbers do not
  // fit. `to` must define:
  //   start(t, window)                   the slots that follow are those of `window`, at frames from t on
  //   adder(frame)                       a function of (i, products): products of the labels in a vector of slots from
  //                                      i on, at kTogether frames from `frame` of the group on
  //   finish(t, count, of_blank, total)  of the blanks at each of `count` frames, and of all states of any frame
  template <class To> bool sweep_alpha(To& to) {
    alpha.start(0, skip);
    for (int64_t k = 0; k < blocks(); ++k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (k > 0) {
        source.read(begin, end, nullptr);
        beta.copy_from(checkpoints + k * Beta::copy_size(pairs));
        if (!sweep_block(begin, end, true)) return false;
      }
      for (int64_t t = begin; t < end; t += kFrames) {
        const int64_t count = min_of<int64_t>(kFrames, end - t), group = (t - begin) / kFrames;
        const Window window = window_of(t, count);
        bool changed = group == 0 || units_of[group] != units_of[group - 1];
        if (!alpha.prepare(window, source.growth(t), changed)) return false;
        if (changed) set_units(units + units_of[group] * (pairs + kDoubles), window);
        to.start(t, window);
        if (all_products_fit(reach_of[group])) {
          for (int f = 0; f < kFrames; f += kTogether) multiply<false>(t, f, begin, window, to);
        } else {
          sum = 0;
          for (int f = 0; f < kFrames; f += kTogether) multiply<true>(t, f, begin, window, to);
          // All frames have the same sum. It is too small if a product was lost that counts.
          const double lost = double(count) * z.m - sum;
          if (!(max_of(lost, -lost) < 1e-7)) return false;
        }
        to.finish(t, count, of_blank, z.m);
      }
    }
    return true;
  }

 private:
  using Beta = GroupStates<kBeta>;

  // The unit 2^kLeastUnit of products, relative to the total: smaller ones are taken for 0, because products of
  // ordinary states are then far too small to count.
  static constexpr double kLeastUnit = -850;

  // Whether no product of a group that counts is lost: alpha's numbers times beta's are less than 2^-44 / 2^kLeastUnit,
  // which is too little even for a million states, and alpha's numbers in units of products are doubles.
  bool all_products_fit(double reach_of_beta) const {
#if defined(JAX_CTC_TEST)
    if (tested::products_of_blanks) return false;
#endif
    return alpha.reach + reach_of_beta <= -kLeastUnit - 44 && alpha.reach + largest_unit <= 1000;
  }

  int64_t blocks() const { return (T + block - 1) / block; }
  static int64_t groups(int64_t frames) { return (frames + kFrames - 1) / kFrames; }

  // Beta's states of a frame: blanks, labels, and a margin of one vector.
  int64_t frame_size() const { return 2 * pairs + kDoubles; }
  double* stored_at(int64_t t, int64_t begin) const { return stored + (t - begin) * frame_size(); }

  Window window_of(int64_t t, int64_t count) const { return group_window(t, count, T, L, pairs); }

  bool sweep_block(int64_t begin, int64_t end, bool store) {
    int64_t last = -1;
    for (int64_t t = begin + (end - begin - 1) / kFrames * kFrames; t >= begin; t -= kFrames) {
      const int64_t count = min_of<int64_t>(kFrames, end - t), group = (t - begin) / kFrames;
      const Window window = window_of(t, count);
      bool changed = last < 0;
      if (!beta.prepare(window, source.growth(t), changed)) return false;
      if (store && changed) {
        double* const to = units + ++last * (pairs + kDoubles);
        __builtin_memcpy(to, beta.exponent, pairs * sizeof(double));
        for (int k = 0; k < kDoubles; ++k) to[pairs + k] = 0;
      }
      if (store) units_of[group] = last, reach_of[group] = beta.reach;
      // Alpha takes whole groups. There is nothing behind the last frame.
      for (int64_t f = count; store && f < kFrames; ++f)
        for (int64_t i = 0; i < frame_size(); ++i) stored_at(t + f, begin)[i] = 0;
      if (count == kFrames)
        step_beta<kFrames>(t, begin, window, store);
      else
        for (int64_t f = count - 1; f >= 0; --f) step_beta<1>(t + f, begin, window, store);
    }
    return true;
  }

  // Takes frames [t, t + kCount), from the last to the first.
  template <int kCount> void step_beta(int64_t t, int64_t begin, Window window, bool store) {
    const float* y = source.ratios(t + kCount - 1);
    if (!store) return beta.step<kCount>(window, y, -source.frame_size(), [](int, int64_t, auto, auto) {});
    double* const to = stored_at(t + kCount - 1, begin);
    const int64_t size = frame_size(), pairs = this->pairs;
    for (int f = 0; f < kCount; ++f) jax_ctc::store(to - f * size + pairs + window.end, Doubles{});
    beta.step<kCount>(window, y, -source.frame_size(), [&](int f, int64_t i, Pair<Doubles>, Pair<Doubles> after) {
      jax_ctc::store(to - f * size + i, after.blank), jax_ctc::store(to - f * size + pairs + i, after.label);
    });
  }

  // 2^(exponent of alpha's unit + that of beta's - that of the total), of each slot's blank and label. It is 0 below
  // kLeastUnit. If a product counts after all, a frame's sum is too small, and the lattice gives up.
  void set_units(const double* of_beta, Window window) {
    const auto power = [](Doubles e) { return e < splat<Doubles>(kLeastUnit) ? Doubles{} : power_of_2(e); };
    Doubles largest = splat<Doubles>(kLeastUnit);
    for (int64_t i = window.begin; i < pairs; i += kDoubles) {
      const Doubles of_alpha = load<Doubles>(alpha.exponent + i) - double(z.e);
      const Doubles of_labels = of_alpha + load<Doubles>(of_beta + i + 1);
      store(blank_unit + i, power(of_alpha + load<Doubles>(of_beta + i)));
      store(label_unit + i, power(of_labels));
      largest = max_of(largest, of_labels);
    }
    largest_unit = max_of_lanes(largest);
  }

  // Takes kTogether frames of alpha, from t + f on, and multiplies alpha before the emission with beta after it. The
  // blanks of a frame have what its labels leave of the total. With kBlanks their products are computed too, for `sum`.
  template <bool kBlanks, class To> CTC_INLINE void multiply(int64_t t, int f, int64_t begin, Window window, To& to) {
    const double* const beta = stored_at(t + f, begin);
    const int64_t size = frame_size(), pairs = this->pairs;
    const double *const blank_unit = this->blank_unit, *const label_unit = this->label_unit;
    const auto add = to.adder(f);
    Doubles blanks = {}, labels[kTogether] = {}, products[kTogether];
    alpha.step<kTogether>(window, source.ratios(t + f), source.frame_size(),
                          [&](int k, int64_t i, Pair<Doubles> before, Pair<Doubles>) {
                            const double* const at = beta + k * size + i;
                            if (kBlanks) blanks += before.blank * load<Doubles>(blank_unit + i) * load<Doubles>(at);
                            // Rounded to a multiple of 2^-112, because numbers below 2^-126 would make every operation
                            // slow.
                            const Doubles unit = load<Doubles>(label_unit + i), of_beta = load<Doubles>(at + pairs + 1);
                            products[k] = (before.label * unit * of_beta + 0x1p-60) - 0x1p-60;
                            labels[k] += products[k];
                            if (k == kTogether - 1) add(i, products);
                          });
    for (int k = 0; k < kTogether; ++k) {
      const double of_labels = sum_of_lanes(labels[k]);
      of_blank[f + k] = max_of(z.m - of_labels, 0.0);
      if (kBlanks) sum += of_labels;
    }
    if (kBlanks) sum += sum_of_lanes(blanks);
  }

  const Sequence<float>& in;
  RatioSource& source;
  const int64_t T, L, pairs;
  const bool posterior;

  double* skip;  // 1 where the skip is allowed, else 0
  Beta beta;
  GroupStates<kAlpha> alpha;
  double* stored = nullptr;  // beta's states of a block
  double* checkpoints = nullptr;
  double* units = nullptr;      // exponents of beta's, whenever they change
  int64_t* units_of = nullptr;  // of each group in the block, which of them
  double* reach_of = nullptr;   // of each group in the block
  double *blank_unit = nullptr, *label_unit = nullptr;
  double of_blank[kFrames];  // alpha * beta of the blanks of each frame
  double sum;                // alpha * beta of all states of a group
  double largest_unit;       // the largest exponent of label_unit
};

}  // namespace
}  // namespace jax_ctc

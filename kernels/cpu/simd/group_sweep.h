// SPDX-License-Identifier: Apache-2.0
// Both sweeps over the lattice of one sequence as in sweep.h, in groups of frames (group_step.h). They give up where
// numbers do not fit doubles.
#pragma once

#include "group_step.h"
#include "ratios.h"
#include "sweep.h"

namespace jax_ctc {
namespace {

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
    const int64_t frames = min_of(block, max_of<int64_t>(T, 1));
    arena.take(stored, frames * frame_size()), arena.take(checkpoints, blocks() * Beta::copy_size(pairs));
    arena.take(units, groups(frames) * (pairs + kDoubles)), arena.take(units_of, groups(frames));
    arena.take(blank_unit, pairs), arena.take(label_unit, pairs);
    arena.take(gamma, kFrames * pairs);
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

  // As in sweep.h. Returns false if numbers do not fit.
  template <class Keep> bool sweep_alpha(Keep keep) {
    alpha.start(0, skip);
    for (int64_t i = 0; i < kFrames * pairs; ++i) gamma[i] = 0;
    int64_t written = 0;  // products from here on may be other than 0
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
        for (int f = 0; f < kFrames; ++f)
          for (int64_t i = written; i < window.begin; ++i) products(f)[i] = 0;
        written = window.begin;
        sum = 0;
        if (count == kFrames)
          for (int f = 0; f < kFrames; f += kTogether) multiply<kTogether>(t + f, begin, window);
        else
          for (int f = 0; f < count; ++f) multiply<1>(t + f, begin, window);
        // All frames have the same sum. It is too small if a product was lost that counts.
        const double lost = double(count) * z.m - sum;
        if (!(max_of(lost, -lost) < 1e-7)) return false;
        for (int f = 0; f < count; ++f) keep(t + f, float(of_blank[f]), float(z.m - of_blank[f]));
      }
    }
    return true;
  }

  // alpha * beta of `pairs` labels at frame t.
  float* products(int64_t t) const { return gamma + t % kFrames * pairs; }

 private:
  using Beta = GroupStates<kBeta>;
  // The frames of alpha that are taken together.
  static constexpr int kTogether = CTC_VECTOR_BYTES == 16 ? 2 : 4;

  int64_t blocks() const { return (T + block - 1) / block; }
  static int64_t groups(int64_t frames) { return (frames + kFrames - 1) / kFrames; }

  // Beta's states of a frame: blanks, labels, and a margin of one vector.
  int64_t frame_size() const { return 2 * pairs + kDoubles; }
  double* stored_at(int64_t t, int64_t begin) const { return stored + (t - begin) * frame_size(); }

  // The states that an alignment can occupy at frames [t, t + count), and at the frames on either side, from which
  // alpha and beta come.
  Window window_of(int64_t t, int64_t count) const {
    return {window<float>(max_of<int64_t>(t - 1, 0), T, L, pairs).begin, window<float>(t + count, T, L, pairs).end};
  }

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
      if (store) units_of[group] = last;
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

  // 2^(exponent of alpha's unit + that of beta's - that of the total), of each slot's blank and label. It is 0 where
  // products of ordinary states are far too small to count. If a product counts after all, a frame's sum is too small,
  // and the lattice gives up.
  void set_units(const double* of_beta, Window window) {
    const auto power = [](Doubles e) { return e < splat<Doubles>(-850) ? Doubles{} : power_of_2(e); };
    for (int64_t i = window.begin; i < pairs; i += kDoubles) {
      const Doubles of_alpha = load<Doubles>(alpha.exponent + i) - double(z.e);
      store(blank_unit + i, power(of_alpha + load<Doubles>(of_beta + i)));
      store(label_unit + i, power(of_alpha + load<Doubles>(of_beta + i + 1)));
    }
  }

  // Takes frames [t, t + kCount) of alpha, and multiplies alpha before the emission with beta after it (eq. 8).
  template <int kCount> CTC_INLINE void multiply(int64_t t, int64_t begin, Window window) {
    const double* const beta = stored_at(t, begin);
    const int64_t size = frame_size(), pairs = this->pairs;
    float* const to = products(t);
    const double *const blank_unit = this->blank_unit, *const label_unit = this->label_unit;
    Doubles blanks[kCount] = {}, labels = {};
    alpha.step<kCount>(
        window, source.ratios(t), source.frame_size(), [&](int f, int64_t i, Pair<Doubles> before, Pair<Doubles>) {
          const double* const at = beta + f * size + i;
          blanks[f] += before.blank * load<Doubles>(blank_unit + i) * load<Doubles>(at);
          // Rounded to a multiple of 2^-112, because numbers below 2^-126 would make every operation slow.
          const Doubles of_label =
              (before.label * load<Doubles>(label_unit + i) * load<Doubles>(at + pairs + 1) + 0x1p-60) - 0x1p-60;
          labels += of_label;
          store_narrowed(to + f * pairs + i, of_label);
        });
    for (int f = 0; f < kCount; ++f) sum += of_blank[t % kFrames + f] = sum_of_lanes(blanks[f]);
    sum += sum_of_lanes(labels);
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
  double *blank_unit = nullptr, *label_unit = nullptr;
  float* gamma = nullptr;
  double of_blank[kFrames];  // alpha * beta of the blanks of each frame
  double sum;                // alpha * beta of all states of a group
};

}  // namespace
}  // namespace jax_ctc

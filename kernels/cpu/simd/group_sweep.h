// SPDX-License-Identifier: Apache-2.0
// Both sweeps over the lattice of one sequence as in sweep.h, in groups of frames (group_step.h). They give up where
// numbers do not fit doubles.
//
// `Source` supplies the ratios. It must define:
//   Value                             Doubles, or Number<Doubles> if ratios have derivatives
//   read(begin, end, product, slots)  computes one block, or what some slots need of it, as in sweep.h. Returns false
//                                     also if numbers do not fit
//   ratios(t)                         of a frame in the block that was read last
//   growth(t), frame_bytes()          as RatioSource
#pragma once

#include "band.h"
#include "sweep.h"

namespace jax_ctc {
namespace {

template <class Source> class GroupLattice {
  using V = typename Source::Value;
  static constexpr bool kChanges = kPartsOf<V> > 1;

 public:
  GroupLattice(const Sequence<float>& in, Source& source, bool with_posterior)
      : in(in),
        source(source),
        T(in.length),
        L(in.L),
        pairs(padded<float>(L + 1)),
        posterior(with_posterior),
        stored(pairs) {
    const int64_t word = sizeof(double);
    block =
        block_length(T, posterior, Beta::copy_size(pairs) * word, stored.frame_size() * word + source.frame_bytes());
  }

  int64_t block;  // frames whose states are stored at once
  RunningProduct row_sums;
  Scaled<double> z = {};  // the total

  void lay_out(Arena& arena) {
    arena.take(skip, pairs);
    beta.lay_out(arena, pairs);
    if (!posterior) return;
    alpha.lay_out(arena, pairs);
    stored.lay_out(arena, min_of(block, T));
    arena.take(checkpoints, blocks() * Beta::copy_size(pairs));
    arena.take(blank_unit, pairs), arena.take(label_unit, pairs);
  }

  void initialise() {
    skip[0] = 0;
    for (int64_t i = 1; i < L; ++i) skip[i] = may_skip(in.labels, i);
    for (int64_t i = max_of<int64_t>(L, 1); i < pairs; ++i) skip[i] = 0;
    beta.start(L, skip);
  }

  // Returns false if a row has no softmax, or numbers do not fit.
  bool sweep_beta() {
    for (int64_t k = blocks() - 1; k >= 0; --k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (!source.read(begin, end, &row_sums, {0, pairs})) return false;
      if (posterior) beta.copy_to(checkpoints + k * Beta::copy_size(pairs));
      if (!sweep_block(begin, end, posterior && k == 0, nullptr)) return false;
    }
    z = beta.total_of(L);
    if constexpr (kChanges) mean = beta.change_of_total(L, z.e) / z.m;
    return true;
  }

  // Gives the products alpha * beta of each group of frames to `to`, in order (eq. 8), or their derivatives less that
  // of the total (eq. 13). Alpha therefore starts with a derivative of minus the total's: it is carried to all states.
  // Returns false if numbers do not fit. `to` must define:
  //   start(t, window)                   the slots that follow are those of `window`, at frames from t on
  //   adder(frame)                       a function of (i, products): products of the labels in a vector of slots from
  //                                      i on, at kTogether frames from `frame` of the group on
  //   finish(t, count, of_blank, total)  of the blanks at each of `count` frames, and of all states of any frame
  template <class To> bool sweep_alpha(To& to) {
    alpha.start(0, skip, -mean);
    Band band;
    int64_t wait = kNarrowEvery, next = wait;
    for (int64_t k = 0; k < blocks(); ++k) {
      const int64_t begin = k * block, end = min_of(begin + block, T);
      if (k > 0) {
        source.read(begin, end, nullptr, slots_of_beta(band, end - begin, {0, pairs}));
        beta.copy_from(checkpoints + k * Beta::copy_size(pairs));
        if (!sweep_block(begin, end, true, &band)) return false;
      }
      for (int64_t t = begin; t < end; t += kFrames) {
        if (t >= next) {
          wait = narrow(band, t) ? kNarrowEvery : min_of(2 * wait, 8 * kNarrowEvery);
          next = t + wait;
        }
        const int64_t count = min_of<int64_t>(kFrames, end - t);
        const Window window = band.after(kFrames, window_of(t, count), kDoubles);
        band.end = min_of(band.end + kFrames, pairs);
        bool changed = !stored.same_exponents(t);
        if (!alpha.prepare(window, source.growth(t), changed)) return false;
        if (changed) set_units(stored.exponents_at(t), window);
        to.start(t, window);
        if (all_products_fit(stored.reach(t))) {
          for (int f = 0; f < kFrames; f += kTogether) multiply<false>(t, f, count, window, to);
        } else {
          sum = 0;
          for (int f = 0; f < kFrames; f += kTogether) multiply<true>(t, f, count, window, to);
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
  using Alpha = GroupStates<kAlpha, V>;
  using Beta = GroupStates<kBeta, V>;

  // The unit 2^kLeastUnit of products, relative to the total: smaller ones are taken for 0, because products of
  // ordinary states are then far too small to count.
  static constexpr double kLeastUnit = -850;

  // Whether no product of a group that counts is lost: alpha's numbers times beta's are less than 2^-44 / 2^kLeastUnit,
  // which is too little even for a million states, and alpha's numbers in units of products are doubles.
  bool all_products_fit(double reach_of_beta) const {
#if defined(JAX_CTC_TEST)
    if (tested::products_of_blanks) return false;
#endif
    return alpha.reach + reach_of_beta <= -kLeastUnit - 44 && alpha.reach + largest_unit <= Alpha::kMost;
  }

  int64_t blocks() const { return (T + block - 1) / block; }

  Window window_of(int64_t t, int64_t count) const { return group_window(t, count, T, L); }

  // What alpha needs of beta if `band` is that of alpha before a block, up to `frames` frames from there. Beta's label
  // stands one slot further, and what comes from behind the last slot is not known.
  static Window slots_of_beta(const Band& band, int64_t frames, Window window) {
    return band.after(frames + 2, window, kLanes<float>);
  }

  // Makes the band of alpha before frame t narrower, if it can. States that enter a cleared slot later may be smaller
  // than alpha.room says. One that counts is not: it is more than 2^64 times what stood there.
  bool narrow(Band& band, int64_t t) {
    if (band.end - band.begin < narrowest()) return false;
    band.begin = max_of(band.begin, window_of(t, 1).begin);
    const auto counts = [&](int64_t i) { return largest_share(alpha, stored, t, i) >= exponent_of(kLittle) + z.e; };
    return band.narrow<kDoubles>(counts, [this](int64_t i) { alpha.clear(i); });
  }

  // `band`, if not null, is that of alpha before the block.
  bool sweep_block(int64_t begin, int64_t end, bool store, const Band* band) {
    if (store) stored.start(begin);
    for (int64_t t = begin + (end - begin - 1) / kFrames * kFrames; t >= begin; t -= kFrames) {
      const int64_t count = min_of<int64_t>(kFrames, end - t);
      Window window = window_of(t, count);
      if (band != nullptr) window = slots_of_beta(*band, t + kFrames - begin, window);
      bool changed = false;
      if (!beta.prepare(window, source.growth(t), changed)) return false;
      if (store) stored.keep_units(t, beta, changed);
      for (int64_t f = count; store && f < kFrames; ++f) {
        stored.keep_nothing(t + f);
        stored.keep_blanks(t + f, beta.blank);
      }
      if (count == kFrames) {
        step_beta<kFrames>(t + kFrames - 1, window, store);
        continue;
      }
      for (int64_t f = count - 1; f >= 0; --f) {
        step_beta<1>(t + f, window, store);
        if (store) stored.keep_blanks(t + f, beta.blank);
      }
    }
    return true;
  }

  // Takes kCount frames, from t back.
  template <int kCount> void step_beta(int64_t t, Window window, bool store) {
    // With derivatives, 16 registers are not enough for smaller chunks.
    constexpr int kChunk = kChanges && CTC_VECTOR_BYTES < 64 ? (kCount + 1) / 2 : 1;
    Ratios y = source.ratios(t);
    y.frame = -y.frame;
    if (store)
      beta.template step<kCount, kChunk>(window, y, stored.template keeper<kCount>(t, window));
    else
      beta.template step<kCount, kChunk>(window, y, [](int, int64_t, const auto&, const auto&) {});
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

  // What is given of a product: itself, or its derivative. It is rounded to a multiple of 2^-112, or of 2^-113 if it is
  // negative, because floats below 2^-126 would make every operation slow.
  static CTC_INLINE Doubles given(Doubles product) { return (product + 0x1p-60) - 0x1p-60; }
  static CTC_INLINE Doubles given(Number<Doubles> product) { return given(product.change); }

  // Takes kTogether frames of alpha, from t + f on, and multiplies alpha before the emission with beta after it. The
  // blanks of a frame have what its labels leave of the total. With kBlanks their products are computed too, for `sum`.
  template <bool kBlanks, class To> CTC_INLINE void multiply(int64_t t, int f, int64_t count, Window window, To& to) {
    constexpr int kHalf = kTogether / 2;
    const double *const of_beta = stored.labels_at(t + f) + 1, *const blanks = stored.blanks_at(t + f);
    const int64_t size = stored.labels_size(), pitch = stored.pitch();
    const double *const blank_unit = this->blank_unit, *const label_unit = this->label_unit;
    const auto add = to.adder(f);
    Doubles all[kTogether] = {}, products[kTogether];  // sums of what is given, and what is given
    Doubles first_half[kHalf];                         // of the next vector, while this one's second half is taken
    Doubles values[kTogether] = {}, after[kTogether];  // sums of all products, and beta's blanks in their units
    alpha.template step<kTogether, kBlanks ? kTogether : kHalf>(
        window, source.ratios(t + f), [&](int k, int64_t i, const Pair<V>& before, const Pair<V>&) {
          const Doubles unit = load<Doubles>(label_unit + i);
          if (kBlanks && k == 0) {
            after[kTogether - 1] = load<Doubles>(blank_unit + i) * load<Doubles>(blanks + i);
            for (int j = kTogether - 1; j > 0; --j)
              after[j - 1] = after[j] + load<Doubles>(of_beta + j * size + i) * unit;
          }
          V label;
          load_number(of_beta + k * size + i, pitch, label);
          // Where all products fit, the unit comes last, because a derivative then takes one multiplication by it.
          const V product = kBlanks ? before.label * unit * label : before.label * label * unit;
          if (kBlanks) values[k] += value_of(before.blank) * after[k] + value_of(product);
          const Doubles now = given(product);
          all[k] += now;
          if (k < kHalf) first_half[k] = now;
          if (k >= kHalf) products[k - kHalf] = first_half[k - kHalf], products[k] = now;
          if (k == kTogether - 1) add(i, products);
        });
    for (int k = 0; k < kTogether; ++k) {
      const double of_labels = sum_of_lanes(all[k]);
      of_blank[f + k] = kChanges ? -of_labels : max_of(z.m - of_labels, 0.0);
      if (kBlanks && f + k < count) sum += sum_of_lanes(values[k]);
    }
  }

  const Sequence<float>& in;
  Source& source;
  const int64_t T, L, pairs;
  const bool posterior;

  double* skip;  // 1 where the skip is allowed, else 0
  Beta beta;
  Alpha alpha;
  StoredBeta<V> stored;
  double* checkpoints = nullptr;
  double *blank_unit = nullptr, *label_unit = nullptr;
  double of_blank[kFrames];  // alpha * beta of the blanks of each frame, or its derivative
  double sum;                // alpha * beta of all states of a group
  double largest_unit;       // the largest exponent of label_unit
  double mean = 0;           // the derivative of the total, divided by it
};

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// What the lattice in groups of frames needs of acts: the normalisers of all frames, and the ratios of a block of
// frames.
//
// The ratio of a label is its emission divided by that of the blank, exp(x - base), where base is the blank's logit. It
// is one float, so it must lie between 2^-126 and 2^116. What divides the paths through a frame is the row's sum
// relative to the blank: sum * exp(top - base). Of log-scores `sum` is 1, and the paths are multiplied with exp(top).
// exp(top - base) is the ratio of the largest logit itself, so its rounding cancels in the cost of a sure model.
#pragma once

#include "group_step.h"
#include "row_registers.h"
#include "sequence_rows.h"

namespace jax_ctc {
namespace {

class RatioSource : public SequenceRows<float> {
  using F = float;
  using Vec = Lanes<F>;

 public:
  using Value = Doubles;

  // `with_classes`: the ratios of all classes are kept too, if rows go through a table.
  RatioSource(const Sequence<F>& sequence, int64_t pairs, bool with_classes, bool with_direction = false)
      : SequenceRows(sequence, pairs, with_direction),
        keeps_classes(with_classes && by_table && !by_label),
        by_registers(kRegisters && by_table && in.softmax && !by_label && in.V >= N && in.V <= 4 * N) {}

  const bool keeps_classes;

  // The bytes of the ratios of one frame.
  int64_t frame_bytes() const { return (frame_size() + (keeps_classes ? kept_classes() : 0)) * sizeof(F); }

  void lay_out(Arena& arena, int64_t block_length) {
    block = block_length;
    arena.take(y, kept_frames(block) * frame_size());
    arena.take(growths, whole_groups(in.length) / kFrames);
    arena.take(kept, keeps_classes ? kept_frames(block) * kept_classes() : 0);
    arena.take(softmax_factors, keeps_classes ? whole_groups(in.length) : 0);
    lay_out_rows(arena);
  }

  void initialise() {
    for (int64_t k = 0, n = kept_frames(block); k < n; ++k) store(y + k * frame_size(), Vec{});  // the margins
    initialise_rows(in.blank, 0);  // behind the labels a ratio is 1, and so not too small
  }

  // Computes the ratios of frames [begin, end), as EmissionSource::read. Returns false also if a ratio does not fit.
  // `window`: the slots whose labels are needed.
  bool read(int64_t begin, int64_t end, RunningProduct* product, Window window) {
    block_begin = begin - begin % block, slots = window;
    for (int64_t t = (end - 1) / kFrames * kFrames; t >= begin; t -= kFrames)
      if (!read_group(t, min_of(t + kFrames, end), product)) return false;
    return true;
  }

  // The ratios of a frame in the block that was read last: those of the labels that alpha and beta need, and before all
  // labels 0.
  Ratios ratios(int64_t t) const { return {ratios_at(t), frame_size(), 0}; }
  int64_t frame_size() const { return N + pairs; }

  // The ratios of all classes at a group of frames, [class][frame], if they are kept. With these factors, one for each
  // frame, they are the softmax.
  const F* class_ratios(int64_t t) const { return kept + (t - block_begin) * kept_classes(); }
  const F* softmax_factors_at(int64_t t) const { return softmax_factors + t; }

  // Of the ratios of frame t, and of the others in its group.
  Growth growth(int64_t t) const { return growths[t / kFrames]; }

  // The labels of frames [begin, end) that are computed: what the slots of the window need. Beta's need the label
  // before them too. To leave out a few labels of a table costs as much as it saves.
  Window labels_of(int64_t begin, int64_t end) const {
    if (by_table && pairs <= 6 * N) return {0, pairs};
    const Window window = group_window(begin, end - begin, in.length, in.L);
    return {max_of<int64_t>(max_of(window.begin, slots.begin) / N * N - N, 0), min_of(window.end, slots.end)};
  }

 private:
  F* ratios_at(int64_t t) const { return y + (t - block_begin) * frame_size() + N; }
  static constexpr bool kRegisters = CTC_VECTOR_BYTES == 64;

  int64_t kept_classes() const { return padded<F>(classes); }

  bool read_group(int64_t begin, int64_t end, RunningProduct* product) {
    Vec least = splat<Vec>(F(1)), most = least;
    if (!(by_table ? read_narrow(begin, end, product, least, most) : read_wide(begin, end, product, least, most)))
      return false;
    // The largest logit has one ratio at each frame, in the first lanes as in the others.
    const F smallest = -max_of_lanes(-least), largest = max_over<1, kFrames>(first_quad<F>(most))[0];
    if (!(smallest >= F(0x1p-126))) return false;
    growths[begin / kFrames] = {-exponent_of(smallest), exponent_of(largest) + 1};
    return true;
  }

  // Multiplies what divides the paths through frame t into `product`.
  bool keep(int64_t t, Normaliser<F> n, const RatioBase<F>& base, RunningProduct* product) {
    product->multiply(n.sum * double(base.of_top[0]));
    if (!in.softmax) product->log_of_others -= n.shift;
    return SequenceRows::keep(t, n);
  }
  // The same for the frames of a table. Those behind the last one are copies of it.
  bool keep_group(int64_t begin, int64_t count, Vec of_top, RunningProduct* product) {
    const Quad<double> sums = load_quad(table.sum), divisors = sums * first_quad<double>(of_top);
    const Quad<double> counted = Quad<int64_t>{0, 1, 2, 3} < count ? divisors : Quad<double>{} + 1;
    // Once for all, because each would have to wait for the one before.
    product->multiply((counted[0] * counted[2]) * (counted[1] * counted[3]));
    for (int64_t k = 0; !in.softmax && k < count; ++k) product->log_of_others -= table.shift[k];
    if (keeps_classes) {
      store_quad(softmax_factors + begin, first_quad<F>(1 / divisors));
    } else {
      store_quad(shift + begin, load_quad(table.shift));
      store_quad(scale + begin, first_quad<F>(1 / sums));
    }
    return sums[0] + sums[1] + sums[2] + sums[3] >= kFrames;  // each is 1 or more, or NaN
  }

  bool read_narrow(int64_t begin, int64_t end, RunningProduct* product, Vec& least, Vec& most_ratio) {
    F* to[kFrames];
    for (int k = 0; k < kFrames; ++k) to[k] = ratios_at(begin) + k * frame_size();
    if (keeps_classes) table.p = kept + (begin - block_begin) * kept_classes();
    return ratios_of_labels(begin, end, to, least, most_ratio) &&
           (product == nullptr || keep_group(begin, end - begin, most_ratio, product));
  }

  CTC_INLINE bool ratios_of_labels(int64_t begin, int64_t end, F* const (&to)[kFrames], Vec& least, Vec& most_ratio) {
    // All that is needed of a base, because to hand on the whole of it takes time.
    const auto of_top = [&](const RatioBase<F>& base) {
      most_ratio = base.of_top;
      return base.fits;
    };
    if (group_may_be_alike(begin, end)) {
      const Quad<int64_t> dithers = {dither_of(begin), dither_of(begin + 1), dither_of(begin + 2),
                                     dither_of(begin + 3)};
      const Vec top = tabulate_group(begin, end);
      const RatioBase<F> base = in.softmax ? table.read_dithered_ratios(top, in.V, in.blank, dithers)
                                           : table.read_dithered_ratios_of_scores(in.V, most, in.blank, dithers);
      least = gather_least(table.p, places, labels_of(begin, end), to);
      return of_top(base);
    }
    if constexpr (kRegisters) {
      if (by_registers) {
        const F* rows[kFrames];
        prefetch_next_group(begin), rows_of_group(begin, end, rows);
        if (in.V <= 2 * N)
          return of_top(read_registers<2>(rows, in.V, places, pairs, in.blank, to, keeps_classes, table, least));
        return of_top(read_registers<4>(rows, in.V, places, pairs, in.blank, to, keeps_classes, table, least));
      }
    }
    const Window labels = labels_of(begin, end);
    const Vec top = tabulate_group(begin, end);
    if (!by_label) {
      const RatioBase<F> base =
          in.softmax ? table.read_ratios(top, in.V, in.blank) : table.read_ratios_of_scores(in.V, most, in.blank);
      least = gather_least(table.p, places, labels, to);
      return of_top(base);
    }
    // There are fewer labels than classes, so their logits are gathered, and not all classes become ratios.
    table.read_logits(top, in.V);
    const RatioBase<F> base = table.ratio_base(in.blank, tiled<F>(load_quad(table.shift)));
    least = gather_least(table.x, places, labels, to, [&](Vec x) { return base.ratio(x); });
    return of_top(base);
  }

  bool read_wide(int64_t begin, int64_t end, RunningProduct* product, Vec& least, Vec& most_ratio) {
    const Window labels = labels_of(begin, end);
    const bool dithered = group_may_be_alike(begin, end);
    // Of log-scores all entries say whether they are defined.
    const Window entries = in.softmax ? labels : Window{0, pairs};
    for (int64_t t = end - 1; t >= begin; --t) {
      const bool first = product != nullptr;
      Normaliser<F> n = {shift[t], 1};
      if (first && in.softmax) n = normalise_row(t);
      read_entries(t, entries.begin, min_of(entries.end, in.L));
      for (int64_t i = max_of(in.L, entries.begin); i < entries.end; ++i) raw[i] = raw[pairs];
      if (first && !in.softmax) n = reference_of_scores(raw, pairs + N);
      RatioBase<F> base(load<Vec>(raw + pairs), splat<Vec>(n.shift));
      if (base.fits && dithered)
        base.of_top = dithered_ratio(splat<Vec>(n.shift), Quad<F>{} + raw[pairs], Quad<int64_t>{} + dither_of(t));
      if (!base.fits || (first && !keep(t, n, base, product))) return false;
      most_ratio = max_of(most_ratio, base.of_top);
      if (dithered)
        make_dithered_ratios(t, labels, ratios_at(t), least);
      else
        make_ratios(base, raw, labels, ratios_at(t), least);
    }
    // Alpha takes whole groups.
    for (int64_t t = end; t < begin + kFrames; ++t)
      __builtin_memcpy(ratios_at(t), ratios_at(end - 1), pairs * sizeof(F));
    return true;
  }

  // make_ratios for frames that are alike.
  void make_dithered_ratios(int64_t t, Window labels, F* to, Vec& least) const {
    const Quad<F> base = Quad<F>{} + raw[pairs];
    const Quad<int64_t> dithers = Quad<int64_t>{} + dither_of(t);
    for (int64_t i = labels.begin; i < labels.end; i += N) {
      dithered_ratios(raw + i, N, base, dithers, to + i);
      least = min_of(least, load<Vec>(to + i));
    }
  }

  // to = the ratios of the labels' logits.
  void make_ratios(const RatioBase<F>& base, const F* x, Window labels, F* to, Vec& least) const {
    for (int64_t i = labels.begin; i < labels.end; i += N) {
      const Vec ratio = base.ratio(load<Vec>(x + i));
      least = min_of(least, ratio);
      store(to + i, ratio);
    }
  }

  const bool by_registers;             // of narrow rows: see ratios_of_labels
  int64_t block = 1, block_begin = 0;  // frames of a block; the first one of the block that was read last
  Window slots = {};                   // in that block
  Growth* growths;                     // of each group of frames
  F* kept;                             // ratios of all classes of a block of frames, [group][class][frame]
  F* softmax_factors;                  // of each frame
  F* y;                                // ratios of a block of frames, [frame][margin, pairs]
};

}  // namespace
}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// XLA's calls -> ctc.h. The only CPU file that knows XLA's types.
#include <algorithm>
#include <exception>
#include <limits>
#include <new>
#include <string>
#include <type_traits>

#include "../common/ffi_targets.h"
#include "../common/handlers.h"
#include "ctc.h"

namespace jax_ctc {
namespace {

class PoolExecutor final : public Executor {
 public:
  explicit PoolExecutor(ffi::ThreadPool pool) : pool_(pool) {}
  int64_t threads() const override { return pool_.num_threads(); }
  void schedule(std::function<void()> work) override { pool_.Schedule(std::move(work)); }

 private:
  ffi::ThreadPool pool_;
};

// No exception may reach XLA, because it would end the process. XLA does not use the results of a call that failed.
template <class Run>
ffi::Error guarded(Run run, const char* less = "Shorter sequences, shorter labels or fewer threads (num_threads)") {
  try {
    run();
    return ffi::Error::Success();
  } catch (const std::bad_alloc& error) {
    return {ffi::ErrorCode::kResourceExhausted,
            std::string("jax_ctc: out of memory (") + error.what() + "). " + less + " need less."};
  } catch (const std::exception& error) {
    return {ffi::ErrorCode::kInternal, std::string("jax_ctc: ") + error.what()};
  }
}

#define CTC_DECODE(softmax)                                                                                          \
  const ffi::ErrorOr<Batch> batch = decode(acts, labels, lengths, {time_axis, time_moved, blank, threads, softmax}); \
  if (!batch.has_value()) return batch.error();                                                                      \
  const Problem p = {*batch, threads > 0 ? threads : std::numeric_limits<int64_t>::max()};                           \
  PoolExecutor executor(pool)

template <bool softmax> ffi::Error loss_handler(ffi::ThreadPool pool, CTC_OPERANDS, Result cost, CTC_ATTRIBUTES) {
  CTC_DECODE(softmax);
  if (!LossTarget::fits(p, *cost)) return mismatch(name_of<LossTarget>(softmax));
  return guarded([&] { loss(p, cost->untyped_data(), executor); });
}

template <bool softmax> ffi::Error forward_handler(ffi::ThreadPool pool, CTC_OPERANDS, Result cost, Result rows,
                                                   Result columns, CTC_ATTRIBUTES) {
  CTC_DECODE(softmax);
  if (!ForwardTarget::fits(p, *cost, *rows, *columns)) return mismatch(name_of<ForwardTarget>(softmax));
  return guarded([&] { forward(p, cost->untyped_data(), {rows->untyped_data(), columns->untyped_data()}, executor); });
}

template <bool softmax> ffi::Error tangent_handler(ffi::ThreadPool pool, CTC_OPERANDS, Buffer rows, Buffer columns,
                                                   Buffer direction, Result tangents, CTC_ATTRIBUTES) {
  CTC_DECODE(softmax);
  if (!TangentTarget::fits(p, rows, columns, direction, *tangents)) return mismatch(name_of<TangentTarget>(softmax));
  return guarded([&] {
    tangent(p, {rows.untyped_data(), columns.untyped_data()}, direction.untyped_data(), tangents->untyped_data(),
            executor);
  });
}

template <bool softmax> ffi::Error cotangent_handler(ffi::ThreadPool pool, CTC_OPERANDS, Buffer rows, Buffer columns,
                                                     Buffer cotangents, Result gradient, CTC_ATTRIBUTES) {
  CTC_DECODE(softmax);
  if (!CotangentTarget::fits(p, rows, columns, cotangents, *gradient))
    return mismatch(name_of<CotangentTarget>(softmax));
  return guarded([&] {
    cotangent(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(), gradient->untyped_data(),
              executor);
  });
}

template <class Target, bool softmax> ffi::Error hvp_handler(ffi::ThreadPool pool, CTC_OPERANDS, Buffer rows,
                                                             Buffer columns, Buffer cotangents, Buffer direction,
                                                             Result out, CTC_ATTRIBUTES) {
  CTC_DECODE(softmax);
  if (!Target::fits(p, rows, columns, cotangents, direction, *out)) return mismatch(name_of<Target>(softmax));
  constexpr bool kMasked = std::is_same_v<Target, MaskedHvpTarget>;
  return guarded([&] {
    hvp(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(), direction.untyped_data(), kMasked,
        out->untyped_data(), executor);
  });
}

ffi::Error align_handler(ffi::ThreadPool pool, CTC_OPERANDS, IntsResult path, IntsResult label_index, Result score,
                         CTC_ATTRIBUTES, bool softmax, bool star) {
  CTC_DECODE(softmax);
  if (!AlignTarget::fits(p, *path, *label_index, *score)) return mismatch(AlignTarget::name);
  const Alignment out = {path->typed_data(), label_index->typed_data(), score->untyped_data()};
  return guarded([&] { align(p, star, out, executor); });
}

ffi::Error align_handler_v1(ffi::ThreadPool pool, CTC_OPERANDS, IntsResult path, IntsResult label_index, Result score,
                            CTC_ATTRIBUTES, bool softmax) {
  return align_handler(pool, acts, labels, lengths, path, label_index, score, time_axis, time_moved, blank, threads,
                       softmax, false);
}

// Every symbol must be a class of acts, or below 0, because kernels read rows at the symbols without a check.
bool symbols_in_range(const Problem& p) {
  const int64_t n = p.shape.sequences() * p.shape.L;
  return std::all_of(p.labels, p.labels + n, [&](int32_t symbol) { return symbol < p.shape.V; });
}
ffi::Error bad_symbol(const char* target) {
  return ffi::Error::InvalidArgument(std::string("jax_ctc: a symbol of ") + target +
                                     " is no class of acts: expected entries below V");
}

ffi::Error sums_handler(ffi::ThreadPool pool, CTC_OPERANDS, Result top, Result ties, Result tail, Result scores,
                        CTC_ATTRIBUTES) {
  CTC_DECODE(true);
  if (!SumsTarget::fits(p, *top, *ties, *tail, *scores)) return mismatch(SumsTarget::name);
  if (!symbols_in_range(p)) return bad_symbol(SumsTarget::name);
  return guarded([&] {
    sums(p, {top->untyped_data(), ties->untyped_data(), tail->untyped_data(), scores->untyped_data()}, executor);
  });
}

ffi::Error sums_cotangent_handler(ffi::ThreadPool pool, CTC_OPERANDS, Buffer top, Buffer ct_tail, Buffer ct_scores,
                                  Result out, CTC_ATTRIBUTES) {
  CTC_DECODE(true);
  if (!SumsCotangentTarget::fits(p, top, ct_tail, ct_scores, *out)) return mismatch(SumsCotangentTarget::name);
  if (!symbols_in_range(p)) return bad_symbol(SumsCotangentTarget::name);
  return guarded([&] {
    sums_cotangent(p, top.untyped_data(), ct_tail.untyped_data(), ct_scores.untyped_data(), out->untyped_data(),
                   executor);
  });
}

ffi::Error top_class_handler(ffi::ThreadPool pool, CTC_OPERANDS, IntsResult best, Result top, Result others,
                             CTC_ATTRIBUTES) {
  CTC_DECODE(true);
  if (!TopClassTarget::fits(p, *best, *top, *others)) return mismatch(TopClassTarget::name);
  return guarded([&] { top_class(p, {best->typed_data(), top->untyped_data(), others->untyped_data()}, executor); });
}

ffi::Error beam_handler(ffi::ThreadPool pool, CTC_OPERANDS, IntsResult found, IntsResult label_lengths, Result scores,
                        CTC_ATTRIBUTES, int64_t beam_width, int64_t top_paths, int64_t classes_per_frame,
                        bool softmax) {
  CTC_DECODE(softmax);
  if (!BeamTarget::fits(p, top_paths, *found, *label_lengths, *scores)) return mismatch(BeamTarget::name);
  if (beam_width < top_paths || beam_width > std::numeric_limits<int32_t>::max() || classes_per_frame < 0)
    return ffi::Error::InvalidArgument(
        "jax_ctc: beam_width must be top_paths or more, and classes_per_frame 0 or more");
  const BeamResults out = {found->typed_data(), label_lengths->typed_data(), scores->untyped_data()};
  return guarded([&] { beam(p, {beam_width, top_paths, classes_per_frame}, out, executor); },
                 "Shorter sequences, a narrower beam (beam_width) or fewer threads (num_threads)");
}

template <class Target> auto binding() {
  return with_attributes(Target::bind(with_operands(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>())));
}
XLA_FFI_DEFINE_HANDLER(kLoss, loss_handler<true>, binding<LossTarget>());
XLA_FFI_DEFINE_HANDLER(kLossOfScores, loss_handler<false>, binding<LossTarget>());
XLA_FFI_DEFINE_HANDLER(kForward, forward_handler<true>, binding<ForwardTarget>());
XLA_FFI_DEFINE_HANDLER(kForwardOfScores, forward_handler<false>, binding<ForwardTarget>());
XLA_FFI_DEFINE_HANDLER(kTangent, tangent_handler<true>, binding<TangentTarget>());
XLA_FFI_DEFINE_HANDLER(kTangentOfScores, tangent_handler<false>, binding<TangentTarget>());
XLA_FFI_DEFINE_HANDLER(kCotangent, cotangent_handler<true>, binding<CotangentTarget>());
XLA_FFI_DEFINE_HANDLER(kCotangentOfScores, cotangent_handler<false>, binding<CotangentTarget>());
XLA_FFI_DEFINE_HANDLER(kHvp, (hvp_handler<HvpTarget, true>), binding<HvpTarget>());
XLA_FFI_DEFINE_HANDLER(kHvpOfScores, (hvp_handler<HvpTarget, false>), binding<HvpTarget>());
XLA_FFI_DEFINE_HANDLER(kMaskedHvp, (hvp_handler<MaskedHvpTarget, true>), binding<MaskedHvpTarget>());
XLA_FFI_DEFINE_HANDLER(kMaskedHvpOfScores, (hvp_handler<MaskedHvpTarget, false>), binding<MaskedHvpTarget>());
XLA_FFI_DEFINE_HANDLER(kAlign, align_handler, AlignTarget::with_options(binding<AlignTarget>()));
XLA_FFI_DEFINE_HANDLER(kAlignV1, align_handler_v1, binding<AlignTargetV1>().Attr<bool>("softmax"));
XLA_FFI_DEFINE_HANDLER(kSums, sums_handler, binding<SumsTarget>());
XLA_FFI_DEFINE_HANDLER(kSumsCotangent, sums_cotangent_handler, binding<SumsCotangentTarget>());
XLA_FFI_DEFINE_HANDLER(kTopClass, top_class_handler, binding<TopClassTarget>());
XLA_FFI_DEFINE_HANDLER(kBeam, beam_handler, BeamTarget::with_options(binding<BeamTarget>()));

}  // namespace

std::vector<std::pair<const char*, Handler*>> handlers() {
  return {{LossTarget::name, kLoss},
          {LossTarget::of_scores, kLossOfScores},
          {ForwardTarget::name, kForward},
          {ForwardTarget::of_scores, kForwardOfScores},
          {TangentTarget::name, kTangent},
          {TangentTarget::of_scores, kTangentOfScores},
          {CotangentTarget::name, kCotangent},
          {CotangentTarget::of_scores, kCotangentOfScores},
          {HvpTarget::name, kHvp},
          {HvpTarget::of_scores, kHvpOfScores},
          {MaskedHvpTarget::name, kMaskedHvp},
          {MaskedHvpTarget::of_scores, kMaskedHvpOfScores},
          {AlignTarget::name, kAlign},
          {SumsTarget::name, kSums},
          {SumsCotangentTarget::name, kSumsCotangent},
          {TopClassTarget::name, kTopClass},
          {BeamTarget::name, kBeam},
          {AlignTargetV1::name, kAlignV1}};
}

std::pair<int, int> ffi_api_version() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// XLA's calls -> ctc.h. The only CPU file that knows XLA's types.
#include "ffi.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <new>
#include <string>

#include "../common/ffi_decode.h"
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

// No exception enters XLA: it would end the process. Results of a call that failed are not used.
template <class Run> ffi::Error guarded(Run run) {
  try {
    run();
    return ffi::Error::Success();
  } catch (const std::bad_alloc& error) {
    return {ffi::ErrorCode::kResourceExhausted,
            std::string("jax_ctc: out of memory (") + error.what() +
                "). Shorter sequences, shorter labels or fewer threads (num_threads) need less."};
  } catch (const std::exception& error) {
    return {ffi::ErrorCode::kInternal, std::string("jax_ctc: ") + error.what()};
  }
}

#define CTC_OPERANDS ffi::ThreadPool pool, Buffer acts, Ints labels, Ints lengths
#define CTC_ATTRIBUTES int64_t time_axis, bool time_moved, int64_t blank, int64_t threads
#define CTC_DECODE                                                                                          \
  const ffi::ErrorOr<Batch> batch = decode(acts, labels, lengths, {time_axis, time_moved, blank, threads}); \
  if (!batch.has_value()) return batch.error();                                                             \
  const Problem p = {*batch, threads > 0 ? threads : std::numeric_limits<int64_t>::max()};                  \
  PoolExecutor executor(pool)

ffi::Error loss_handler(CTC_OPERANDS, Result cost, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!computed(p, *cost, p.shape.sequences())) return mismatch("jax_ctc_loss");
  return guarded([&] { loss(p, cost->untyped_data(), executor); });
}

ffi::Error forward_handler(CTC_OPERANDS, Result cost, Result rows, Result columns, CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!computed(p, *cost, p.shape.sequences()) || !residuals(p, *rows, *columns)) return mismatch("jax_ctc_forward");
  return guarded([&] { forward(p, cost->untyped_data(), {rows->untyped_data(), columns->untyped_data()}, executor); });
}

ffi::Error tangent_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer direction, Result tangents,
                           CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !like_acts(p, acts, direction) || !computed(p, *tangents, p.shape.sequences()))
    return mismatch("jax_ctc_tangent");
  return guarded([&] {
    tangent(p, {rows.untyped_data(), columns.untyped_data()}, direction.untyped_data(), tangents->untyped_data(),
            executor);
  });
}

ffi::Error cotangent_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer cotangents, Result gradient,
                             CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !computed(p, cotangents, p.shape.sequences()) || !like_acts(p, acts, *gradient))
    return mismatch("jax_ctc_cotangent");
  return guarded([&] {
    cotangent(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(), gradient->untyped_data(),
              executor);
  });
}

ffi::Error hvp_handler(CTC_OPERANDS, Buffer rows, Buffer columns, Buffer cotangents, Buffer direction, Result out,
                       CTC_ATTRIBUTES) {
  CTC_DECODE;
  if (!residuals(p, rows, columns) || !computed(p, cotangents, p.shape.sequences()) || !like_acts(p, acts, direction) ||
      !like_acts(p, acts, *out))
    return mismatch("jax_ctc_hvp");
  return guarded([&] {
    hvp(p, {rows.untyped_data(), columns.untyped_data()}, cotangents.untyped_data(), direction.untyped_data(),
        out->untyped_data(), executor);
  });
}

// Kernels pick symbols from rows without a check, so every symbol must be a class of acts, or below 0.
bool symbols_in_range(const Problem& p) {
  const int64_t n = p.shape.sequences() * p.shape.L;
  return std::all_of(p.labels, p.labels + n, [&](int32_t symbol) { return symbol < p.shape.V; });
}
ffi::Error bad_symbol(const char* target) {
  return ffi::Error::InvalidArgument(std::string("jax_ctc: a symbol of ") + target +
                                     " is no class of acts: expected entries below V");
}

ffi::Error sums_handler(CTC_OPERANDS, Result top, Result ties, Result tail, Result scores, CTC_ATTRIBUTES) {
  CTC_DECODE;
  const int64_t rows = p.shape.rows();
  if (!computed(p, *top, rows) || !computed(p, *ties, rows) || !computed(p, *tail, rows) ||
      !computed(p, *scores, rows * p.shape.L))
    return mismatch("jax_ctc_sums");
  if (!symbols_in_range(p)) return bad_symbol("jax_ctc_sums");
  return guarded([&] {
    sums(p, {top->untyped_data(), ties->untyped_data(), tail->untyped_data(), scores->untyped_data()}, executor);
  });
}

ffi::Error sums_cotangent_handler(CTC_OPERANDS, Buffer top, Buffer ct_tail, Buffer ct_scores, Result out,
                                  CTC_ATTRIBUTES) {
  CTC_DECODE;
  const int64_t rows = p.shape.rows();
  if (!computed(p, top, rows) || !computed(p, ct_tail, rows) || !computed(p, ct_scores, rows * p.shape.L) ||
      !like_acts(p, acts, *out))
    return mismatch("jax_ctc_sums_cotangent");
  if (!symbols_in_range(p)) return bad_symbol("jax_ctc_sums_cotangent");
  return guarded([&] {
    sums_cotangent(p, top.untyped_data(), ct_tail.untyped_data(), ct_scores.untyped_data(), out->untyped_data(),
                   executor);
  });
}

// acts, labels, lengths; then per target.
auto operands() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Buffer>().Arg<Ints>().Arg<Ints>(); }
XLA_FFI_DEFINE_HANDLER(kLoss, loss_handler, with_attributes(operands().Ret<Buffer>()));  // cost
XLA_FFI_DEFINE_HANDLER(kForward, forward_handler,
                       with_attributes(operands().Ret<Buffer>().Ret<Buffer>().Ret<Buffer>()));  // cost, rows, columns
XLA_FFI_DEFINE_HANDLER(kTangent, tangent_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()     // rows
                                           .Arg<Buffer>()     // columns
                                           .Arg<Buffer>()     // direction
                                           .Ret<Buffer>()));  // tangents
XLA_FFI_DEFINE_HANDLER(kCotangent, cotangent_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()     // rows
                                           .Arg<Buffer>()     // columns
                                           .Arg<Buffer>()     // cotangents
                                           .Ret<Buffer>()));  // gradient
XLA_FFI_DEFINE_HANDLER(kHvp, hvp_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()     // rows
                                           .Arg<Buffer>()     // columns
                                           .Arg<Buffer>()     // cotangents
                                           .Arg<Buffer>()     // direction
                                           .Ret<Buffer>()));  // out

XLA_FFI_DEFINE_HANDLER(kSums, sums_handler,
                       with_attributes(operands()
                                           .Ret<Buffer>()     // top
                                           .Ret<Buffer>()     // ties
                                           .Ret<Buffer>()     // tail
                                           .Ret<Buffer>()));  // scores
XLA_FFI_DEFINE_HANDLER(kSumsCotangent, sums_cotangent_handler,
                       with_attributes(operands()
                                           .Arg<Buffer>()     // top
                                           .Arg<Buffer>()     // cotangent of tail
                                           .Arg<Buffer>()     // cotangent of scores
                                           .Ret<Buffer>()));  // that of acts

}  // namespace

std::vector<std::pair<const char*, Handler*>> cpu_handlers() {
  return {{"jax_ctc_loss_v1", kLoss},
          {"jax_ctc_forward_v1", kForward},
          {"jax_ctc_tangent_v1", kTangent},
          {"jax_ctc_cotangent_v1", kCotangent},
          {"jax_ctc_hvp_v1", kHvp},
          {"jax_ctc_sums_v1", kSums},
          {"jax_ctc_sums_cotangent_v1", kSumsCotangent}};
}

std::pair<int, int> ffi_api_version() { return {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR}; }

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace jax_ctc {
namespace {

// A helper may start after the caller has returned. Then it touches nothing but its Job, and it shares the ownership of
// that. `body` is used only while an item is claimed, and until then the caller waits.
struct Job {
  const std::function<void(int64_t)>* body;
  int64_t items;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::atomic<bool> failed{false};
  std::exception_ptr failure;  // the first exception

  // No exception may leave a helper, because it would end the process.
  void work() noexcept {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      if (!failed.load(std::memory_order_relaxed)) run(i);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == items) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }
  void run(int64_t i) noexcept {
    try {
      (*body)(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      failed = true;
    }
  }
  bool complete() const { return done.load(std::memory_order_acquire) == items; }
};

// A thread that sleeps takes 30 us and more to wake, and the helpers' last items seldom take longer. So the caller
// looks for their end before it sleeps. Meanwhile any thread that is ready to run may have its processor.
constexpr std::chrono::microseconds kBeforeSleep(100);

void look_out_for(const Job& job) {
  const auto end = std::chrono::steady_clock::now() + kBeforeSleep;
  while (!job.complete() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
}

}  // namespace

void parallel_for(Executor& executor, int64_t threads, int64_t items, const std::function<void(int64_t)>& body) {
  const int64_t helpers = std::min({threads, executor.threads(), items}) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < items; ++i) body(i);
    return;
  }
  auto job = std::make_shared<Job>();
  job->body = &body;
  job->items = items;
  try {
    for (int64_t k = 0; k < helpers; ++k) executor.schedule([job] { job->work(); });
  } catch (...) {
    // There is no memory for another helper. The caller takes the items itself. It still waits for the helpers that
    // were scheduled.
  }
  job->work();
  look_out_for(*job);
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->complete(); });
  if (job->failure) std::rethrow_exception(std::exchange(job->failure, nullptr));
}

}  // namespace jax_ctc

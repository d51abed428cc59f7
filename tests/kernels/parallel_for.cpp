// SPDX-License-Identifier: Apache-2.0
// What parallel_for promises where bodies throw, helpers come late or never, and several callers are at it. Built with
// the thread sanitizer by test_sanitized.py.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../kernels/cpu/parallel.h"

namespace {

using namespace jax_ctc;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("expected: %s\n", what);
  std::exit(1);
}

enum class Helpers { kCome, kComeLate, kNever, kThirdFails };

class Threads final : public Executor {
 public:
  explicit Threads(Helpers helpers) : helpers_(helpers) {}
  ~Threads() override { come(); }
  int64_t threads() const override { return 5; }
  void schedule(std::function<void()> work) override {
    if (helpers_ == Helpers::kThirdFails && waiting_.size() + started_.size() == 2) throw std::bad_alloc();
    if (helpers_ == Helpers::kCome || helpers_ == Helpers::kThirdFails)
      started_.emplace_back(std::move(work));
    else
      waiting_.push_back(std::move(work));
  }

 private:
  void come() {
    if (helpers_ == Helpers::kComeLate)
      for (std::function<void()>& work : waiting_) started_.emplace_back(work);
    for (std::thread& t : started_) t.join();
  }
  Helpers helpers_;
  std::vector<std::function<void()>> waiting_;
  std::vector<std::thread> started_;
};

// A stack frame that is gone when parallel_for has returned. Plain ints, so that a race is seen.
void every_item_once(Helpers helpers, int64_t threads, int64_t items) {
  Threads executor(helpers);
  std::unique_ptr<int[]> calls(new int[items + 1]());
  parallel_for(executor, threads, items, [&](int64_t i) { ++calls[i]; });
  for (int64_t i = 0; i < items; ++i) expect(calls[i] == 1, "each item once");
}

template <class Exception> void an_exception_reaches_the_caller(Helpers helpers, int64_t threads, int64_t thrower) {
  constexpr int64_t kItems = 400;
  Threads executor(helpers);
  std::unique_ptr<int[]> calls(new int[kItems]());
  std::atomic<bool> thrown{false};
  std::atomic<int> running{0}, begun_afterwards{0};
  bool caught = false;
  try {
    parallel_for(executor, threads, kItems, [&](int64_t i) {
      ++running, ++calls[i];
      begun_afterwards += thrown.load();
      if (i >= thrower) {
        thrown = true;
        --running;
        throw Exception();
      }
      std::this_thread::yield();
      --running;
    });
  } catch (const Exception&) {
    caught = true;
  }
  expect(caught, "the body's exception");
  expect(running == 0, "nobody at work after the call");
  // Others may each have claimed an item before they could know.
  expect(begun_afterwards < 64, "the rest of the items skipped");
  for (int64_t i = 0; i < kItems; ++i) expect(calls[i] <= 1, "no item twice");
  calls.reset();  // a helper that is still at it would be seen here
}

struct Unwell : std::runtime_error {
  Unwell() : std::runtime_error("unwell") {}
};

class Counter final : public Executor {
 public:
  int64_t helpers = 0;
  int64_t threads() const override { return 5; }
  void schedule(std::function<void()>) override { ++helpers; }
};

void no_more_threads_than_asked_for(int64_t threads, int64_t items) {
  Counter executor;
  parallel_for(executor, threads, items, [](int64_t) {});
  expect(executor.helpers == std::min({threads, executor.threads(), items}) - 1, "no more threads than asked for");
}

void all() {
  for (const int64_t threads : {1, 2, 99})
    for (const int64_t items : {1, 3, 100}) no_more_threads_than_asked_for(threads, items);
  for (const Helpers helpers : {Helpers::kCome, Helpers::kComeLate, Helpers::kNever, Helpers::kThirdFails})
    for (const int64_t threads : {1, 2, 99}) {
      for (const int64_t items : {0, 1, 3, 100}) every_item_once(helpers, threads, items);
      for (const int64_t thrower : {0, 7, 399}) {
        an_exception_reaches_the_caller<std::bad_alloc>(helpers, threads, thrower);
        an_exception_reaches_the_caller<Unwell>(helpers, threads, thrower);
      }
    }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::thread> callers;
    for (int k = 0; k < 3; ++k) callers.emplace_back(all);
    for (std::thread& t : callers) t.join();
  }
  std::printf("%d rounds\n", rounds);
}

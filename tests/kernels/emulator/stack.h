// SPDX-License-Identifier: Apache-2.0
// For the emulator: stacks that take turns in one thread.
#pragma once

#include <ucontext.h>

#include <vector>

namespace emulator {

// swapcontext asks the system for the mask of signals whenever stacks change, which took more than half of the time of
// a run. So it only starts a stack. From then on the compiler's own jumps change stacks. Sanitizers are told nothing:
// no frame is left for good before its stack starts anew.
#define CTC_CHANGES_STACKS __attribute__((noinline, no_sanitize("address", "thread", "undefined")))

class Stack {
 public:
  // What runs on it from its next turn on. It must not return.
  void start(void (*run)()) {
    if (memory_.empty()) memory_.resize(kBytes);
    getcontext(&context_);
    context_.uc_stack.ss_sp = memory_.data(), context_.uc_stack.ss_size = kBytes, context_.uc_link = nullptr;
    makecontext(&context_, run, 0);
    started_ = false;
  }
  // Runs until `pause`.
  CTC_CHANGES_STACKS void take_turn() {
    if (__builtin_setjmp(caller_) != 0) return;
    if (started_) jump(own_);
    started_ = true;
    ucontext_t nobody_returns_to;
    swapcontext(&nobody_returns_to, &context_);
  }
  // Called on this stack. It returns when its next turn begins.
  CTC_CHANGES_STACKS void pause() {
    if (__builtin_setjmp(own_) == 0) jump(caller_);
  }

  const char* begin() const { return memory_.data(); }
  static constexpr size_t kBytes = 128 << 10;

 private:
  CTC_CHANGES_STACKS static void jump(void** to) { __builtin_longjmp(to, 1); }

  std::vector<char> memory_;
  ucontext_t context_;
  bool started_ = false;
  void *own_[5], *caller_[5];
};

#undef CTC_CHANGES_STACKS

}  // namespace emulator

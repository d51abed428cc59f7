// SPDX-License-Identifier: Apache-2.0
// Fork and join over somebody else's threads, in which the caller takes part.
#pragma once

#include <cstdint>
#include <functional>

namespace jax_ctc {

class Executor {
 public:
  virtual ~Executor() = default;
  virtual int64_t threads() const = 0;  // 1: there is only the caller
  virtual void schedule(std::function<void()> work) = 0;
};

// Calls body(0), ..., body(items - 1), each once, in no order, on at most `threads` threads. The caller takes items
// too. It waits only for items that another thread has started, so it cannot deadlock if the pool never runs the
// helpers.
//
// If a body throws, items that nobody has started yet are skipped. When no thread is at work any more, the caller gets
// the first exception.
void parallel_for(Executor& executor, int64_t threads, int64_t items, const std::function<void(int64_t)>& body);

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// Fork and join on the threads of somebody else. The caller takes part.
#pragma once

#include <cstdint>
#include <functional>

namespace jax_ctc {

class Executor {
 public:
  virtual ~Executor() = default;
  virtual int64_t threads() const = 0;  // the caller is one of them
  virtual void schedule(std::function<void()> work) = 0;
};

// Calls body(0), ..., body(items - 1) once each, in any order, on at most `threads` threads. The caller takes items
// too. It waits only for items that another thread has started. So it cannot deadlock if the pool never runs the
// helpers.
//
// If a body throws, items that have not been started are skipped. When no thread works any more, this rethrows the
// first exception.
void parallel_for(Executor& executor, int64_t threads, int64_t items, const std::function<void(int64_t)>& body);

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
// How values of the lattice lie in memory. They are moved 8 or 16 bytes at a time, so a Dual has one number too many.
// Host and device.
#pragma once

#include "../common/dual.h"

namespace jax_ctc {
namespace cuda {

template <class F> struct alignas(16) DualCell {
  F m;
  Integer<F> e;
  F d, unused;
};

template <class Value> struct CellOf {
  using type = Value;
};
template <class F> struct CellOf<Dual<F>> {
  using type = DualCell<F>;
};
template <class Value> using Cell = typename CellOf<Value>::type;

}  // namespace cuda
}  // namespace jax_ctc

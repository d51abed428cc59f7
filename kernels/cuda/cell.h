// SPDX-License-Identifier: Apache-2.0
// How values of the lattice lie in memory. A load or store moves 8 or 16 bytes. So a Dual, which has three numbers, is
// padded to four.
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

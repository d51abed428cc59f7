// SPDX-License-Identifier: Apache-2.0
// What an occupancy is: a share of a frame's sum (docs/ctc.md, eq. 8 and 13). Host and device, scalars and vectors.
#pragma once

#include "dual.h"

namespace jax_ctc {

// alpha before a frame's emission, times beta after it: a plain number, of Duals with its derivative.
template <class Value> using StateProduct = decltype(product(Value{}, Value{}, Integer<decltype(Value::m)>{}));

// Maps the products of some states, or of a class, to their share of `sum`, the products of all states of the frame.
// Every frame has the same sum but for rounding. With float mantissas, divided by its own sum, a frame's occupancies
// are right to 5e-7 at T = 10,000, because what rounding did to alpha and beta on the way cancels. Divided by the
// sequence's total they are right to 4e-6.
template <class F> struct Share {
  F scale;
  explicit CTC_INLINE Share(F sum) : scale(1 / sum) {}
  template <class V> CTC_INLINE V operator()(V product) const { return product * scale; }
};

// How the share changes along the direction. The changes of a frame add up to 0.
template <class F> struct Share<Number<F>> {
  F scale, mean;
  explicit CTC_INLINE Share(Number<F> sum) : scale(1 / sum.value), mean(sum.change * scale) {}
  template <class V> CTC_INLINE V operator()(Number<V> product) const {
    return (product.change - product.value * mean) * scale;
  }
};

}  // namespace jax_ctc

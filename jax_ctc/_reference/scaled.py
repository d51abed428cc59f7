# SPDX-License-Identifier: Apache-2.0
"""Numbers m * 2^e as JAX arrays, as kernels/common/scaled.h has them in C++.

Each exponent is an integer of its own, so nothing underflows or overflows. Exponents have no
tangent: the tangent of m shares the exponent of m.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

NONE = -(1 << 28)  # exponent of a state that was not reached
DEAD = -(1 << 26)  # exponent of an emission of probability 0
NO_PATH = DEAD + (1 << 22)  # a total with a smaller exponent contains a dead emission
# ln 2 in three parts. The product of one of the first two with an integer below 2^18 is exact.
LN2 = (0.6875, float.fromhex("0x1.7p-8"), float.fromhex("0x1.0bfbe8e7bcd5ep-15"))


class Scaled(NamedTuple):
    m: Array
    e: Array  # integers as wide as m

    def at(self, index: Array) -> "Scaled":
        """Returns the states (N,) at the given indices (N,), of states (N, S)."""
        pick = index[:, None]
        return Scaled(*(jnp.take_along_axis(x, pick, axis=-1)[:, 0] for x in self))


def _layout(dtype: np.dtype) -> tuple[type[np.signedinteger], int, int]:
    """Returns the integer type, the mantissa bits and the exponent bias of a dtype."""
    return (np.int64, 52, 1023) if dtype == np.float64 else (np.int32, 23, 127)


def pow2(d: Array, dtype: np.dtype) -> Array:
    """Returns 2^d for integers d up to the exponent bias, and exactly 0 for d <= -bias."""
    _, mantissa, bias = _layout(dtype)
    return lax.bitcast_convert_type((jnp.maximum(d, -bias) + bias) << mantissa, dtype)


# XLA computes m and e in loops of their own. So a sum and a product leave the exponent of m out of
# e, and `fold` moves it there now and then: otherwise the loop of e would compute all of m too.


def total(*terms: Scaled) -> Scaled:
    """Returns the sum. Its mantissa is at most that of all terms together."""
    e = terms[0].e
    for term in terms[1:]:
        e = jnp.maximum(e, term.e)
    m = sum(term.m * pow2(term.e - e, term.m.dtype) for term in terms)
    return Scaled(jnp.asarray(m), e)


def times(a: Scaled, b: Scaled) -> Scaled:
    return Scaled(a.m * b.m, a.e + b.e)


def fold(x: Scaled) -> Scaled:
    """Returns the same value with its mantissa in [1, 2). No exponent is below NONE."""
    integer, mantissa, bias = _layout(x.m.dtype)
    pattern = lax.bitcast_convert_type(lax.stop_gradient(x.m), integer)
    exponent = (pattern >> mantissa) - bias
    return Scaled(x.m * pow2(-exponent, x.m.dtype), jnp.maximum(x.e + exponent, NONE))


def log_terms(x: Scaled) -> list[Array]:
    """Returns numbers whose exact sum is the log of x."""
    e = x.e.astype(x.m.dtype)
    return [*(e * part for part in LN2), jnp.log(x.m)]


def add_exactly(total: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """Adds x to a sum (high, low), where low holds the rounding errors of high."""
    high, low = total
    added = high + x
    seen = added - high
    return added, low + ((high - (added - seen)) + (x - seen))


def where(mask: Array, a: Scaled, b: Scaled) -> Scaled:
    return Scaled(jnp.where(mask, a.m, b.m), jnp.where(mask, a.e, b.e))


def none_like(x: Array) -> Scaled:
    integer, _, _ = _layout(x.dtype)
    return Scaled(jnp.ones_like(x), jnp.full_like(x, NONE, dtype=integer))

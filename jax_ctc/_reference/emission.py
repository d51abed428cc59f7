# SPDX-License-Identifier: Apache-2.0
"""Emissions exp(x - shift) as m * 2^e, rounded with a dither (docs/ctc.md, section 3).

Emissions are rounded to the dtype of costs. In frames that differ these errors cancel for the most
part. In frames that are alike they would be the same, and alignments with many more frames of a
label would have as many times the error. So float32 emissions are computed with more digits and
rounded with a dither: in some frames to the number above, in others to the number below.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .scaled import DEAD, LN2, Scaled

FURTHEST = -4.2e7  # a logit this far from the largest of its row, in nats, counts as -inf
# (exp(r) - 1 - r - r^2 / 2) / r^3 for |r| <= ln 2 / 2: of exp(r) an error of 1.8e-10.
_REST = (0.16666666, 0.041666461, 0.0083335872, 0.0013935318, 0.00019733269)


def dithers(frames: Array) -> Array:
    """Returns numbers in [-1/2, 1/2) for the numbers of frames, int32: multiples of the golden
    ratio, of which any few that follow each other are spread evenly."""
    multiple = frames.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    return (multiple >> 8).astype(jnp.float32) * np.float32(2.0**-24) - np.float32(0.5)


def of(x: Array, shift: Array, dither: Array) -> Scaled:
    """Returns exp(x - shift) for x <= shift. `dither` is that of the frame."""
    d = x - shift
    back = d - x
    rest = lax.stop_gradient((x - (d - back)) + (-shift - back))  # the rounding error of d
    alive = d > FURTHEST
    d, rest = jnp.where(alive, d, 0), jnp.where(alive, rest, 0)
    q = lax.stop_gradient(jnp.round(d * np.log2(np.e).item()))
    high, middle, low = LN2
    exact, less = (d - q * high) - q * middle, q * low - rest
    if x.dtype == np.float64:
        m, e = jnp.exp(exact - less), q.astype(np.int64)
    else:
        r = exact - less
        rest = lax.stop_gradient((exact - r) - less)
        m, e = _exp_with_dither(r, rest, dither), q.astype(np.int32)
    return Scaled(jnp.where(alive, m, 1), jnp.where(alive, e, DEAD))


@jax.custom_jvp
def _exp_with_dither(r: Array, rest: Array, dither: Array) -> Array:
    """Returns exp(r + rest) for |r| <= ln 2 / 2 and a `rest` that r has lost to rounding."""
    # exp(r) = 1 + r + r^2 / 2 + ... The parts of r and r^2 / 2 that are multiples of 2^-23 add up
    # without an error. So it does not matter in which order XLA computes, or what it fuses.
    whole = _multiple(r, 2.0**-23)
    coarse = _multiple(r, 2.0**-11)
    high = 1 + whole + coarse * coarse / 2
    series = jnp.zeros_like(r)
    for coefficient in reversed(_REST):
        series = series * r + coefficient
    low = (r - whole) + (r - coarse) * (r + coarse) / 2 + r * r * r * series + rest * high
    unit = jnp.where(high + low < 1, 2.0**-24, 2.0**-23)  # of the last bit
    # 1 stays 1: a path of certain frames costs nothing.
    return high + jnp.where(jnp.abs(r) < 2.0**-23, low, low + dither * unit)


@_exp_with_dither.defjvp
def _(primals, tangents):
    y = _exp_with_dither(*primals)
    return y, y * tangents[0]


def _multiple(x: Array, unit: float) -> Array:
    return jnp.round(x / unit) * unit

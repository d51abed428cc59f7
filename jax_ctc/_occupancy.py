# SPDX-License-Identifier: Apache-2.0
"""The occupancies: at which frames each class is, given the labels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _operands, _primitives, _static
from ._arrays import Integers


def ctc_occupancy(
    acts: ArrayLike,
    labels: Integers,
    lengths: Integers | None,
    label_lengths: Integers | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
    softmax: bool = True,
) -> Array:
    """Returns the posterior probability of each class at each frame, given the labels.

    The softmax of a frame depends on that frame alone. The occupancy of a class is the probability
    that the frame belongs to it, over all alignments of the labels (docs/ctc.md, eq. 8).

    Args:
      acts, labels, lengths, label_lengths, blank, time_major, softmax: as in `ctc`; lengths=None
        means all T frames.

    Returns:
      An array of the shape of `acts`; float64 for float64 acts, else float32. The occupancies of a
      frame in use add up to 1. They are exactly 0 at and after the length, at classes that are
      neither the blank nor a label, and in a sequence that has no alignment or an invalid label or
      length. They are NaN in the frames in use of a sequence whose cost is NaN because of its acts,
      with softmax=False at the blank and the labels. The function can be differentiated any number
      of times; the first derivative, forward or reverse, runs the compiled kernels.

    Raises: as `ctc`.
    """
    softmax = _static.switch("softmax", softmax)
    a = _arguments.prepare(acts, labels, lengths, label_lengths, blank=blank, time_major=time_major)
    return _occupancy(
        a.acts, a.labels, a.lengths, time_axis=a.time_axis, blank=a.blank, softmax=softmax
    )


@functools.partial(jax.jit, inline=True, static_argnames=("time_axis", "blank", "softmax"))
def _occupancy(
    acts: Array, labels: Array, lengths: Array, *, time_axis: int, blank: int, softmax: bool
) -> Array:
    """The softmax divides all paths through a frame by the same number, so occupancies are those of
    log-scores: minus the gradient of their cost (eq. 9 without the softmax), to which rows add
    nothing beyond the labels. An eager call is one program too, because of this jit. So
    jax.debug_infs sees no cost of +inf."""
    scores = _operands.rounded(acts).astype(_operands.cost_dtype(acts.dtype))
    parameters = {"time_axis": time_axis, "blank": blank, "threads": 0, "softmax": False}
    cost, *residuals = _primitives.forward_p.bind(scores, labels, lengths, **parameters)
    undefined = _undefined(scores, labels, lengths, time_axis, blank) if softmax else None
    factor = -jnp.ones_like(cost)
    if undefined is not None:
        # If there is a path, the derivative is NaN too, but for a cotangent of 0.
        factor = jnp.where(undefined.any(time_axis), jnp.nan, factor)
    occupancy = _primitives.cotangent_p.bind(
        scores, labels, lengths, *residuals, factor, **parameters
    )
    if undefined is None:
        return occupancy
    # Also at the classes that are not read.
    return occupancy + jnp.where(undefined, jnp.nan, jnp.zeros_like(cost, shape=()))[..., None]


def _undefined(scores: Array, labels: Array, lengths: Array, time_axis: int, blank: int) -> Array:
    """Returns whether a frame is in use in a valid sequence of which a row has no softmax."""
    T, V = scores.shape[time_axis], scores.shape[-1]
    invalid = _operands.invalid(labels, lengths, T=T, V=V, blank=blank)
    used = _operands.used(scores.shape[:-1], jnp.where(invalid, 0, lengths), time_axis)
    scores = jax.lax.stop_gradient(scores)
    return used & (used & ~_operands.has_softmax(scores)).any(time_axis, keepdims=True)

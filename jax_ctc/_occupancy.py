# SPDX-License-Identifier: Apache-2.0
"""The occupancies: at which frames each class is, given the labels."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _operands, _primitives, _shapes
from ._loss import ctc
from ._shapes import Integers


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
      frame in use add up to 1. They are exactly 0 at and after the length, and in a sequence that
      has no alignment or an invalid label or length. They are NaN in the frames in use of a
      sequence whose cost is NaN because of its acts. The function can be differentiated any number
      of times; the first derivative, forward or reverse, runs the compiled kernels.

    Raises: as `ctc`.
    """
    if not _shapes.switch("softmax", softmax):
        options = {"blank": blank, "time_major": time_major, "softmax": False}
        acts = _shapes.floats("acts", acts, labels)
        # As different from device to device as labels and lengths are, in a shard_map. Otherwise
        # the gradient of acts would be a sum over devices.
        acts = _arguments.prepare(
            acts, labels, lengths, label_lengths, blank=blank, time_major=time_major
        ).acts
        acts = acts.astype(_operands.cost_dtype(acts.dtype))
        cost, pull_back = jax.vjp(lambda x: ctc(x, labels, lengths, label_lengths, **options), acts)
        return -pull_back(jnp.ones_like(cost))[0]
    a = _arguments.prepare(acts, labels, lengths, label_lengths, blank=blank, time_major=time_major)
    return _occupancy(a.acts, a.labels, a.lengths, time_axis=a.time_axis, blank=a.blank)


@functools.partial(jax.jit, inline=True, static_argnames=("time_axis", "blank"))
def _occupancy(acts: Array, labels: Array, lengths: Array, *, time_axis: int, blank: int) -> Array:
    """An eager call is one program too, because of this jit. So jax.debug_infs sees no cost of
    +inf."""
    exact = _operands.rounded(acts).astype(_operands.cost_dtype(acts.dtype))
    parameters = {"time_axis": time_axis, "blank": blank, "threads": 0, "softmax": True}
    cost, *residuals = _primitives.forward_p.bind(exact, labels, lengths, **parameters)
    gradient = _primitives.cotangent_p.bind(
        exact, labels, lengths, *residuals, jnp.ones_like(cost), **parameters
    )
    frame = jax.lax.broadcasted_iota(jnp.int32, exact.shape, time_axis)

    def per_frame(x: Array) -> Array:  # (batch) as (batch with T, V)
        return jnp.expand_dims(x, (time_axis, x.ndim + 1))

    # The gradient is softmax minus occupancy. Without an alignment both it and the occupancy are 0.
    none = (frame >= per_frame(lengths)) | per_frame(jnp.isposinf(cost))
    undefined = per_frame(jnp.isnan(cost))
    none = none | (undefined & ~jnp.isnan(gradient))
    # Where there is no softmax the gradient is NaN, and so is its derivative, but for a cotangent
    # of 0.
    softmax = jax.nn.softmax(jnp.where(none | undefined, 0, exact), axis=-1)
    return jnp.where(none, 0, _at_least_0(softmax - gradient))


@jax.custom_jvp
def _at_least_0(x: Array) -> Array:
    """Returns x without the small negative numbers that rounding leaves of 0. The derivative is
    that of x, without a condition on x: XLA computes x again in each fusion that needs it, rounded
    in another way, and then the terms of a derivative would disagree about the sign of x."""
    # Not jnp.maximum: XLA's maximum over a large array may lose a NaN.
    return jnp.where(x < 0, 0, x)


@_at_least_0.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _at_least_0(*primals), tangents[0]

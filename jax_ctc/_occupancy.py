# SPDX-License-Identifier: Apache-2.0
"""Where in time each class is, given the labels."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _operands, _primitives


def ctc_occupancy(
    acts: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike | None,
    label_lengths: ArrayLike | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
) -> Array:
    """Posterior probability of each class at each frame, given that the labels are right.

    The softmax says what the network sees in a frame by itself; the occupancy says which class the
    frame belongs to, over all alignments of these labels (docs/ctc.md, eq. 8).

    Args:
      acts, labels, lengths, label_lengths, blank, time_major: as in `ctc`; lengths=None for all T.

    Returns:
      The shape of `acts`; float64 for float64 acts, else float32. The classes of a frame in use add
      up to 1. Exactly 0 after the length and where a sequence has no alignment or a bad label or
      length; NaN in the frames in use of a sequence whose cost is NaN because of its acts.
      Differentiable once (forward or reverse) with the compiled kernels' accuracy, and on from
      there.

    Raises: as `ctc`.
    """
    a = _arguments.prepare(acts, labels, lengths, label_lengths, blank=blank, time_major=time_major)
    return _occupancy(a.acts, a.labels, a.lengths, time_axis=a.time_axis, blank=a.blank)


@functools.partial(jax.jit, inline=True, static_argnames=("time_axis", "blank"))
def _occupancy(acts: Array, labels: Array, lengths: Array, *, time_axis: int, blank: int) -> Array:
    """One program in an eager call too, so that jax.debug_infs sees no cost of +inf."""
    exact = acts.astype(_operands.cost_dtype(acts.dtype))
    parameters = {"time_axis": time_axis, "blank": blank, "threads": 0}
    cost, *residuals = _primitives.forward_p.bind(exact, labels, lengths, **parameters)
    gradient = _primitives.cotangent_p.bind(
        exact, labels, lengths, *residuals, jnp.ones_like(cost), **parameters
    )
    frame = jax.lax.broadcasted_iota(jnp.int32, exact.shape, time_axis)

    def per_frame(x: Array) -> Array:  # (batch) as (batch with T, V)
        return jnp.expand_dims(x, (time_axis, x.ndim + 1))

    # The gradient is softmax less occupancy. If it is 0 because there is no alignment, so is this.
    none = (frame >= per_frame(lengths)) | per_frame(jnp.isposinf(cost))
    none = none | (per_frame(jnp.isnan(cost)) & ~jnp.isnan(gradient))
    softmax = jax.nn.softmax(jnp.where(none, 0, exact), axis=-1)
    occupancy = softmax - gradient
    # No maximum: over a large array XLA's may lose a NaN.
    return jnp.where(none | (occupancy < 0), 0, occupancy)

# SPDX-License-Identifier: Apache-2.0
"""Labels from acts: the best path."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _arguments, _operands, _shapes
from ._primitives import zero_product
from ._results import serialised
from ._shapes import Integers


@serialised
class Decoded(NamedTuple):
    """Label sequences that were read from `acts`.

    Attributes:
      labels: (..., T) int32; -1 after the last label.
      label_lengths: (...) int32, the number of labels.
      score: (...) the log-probability in nats.
    """

    labels: Array
    label_lengths: Array
    score: Array


def ctc_greedy_decode(
    acts: ArrayLike,
    lengths: Integers | None,
    *,
    blank: int = 0,
    time_major: bool = True,
) -> Decoded:
    """Returns the labels of the best path: the most probable class at each frame, without repeats
    and blanks.

    Args:
      acts, lengths, blank, time_major: as in `ctc`; lengths=None means all T frames.

    Returns:
      A `Decoded` tuple, which `ctc` takes as labels and label_lengths:
        ``labels``         (B, T) or (T,) int32 classes, -1 after the last label
        ``label_lengths``  (B,) or () int32
        ``score``          (B,) or (), the log-probability of this one path in nats; float64 for
                           float64 acts, else float32. Labels have more paths than one, so it is at
                           most -ctc(labels).
      Where classes of a frame are equal, the lowest is taken. A sequence of no frames has no labels
      and a score of 0. A sequence has no labels and a score of NaN if a row in use has a NaN, a
      +inf or only -inf, or if its length is outside [0, T].

      The score can be differentiated; its gradient is that of the log-probability of the path that
      was found. Labels have no gradient.

    Raises: as `ctc`.

    Example:
      >>> acts = jnp.log(jnp.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]))
      >>> jax_ctc.ctc_greedy_decode(acts, 4).labels  # 1 1 blank 1
      Array([ 1,  1, -1, -1], dtype=int32)
    """
    a = prepare(acts, lengths, blank=blank, time_major=time_major)
    _operands.batch_spec(jax.typeof(a.acts), a.time_axis)  # raises where types shard T or V
    return _greedy(a.acts, a.lengths, time_axis=a.time_axis, blank=a.blank)


def prepare(
    acts: ArrayLike, lengths: Integers | None, *, blank: int, time_major: bool
) -> _arguments.Arguments:
    """Checks the arguments of a function without labels. The operands have labels (batch, 0)."""
    acts = _shapes.floats("acts", acts)
    time_major = _shapes.switch("time_major", time_major)
    batch = (acts.shape[1 if time_major else 0],) if acts.ndim == 3 else ()
    nothing = jnp.zeros((*batch, 0), jnp.int32)
    return _arguments.prepare(acts, nothing, lengths, None, blank=blank, time_major=time_major)


@functools.partial(jax.jit, inline=True, static_argnames=("time_axis", "blank"))
def _greedy(acts: Array, lengths: Array, *, time_axis: int, blank: int) -> Decoded:
    T, acts = acts.shape[time_axis], _operands.rounded(acts)
    path = jnp.moveaxis(lax.argmax(acts, acts.ndim - 1, jnp.int32), time_axis, -1)  # (batch, T)
    frame = jnp.cumsum(jnp.ones_like(path), axis=-1) - 1  # sharded as path is
    used = frame < lengths[..., None]
    score, undefined = _score(acts, path, used, time_axis)
    wrong = (lengths < 0) | (lengths > T)
    bad = undefined | wrong

    before = jnp.concatenate([jnp.full_like(path[..., :1], blank), path[..., :-1]], axis=-1)
    kept = used & (path != blank) & (path != before) & ~bad[..., None]
    # Not a scatter: a sort is split along the batch without communication.
    place = jnp.where(kept, frame, T)
    labels = lax.sort((place, jnp.where(kept, path, -1)), num_keys=1)[1]
    label_lengths = kept.sum(-1, dtype=jnp.int32)
    return Decoded(labels, label_lengths, jnp.where(wrong, jnp.nan, score))


def _score(acts: Array, path: Array, used: Array, time_axis: int) -> tuple[Array, Array]:
    """Returns the log-probability of each path, and which sequences have a row without a softmax.
    Those have a score and a gradient of NaN."""
    used = jnp.moveaxis(used, -1, time_axis)
    exact = jnp.where(used[..., None], acts.astype(_operands.cost_dtype(acts.dtype)), 0)
    taken = jnp.moveaxis(path, -1, time_axis)[..., None]
    best = jnp.take_along_axis(exact, taken, axis=-1)
    defined = jnp.isfinite(best)  # it is the first NaN of a row that has one
    # The best class is left out by its number: exp(x - best) of itself may be less than 1, if XLA
    # computes x anew, as a product that is rounded in another way.
    classes = lax.broadcasted_iota(jnp.int32, exact.shape, exact.ndim - 1)
    others = defined & (classes != taken) & (exact > -jnp.inf)
    rest = jnp.where(others, jnp.exp(jnp.where(others, exact - best, 0)), 0).sum(-1)
    defined, best = defined[..., 0], best[..., 0]
    # Products whose derivative is NaN too, but for a cotangent of 0.
    nan = zero_product.multiply(best, jnp.full_like(best, jnp.nan))
    score = jnp.where(used, jnp.where(defined, -jnp.log1p(rest), nan), 0).sum(time_axis)
    undefined = (used & ~defined).any(time_axis)
    one = jnp.where(undefined, jnp.nan, jnp.ones_like(score))
    return zero_product.multiply(score, one), undefined

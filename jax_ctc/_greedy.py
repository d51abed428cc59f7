# SPDX-License-Identifier: Apache-2.0
"""Labels from acts: the best path."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _arrays, _mesh, _operands, _static
from ._arrays import Integers
from ._primitives import zero_product
from ._primitives.top_class import top_class_p
from ._results import serialised


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
    num_threads: int | None = None,
) -> Decoded:
    """Returns the labels of the best path: the most probable class at each frame, without repeats
    and blanks.

    Args:
      acts, lengths, blank, time_major, num_threads: as in `ctc`; lengths=None means all T frames.

    Returns:
      A `Decoded` tuple, whose labels and label_lengths `ctc` takes:
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
    threads = _static.threads_of(num_threads)
    a = prepare(acts, lengths, blank=blank, time_major=time_major)
    return _greedy(
        a.acts, a.labels, a.lengths, time_axis=a.time_axis, blank=a.blank, threads=threads
    )


def prepare(
    acts: ArrayLike, lengths: Integers | None, *, blank: int, time_major: bool
) -> _arguments.Arguments:
    """Checks the arguments of a function without labels. The operands have labels (batch, 0)."""
    acts = _arrays.floats("acts", acts)
    time_major = _static.switch("time_major", time_major)
    batch = (acts.shape[1 if time_major else 0],) if acts.ndim == 3 else ()
    nothing = jnp.zeros((*batch, 0), jnp.int32)
    return _arguments.prepare(acts, nothing, lengths, None, blank=blank, time_major=time_major)


@functools.partial(jax.jit, inline=True, static_argnames=("time_axis", "blank", "threads"))
def _greedy(
    acts: Array, labels: Array, lengths: Array, *, time_axis: int, blank: int, threads: int
) -> Decoded:
    T = acts.shape[time_axis]
    best, _, others = top_class_p.bind(
        acts, labels, lengths, time_axis=time_axis, blank=blank, threads=threads
    )
    score, undefined = _score(others, lengths, time_axis)
    invalid = _operands.invalid(labels, lengths, T=T, V=acts.shape[-1], blank=blank)
    empty = undefined | invalid
    path = jnp.moveaxis(best, time_axis, -1)  # (batch, T)
    # Not a concatenation, which JAX 0.12 cannot batch over a sharded axis if no mesh is set.
    before = jnp.pad(path, [(0, 0)] * (path.ndim - 1) + [(1, 0)], constant_values=blank)[..., :-1]
    used = _operands.used(path.shape, lengths, path.ndim - 1)
    kept = used & (path != blank) & (path != before) & ~empty[..., None]
    types = [jax.typeof(kept), jax.typeof(empty)]
    labels, label_lengths = _mesh.with_auto_axes(_compacted, types)(path, kept)
    return Decoded(labels, label_lengths, jnp.where(invalid, jnp.nan, score))


def _compacted(path: Array, kept: Array) -> list[Array]:
    """Returns the entries of each row that are kept, then -1, and how many they are."""

    def move(path: Array, place: Array) -> Array:
        return jnp.full_like(path, -1).at[place].set(path, mode="drop")

    count = jnp.cumsum(kept, axis=-1, dtype=jnp.int32)
    T = path.shape[-1]
    moved = _operands.along_last_axis(move, path.ndim - 1)(path, jnp.where(kept, count - 1, T))
    return [moved, kept.sum(-1, dtype=jnp.int32)]


def _score(others: Array, lengths: Array, time_axis: int) -> tuple[Array, Array]:
    """Returns the log-probability of each path, and which sequences have a row without a softmax.
    Those have a score and a gradient of NaN."""
    no_softmax = jnp.isnan(others)
    # Products whose derivative is NaN too, but for a cotangent of 0. A factor is a residual, which
    # jax_debug_nans looks at, so it is NaN only where it must be.
    nan = zero_product.multiply(others, jnp.where(no_softmax, jnp.nan, jnp.zeros_like(others)))
    frames = jnp.where(no_softmax, nan, -jnp.log1p(jnp.where(no_softmax, 0, others)))
    used = _operands.used(others.shape, lengths, time_axis)
    score = jnp.where(used, frames, 0).sum(time_axis)
    undefined = (used & no_softmax).any(time_axis)
    one = jnp.where(undefined, jnp.nan, jnp.ones_like(score))
    return zero_product.multiply(score, one), undefined

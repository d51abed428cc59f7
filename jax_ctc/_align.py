# SPDX-License-Identifier: Apache-2.0
"""Forced alignment: which frame says which label."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, export, lax
from jax.typing import ArrayLike

from . import _arguments, _shapes
from ._primitives import align as primitive


class Alignment(NamedTuple):
    """The best alignment of each sequence (`ctc_align`)."""

    path: Array  # (T, B) the class of each frame
    label_index: Array  # (T, B) the position of that label in the row of labels
    score: Array  # (B,) log-probability of the path


class Spans(NamedTuple):
    """The frames of each label (`label_spans`)."""

    start: Array  # (B, L) the first
    end: Array  # (B, L) the one after the last


# So that an exported program may return them.
export.register_namedtuple_serialization(Alignment, serialized_name="jax_ctc.Alignment")
export.register_namedtuple_serialization(Spans, serialized_name="jax_ctc.Spans")


def ctc_align(
    acts: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike | None,
    label_lengths: ArrayLike | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
    softmax: bool = True,
    num_threads: int | None = None,
) -> Alignment:
    """Returns the most probable alignment of each label sequence: which frame says which label.

    Of all paths that `ctc` sums over, this is the one with the largest log-probability (Viterbi).

    Args:
      acts, labels, lengths, label_lengths, blank, time_major, softmax, num_threads: as in `ctc`;
        lengths=None means all T frames. Later frames are never read. Padding may stand anywhere in
        a row of labels.

    Returns:
      An `Alignment` with
        path         (T, B) int32, (B, T) with ``time_major=False``, (T,) for one sequence: the
                     class of each frame, a label or the blank; -1 at and after the length
        label_index  like path: the position of the frame's label in the row of `labels`, counted
                     with its padding; -1 at frames of the blank, and at and after the length
        score        (B,) or (), the log-probability of the path, at most 0; float64 for float64
                     acts, else float32. With ``softmax=False`` the sum of the path's log-scores.

    Raises: as `ctc`.

    If nothing can be raised, each sequence on its own behaves as follows:
      no alignment fits (fewer frames than labels and repeats, or logits of -inf)
        score -inf, path and label_index -1 throughout
      a row in use has a NaN, a +inf, or only -inf
        score NaN, path and label_index -1 throughout
      a label is >= V or equal to `blank`, or a length is outside [0, T] or [0, L]
        score NaN, path and label_index -1 throughout
      no labels
        the path is the blank at every frame in use

    Log-probabilities are added up in float64, also where ``jax_enable_x64`` is off, in an order
    that depends on nothing. So every instruction set, pure JAX and any number of threads return the
    same path. Two paths that are equally good differ by rule. Read from the last frame to the
    first, the path ends in the last label rather than in the blank after it. Where it may have come
    from several states, it stayed in its state rather than advanced from the state before, and
    advanced rather than skipped a blank.

    `score` can be differentiated. Its derivative with respect to `acts` is the one-hot path minus
    the softmax in the frames of the path; with ``softmax=False`` it is the one-hot path. It is
    exactly 0 in all other frames and in a sequence without an alignment. If a row in use has a NaN,
    a +inf, or only -inf, it is NaN in the frames in use. `path` and `label_index` have no
    derivative.

    Memory beside the result is O(sqrt(T) * L) for each thread of a CPU, and O(T * B * L) bytes in
    pure JAX, which runs where there is no kernel.

    Example:
      >>> acts = jnp.log(jnp.array([[8, 1, 1], [1, 8, 1], [1, 8, 1], [1, 1, 8], [8, 1, 1]]))
      >>> alignment = jax_ctc.ctc_align(acts, jnp.array([1, 2]), None)
      >>> alignment.path
      Array([0, 1, 1, 2, 0], dtype=int32)
      >>> jax_ctc.label_spans(alignment, 2)
      Spans(start=Array([1, 3], dtype=int32), end=Array([3, 4], dtype=int32))
    """
    threads = _shapes.threads_of(num_threads)
    softmax = _shapes.switch("softmax", softmax)
    a = _arguments.prepare(acts, labels, lengths, label_lengths, blank=blank, time_major=time_major)
    return _align(
        a.acts,
        a.labels,
        a.lengths,
        time_axis=a.time_axis,
        blank=a.blank,
        threads=threads,
        softmax=softmax,
    )


@functools.partial(
    jax.jit, inline=True, static_argnames=("time_axis", "blank", "threads", "softmax")
)
def _align(acts: Array, labels: Array, lengths: Array, **parameters: int) -> Alignment:
    """An eager call is one program too, because of this jit. So jax.debug_infs checks its result
    only."""
    return Alignment(*primitive.align_p.bind(acts, labels, lengths, **parameters))


@functools.partial(jax.jit, static_argnames=("L", "time_major"))
def label_spans(alignment: Alignment, L: int, *, time_major: bool = True) -> Spans:
    """Returns the frames of each label, from the alignment of (B, L) labels.

    Args:
      alignment: what `ctc_align` returned.
      L: the size of a row of labels.
      time_major: as it was for `ctc_align`.

    Returns:
      `Spans` with start and end, (B, L) or (L,) int32: label i of a sequence has the frames
      start[i] <= t < end[i], which are never none. Both are -1 at padding, and in a sequence that
      has no alignment.
    """
    index = alignment.label_index
    if index.ndim not in (1, 2):
        raise ValueError(
            "`alignment`: expected label_index of shape (T, B), (B, T) with time_major=False, or "
            f"(T,) for one sequence, got shape {index.shape}. Use jax.vmap for more batch axes."
        )
    if index.ndim == 2 and time_major:
        index = index.T
    T, shape = index.shape[-1], (*index.shape[:-1], L)
    frames = lax.broadcasted_iota(jnp.int32, index.shape, index.ndim - 1)
    places = jnp.where(index < 0, L, index)  # dropped

    def spans(places: Array, frames: Array) -> tuple[Array, Array]:
        start = jnp.full_like(places, T, shape=(L,)).at[places].min(frames, mode="drop")
        end = jnp.full_like(places, -1, shape=(L,)).at[places].max(frames + 1, mode="drop")
        return jnp.where(end < 0, -1, start), end

    mapped = spans if index.ndim == 1 else jax.vmap(spans)
    start, end = mapped(places, frames)
    return Spans(start.reshape(shape), end.reshape(shape))

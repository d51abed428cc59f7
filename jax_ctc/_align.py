# SPDX-License-Identifier: Apache-2.0
"""Forced alignment: which frame says which label."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _arguments, _operands, _shapes
from ._primitives import align as primitive
from ._results import serialised
from ._shapes import Integers


@serialised
class Alignment(NamedTuple):
    """The best alignment of each sequence (`ctc_align`).

    Attributes:
      path: (T, B), (B, T) or (T,) int32, the class of each frame; -1 at and after the length.
      label_index: of the same shape, the position of that label in the row of labels; -1 where
        there is none.
      score: (B,) or (), the log-probability of the path in nats.
    """

    path: Array
    label_index: Array
    score: Array


@serialised
class Spans(NamedTuple):
    """The frames of each label (`label_spans`).

    Attributes:
      start: (B, L) or (L,) int32, the first frame; -1 where there is none.
      end: of the same shape, the frame after the last; -1 where there is none.
    """

    start: Array
    end: Array


def ctc_align(
    acts: ArrayLike,
    labels: Integers,
    lengths: Integers | None,
    label_lengths: Integers | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
    softmax: bool = True,
    star: int | None = None,
    num_threads: int | None = None,
) -> Alignment:
    """Returns the most probable alignment of each label sequence: which frame says which label.

    Of all paths that `ctc` sums over, this is the one with the largest log-probability (Viterbi).

    Args:
      acts, labels, lengths, label_lengths, blank, time_major, softmax, num_threads: as in `ctc`;
        lengths=None means all T frames. Later frames are never read. Padding may stand anywhere in
        a row of labels.
      star: None, or V: a label of V, one past the classes, then stands for any class but the blank.

    Returns:
      An `Alignment` with
        path         (T, B) int32, (B, T) with ``time_major=False``, (T,) for one sequence: the
                     class of each frame, a label, what a star stands for, or the blank; -1 at and
                     after the length
        label_index  like path: the position of the frame's label in the row of `labels`, counted
                     with its padding; -1 at frames of the blank, and at and after the length
        score        (B,) or (), the log-probability of the path, at most 0; float64 for float64
                     acts, else float32. With ``softmax=False`` the sum of the path's log-scores.

    Raises: as `ctc`; and ValueError if `star` is neither None nor V.

    If nothing can be raised, each sequence on its own behaves as follows:
      no alignment fits (fewer frames than labels and repeats, or logits of -inf)
        score -inf, path and label_index -1 throughout
      a row in use has a NaN, a +inf, or only -inf
        score NaN, path and label_index -1 throughout. With ``softmax=False`` only the scores of the
        blank and of the labels are read, with a star those of all classes: a NaN or a +inf among
        them has this effect, and -inf does not
      a label is >= V (> V with a star) or equal to `blank`, or a length is outside [0, T] or [0, L]
        score NaN, path and label_index -1 throughout
      no labels
        the path is the blank at every frame in use

    A star absorbs speech that the transcript lacks, at either end or in between. It is a label like
    any other but in what it says: at each of its frames, of which it has at least one, it is the
    class that has the largest logit of all but the blank, of equal ones the first. That class is in
    `path`, its log-probability is in `score`, and `label_index` has the position of the star. As
    between two equal labels, a blank is needed between two stars, and none between a star and
    another label. With V = 1 the star has no class, so there is no alignment. A star with another
    score is a column of your own and needs no `star`: with ``softmax=False``,
    ``jnp.pad(jax.nn.log_softmax(acts), ((0, 0), (0, 0), (0, 1)))`` has a class V of
    log-probability 0, which absorbs silence too (torchaudio's star).

    Log-probabilities are added up in float64, also where ``jax_enable_x64`` is off, in an order
    that depends on nothing. So every instruction set, CUDA, pure JAX and any number of threads
    return the same path. Two paths that are equally good differ by rule. Read from the last frame
    to the first, the path ends in the last label rather than in the blank after it. Where it may
    have come from several states, it stayed in its state rather than advanced from the state
    before, and advanced rather than skipped a blank.

    `score` can be differentiated. Its derivative with respect to `acts` is the one-hot path minus
    the softmax in the frames of the path; with ``softmax=False`` it is the one-hot path. It is
    exactly 0 in all other frames and in a sequence without an alignment. If a row in use has a NaN,
    a +inf, or only -inf, so that the score is NaN, it is NaN in the frames in use. `path` and
    `label_index` have no derivative.

    Memory beside the result is O(sqrt(T) * L) for each thread of a CPU, and O(T * B * L) bytes in
    pure JAX, which runs where there is no kernel. On CUDA a sequence takes half a byte for each
    frame and label, but at most 2 MB, and T * L / 128 bytes if T is above 2,048. `vmap` over labels
    alone copies acts only if V <= 2 (L + 2), where the copies are as small as what else is needed.

    Example:
      >>> acts = jnp.log(jnp.array([[8, 1, 1], [1, 8, 1], [1, 8, 1], [1, 1, 8], [8, 1, 1]]))
      >>> alignment = jax_ctc.ctc_align(acts, jnp.array([1, 2]), None)
      >>> alignment.path
      Array([0, 1, 1, 2, 0], dtype=int32)
      >>> jax_ctc.label_spans(alignment, 2)
      Spans(start=Array([1, 3], dtype=int32), end=Array([3, 4], dtype=int32))
      >>> jnp.exp(jax_ctc.label_confidence(acts, alignment, 2)).round(2)
      Array([0.8, 0.8], dtype=float32)
    """
    threads = _shapes.threads_of(num_threads)
    softmax = _shapes.switch("softmax", softmax)
    a = _arguments.prepare(
        acts, labels, lengths, label_lengths, blank=blank, time_major=time_major, star=star
    )
    return _align(
        a.acts,
        a.labels,
        a.lengths,
        time_axis=a.time_axis,
        blank=a.blank,
        threads=threads,
        softmax=softmax,
        star=star is not None,
    )


@functools.partial(jax.jit, inline=True, static_argnames=primitive.PARAMETERS)
def _align(acts: Array, labels: Array, lengths: Array, **parameters: int) -> Alignment:
    """An eager call is one program too, because of this jit. So jax.debug_infs checks its result
    only."""
    return Alignment(*primitive.align_p.bind(acts, labels, lengths, **parameters))


def label_spans(alignment: Alignment, L: int, *, time_major: bool = True) -> Spans:
    """Returns the frames of each label, from the alignment of (B, L) labels.

    Args:
      alignment: what `ctc_align` returned.
      L: the size of a row of labels. Labels from L on are left out.
      time_major: as it was for `ctc_align`.

    Returns:
      `Spans` with start and end, (B, L) or (L,) int32. Label i of a sequence has the frames
      start[i] <= t < end[i], which are never none. Both are -1 at padding, and in a sequence that
      has no alignment.

    Raises: TypeError and ValueError if an argument is not of that kind or shape.
    """
    L, time_major = _shapes.size("L", L), _shapes.switch("time_major", time_major)
    return _label_spans(_an_alignment(alignment), L, time_major)


def _an_alignment(x: Alignment) -> Alignment:
    if not isinstance(x, Alignment):
        raise TypeError(f"`alignment`: expected what ctc_align returned, got {_shapes.kind(x)}.")
    return x


def _require_layout(alignment: Alignment, frames: Array, time_major: bool) -> None:
    """Raises ValueError if frames are (B, T) where (T, B) was said, or the other way round. Where
    both have one size nobody can tell."""
    batch = alignment.score.shape
    if frames.ndim == 2 and len(batch) == 1 and frames.shape[int(time_major)] != batch[0]:
        raise ValueError(
            f"`alignment`: expected a path of shape {'(T, B)' if time_major else '(B, T)'} with "
            f"B = {batch[0]} because time_major={time_major}, got {frames.shape}. Give time_major "
            "as it was for ctc_align."
        )


@functools.partial(jax.jit, static_argnames=("L", "time_major"))
def _label_spans(alignment: Alignment, L: int, time_major: bool) -> Spans:
    index = alignment.label_index
    if index.ndim not in (1, 2):
        raise ValueError(
            "`alignment`: expected label_index of shape (T, B), (B, T) with time_major=False, or "
            f"(T,) for one sequence, got shape {index.shape}. Use jax.vmap for more batch axes."
        )
    _require_layout(alignment, index, time_major)
    if index.ndim == 2 and time_major:
        index = index.T
    T, shape = index.shape[-1], (*index.shape[:-1], L)
    places = jnp.where(index < 0, L, index)  # dropped

    def spans(places: Array) -> tuple[Array, Array]:
        frames = lax.iota(jnp.int32, T)
        start = jnp.full_like(places, T, shape=(L,)).at[places].min(frames, mode="drop")
        end = jnp.full_like(places, -1, shape=(L,)).at[places].max(frames + 1, mode="drop")
        return jnp.where(end < 0, -1, start), end

    start, end = (spans if index.ndim == 1 else jax.vmap(spans))(places)
    return Spans(start.reshape(shape), end.reshape(shape))


def label_confidence(
    acts: ArrayLike, alignment: Alignment, L: int, *, time_major: bool = True, softmax: bool = True
) -> Array:
    """Returns how sure the model is of each label: the mean log-probability over its frames.

    Args:
      acts, time_major, softmax: as they were for `ctc_align`.
      alignment: what `ctc_align` returned.
      L: the size of a row of labels. Labels from L on are left out.

    Returns:
      (B, L) or (L,), float64 for float64 acts, else float32, in nats, at most 0. A label has the
      mean over its frames (`label_spans`) of the log-probability of the class in `path`. Its exp is
      the geometric mean of the probabilities. With ``softmax=False`` it is the mean score. It is
      NaN at padding, and in a sequence that has no alignment, because there are no frames. So it is
      NaN even where nothing is wrong, and ``jax_debug_nans`` stops there. It is NaN too for a class
      in the path that `acts` do not have. It can be differentiated with respect to `acts`.

    Raises: TypeError if `acts` are no floats, ValueError if the shape of the path is not theirs;
      and as `label_spans`.
    """
    L, time_major = _shapes.size("L", L), _shapes.switch("time_major", time_major)
    softmax = _shapes.switch("softmax", softmax)
    if isinstance(acts, Alignment):
        raise TypeError(
            "`acts`: expected floats (T, B, V), got an Alignment: are the two swapped? The order "
            "is label_confidence(acts, alignment, L)."
        )
    acts, alignment = _shapes.floats("acts", acts), _an_alignment(alignment)
    return _label_confidence(acts, alignment, L, time_major, softmax)


@functools.partial(jax.jit, static_argnames=("L", "time_major", "softmax"))
def _label_confidence(
    acts: Array, alignment: Alignment, L: int, time_major: bool, softmax: bool
) -> Array:
    path = alignment.path
    if path.ndim not in (1, 2) or path.shape != acts.shape[:-1]:
        raise ValueError(
            f"`alignment`: expected a path of shape {acts.shape[:-1]}, because `acts` has shape "
            f"{acts.shape}, got {path.shape}. Use jax.vmap for more batch axes."
        )
    _require_layout(alignment, path, time_major)
    used = path >= 0
    x = jnp.where(used[..., None], acts, 0).astype(_operands.cost_dtype(acts.dtype))
    score = jnp.take_along_axis(x, jnp.maximum(path, 0)[..., None], axis=-1)[..., 0]
    if softmax:
        score = score - jax.nn.logsumexp(x, axis=-1)
    places = jnp.where(alignment.label_index < 0, L, alignment.label_index)  # dropped
    if path.ndim == 2 and time_major:
        places, score = places.T, score.T
    if isinstance(L, int) and L == 0:  # there is nothing to gather from
        return jnp.zeros_like(score, shape=(*score.shape[:-1], 0))

    def means(places: Array, score: Array) -> Array:
        def total(x: Array) -> Array:
            return jnp.zeros_like(x, shape=(L,)).at[places].add(x, mode="drop")

        frames = total(jnp.ones_like(score))
        rough = total(score) / jnp.maximum(frames, 1)
        # The sum of 10,000 frames has lost 3e-5 of itself. That of what is left loses no more.
        left = score - rough.at[places].get(mode="fill", fill_value=0)
        return jnp.where(frames > 0, rough + total(left) / jnp.maximum(frames, 1), jnp.nan)

    return (means if path.ndim == 1 else jax.vmap(means))(places, score)

# SPDX-License-Identifier: Apache-2.0
"""Forced alignment: which frame says which label."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _static
from ._arrays import Integers
from ._primitives import align as primitive
from ._results import serialised


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

    A star absorbs speech that the transcript lacks, at either end or in between. It is placed like
    any label, and has at least one frame. In each of its frames it stands for the class with the
    largest logit, without the blank. Of equal logits the lowest class counts. That class is in
    `path`, its log-probability is in `score`, and `label_index` has the position of the star. As
    between two equal labels, a blank is needed between two stars, and none between a star and
    another label. With V = 1 the star has no class, so there is no alignment. A star with another
    score is a column of your own and needs no `star`: with ``softmax=False``,
    ``jnp.pad(jax.nn.log_softmax(acts), ((0, 0), (0, 0), (0, 1)))`` has a class V of
    log-probability 0, which absorbs silence too (torchaudio's star).

    Log-probabilities are added up in float64, also where ``jax_enable_x64`` is off, in an order
    that depends on nothing. So every instruction set, CUDA, pure JAX and any number of threads
    return the same path. A rule chooses between paths that are equally good. Read from the last
    frame to the first, the path ends in the last label rather than in the blank after it. Where it
    may have come from several states, it stayed in its state rather than advanced from the state
    before, and advanced rather than skipped a blank.

    `score` can be differentiated. Its derivative with respect to `acts` is the one-hot path minus
    the softmax in the frames of the path; with ``softmax=False`` it is the one-hot path. It is
    exactly 0 in all other frames and in a sequence without an alignment. Where the score is NaN,
    because a row in use has a NaN, a +inf, or only -inf, the derivative is NaN in the frames in
    use. `path` and `label_index` have no derivative.

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
      >>> jax_ctc.label_confidence(acts, alignment, 2)  # log 0.8
      Array([-0.22314355, -0.22314355], dtype=float32)
    """
    threads = _static.threads_of(num_threads)
    softmax = _static.switch("softmax", softmax)
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


@functools.partial(
    jax.jit,
    inline=True,
    static_argnames=("time_axis", "blank", "threads", "softmax", "star"),
)
def _align(acts: Array, labels: Array, lengths: Array, **parameters: int) -> Alignment:
    """An eager call is one program too, because of this jit. So jax.debug_infs checks its result
    only."""
    return Alignment(*primitive.align_p.bind(acts, labels, lengths, **parameters))

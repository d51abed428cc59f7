# SPDX-License-Identifier: Apache-2.0
"""Labels from acts: the most probable prefixes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _static
from ._arrays import Integers
from ._greedy import Decoded, prepare
from ._primitives import beam


def ctc_beam_search_decode(
    acts: ArrayLike,
    lengths: Integers | None,
    *,
    beam_width: int = 16,
    top_paths: int = 1,
    blank: int = 0,
    time_major: bool = True,
    classes_per_frame: int | None = None,
    softmax: bool = True,
    num_threads: int | None = None,
) -> Decoded:
    """Returns the most probable labels that a prefix beam search finds.

    A prefix is a sequence of labels up to a frame. Its probability is the sum over its alignments.
    After each frame the search keeps the `beam_width` most probable prefixes. Equal prefixes are
    always merged. With a beam that holds all prefixes, the result is exact.

    Args:
      acts, lengths, blank, time_major: as in `ctc`; lengths=None means all T frames.
      beam_width: how many prefixes are kept. A beam of 1 keeps the best prefix of each frame, which
        is not the same as the best path of `ctc_greedy_decode`. The kernel takes up to about
        60 * (T + 4) * beam_width bytes for a thread. Pure JAX takes 20 * beam_width**2 bytes for a
        sequence.
      top_paths: how many label sequences are returned, at most `beam_width`. They differ.
      classes_per_frame: if given, only that many classes of a frame, the most probable beside the
        blank, may be appended to a prefix. Prefixes in the beam keep all their alignments.
      softmax: if False, `acts` are log-scores as they stand, and a score is the log of the sum over
        alignments of exp(sum of log-scores). It may be above 0.
      num_threads: as in `ctc`.

    Returns:
      A `Decoded` tuple, the most probable labels first:
        ``labels``         (B, top_paths, T) or (top_paths, T) int32, -1 after the last label
        ``label_lengths``  (B, top_paths) or (top_paths,) int32
        ``score``          the same shape, the log of the sum over the alignments that were in the
                           beam, in nats; float64 for float64 acts, else float32. But for rounding
                           it is at most -ctc(labels), and equal to it if nothing was pruned.
      Where there are fewer label sequences with a probability above 0 than `top_paths`, the others
      have no labels and a score of -inf. Prefixes of equal scores have a fixed order: those that
      were in the beam stand before those that are a label longer, each in the order of the beam
      before, and of equal classes the lowest comes first. The scores of prefixes that are equally
      probable may differ by rounding. A sequence of no frames has one result, no labels with a
      score of 0. All scores of a sequence are NaN, without labels, if a row in use has a NaN, a
      +inf or only -inf, or if its length is outside [0, T].

      Nothing here has a gradient; to differentiate through it is an error. ``jax.vmap(ctc)`` over
      the hypotheses gives scores that can be differentiated, and reads `acts` once
      (docs/decoding.md).

    Raises: as `ctc`; ValueError also for a width below 1, or below `top_paths`.

    On CPUs a compiled kernel runs, elsewhere pure JAX. Their results may differ where prefixes are
    equally probable up to rounding.

    Example:
      >>> acts = jnp.log(jnp.array([[0.6, 0.4], [0.6, 0.4]]))  # the best path is blank blank, 0.36
      >>> labels, _, score = jax_ctc.ctc_beam_search_decode(acts, 2)
      >>> labels, jnp.exp(score).round(4)  # but label 1 has three paths
      (Array([[ 1, -1]], dtype=int32), Array([0.64], dtype=float32))

    Reference: Graves, "Sequence transduction with recurrent neural networks", 2012; Hannun, Maas,
    Jurafsky and Ng, "First-pass large vocabulary continuous speech recognition using bi-directional
    recurrent DNNs", 2014.
    """
    threads = _static.threads_of(num_threads)
    width = _static.at_least_one("beam_width", beam_width)
    paths = _static.at_least_one("top_paths", top_paths)
    if paths > width:
        raise ValueError(
            f"`top_paths`: expected at most beam_width = {width}, because the beam holds no more "
            f"label sequences, got {paths}."
        )
    classes = 0
    if classes_per_frame is not None:
        classes = _static.at_least_one("classes_per_frame", classes_per_frame)
    a = prepare(acts, lengths, blank=blank, time_major=time_major)
    return _decode(
        a.acts,
        a.labels,
        a.lengths,
        time_axis=a.time_axis,
        blank=a.blank,
        threads=threads,
        beam_width=width,
        top_paths=paths,
        classes_per_frame=classes,
        softmax=_static.switch("softmax", softmax),
    )


_STATIC = "time_axis", "blank", "threads", "beam_width", "top_paths", "classes_per_frame", "softmax"


@functools.partial(jax.jit, inline=True, static_argnames=_STATIC)
def _decode(acts: Array, labels: Array, lengths: Array, *, time_axis: int, **params) -> Decoded:
    found, counts, score = beam.beam_p.bind(acts, labels, lengths, time_axis=time_axis, **params)
    return Decoded(jnp.moveaxis(found, time_axis, -1), counts, score)

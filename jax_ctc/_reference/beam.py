# SPDX-License-Identifier: Apache-2.0
"""Prefix beam search in pure JAX.

A prefix of labels is a slot of the beam. Its paths so far end in the blank (`blank`) or in its last
label (`label`); both are log-probabilities relative to the best prefix. A frame makes candidates: a
prefix stays, or gets one more label. A candidate that is the same prefix as another is merged with
it. A slot with a score of -inf is empty.

Two prefixes are compared without their labels. `ancestor` says which prefix is the beginning of
which other. Only `parent + last label` can be the same prefix as one that stays, and the parent is
the ancestor that is one label shorter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import _mesh, _operands


class _Beam(NamedTuple):
    blank: Array  # (W,) log of the sum over paths that end in the blank
    label: Array  # (W,) the same for paths that end in the last label
    last: Array  # (W,) the last label, -1 if there is none
    length: Array  # (W,) labels of the prefix
    labels: Array  # (W, T), -1 after the last
    ancestor: Array  # (W, W) whether prefix i is a proper beginning of prefix j

    @property
    def total(self) -> Array:
        return jnp.logaddexp(self.blank, self.label)


class _Row(NamedTuple):
    """What the search needs of a frame. Logits are relative to the largest."""

    logits: Array  # (V,)
    gain: Array  # a log-probability is a logit plus this
    defined: Array  # whether there is a softmax
    best: Array  # (C,) the most probable classes but the blank, the most probable first
    scores: Array  # (C,) of these
    blank: int

    def at(self, classes: Array) -> Array:
        """Returns the logits of classes, -inf for a class below 0."""
        return jnp.where(classes >= 0, self.logits[jnp.maximum(classes, 0)], -jnp.inf)


_WIDEST = 1 << 15


def beam(acts, labels, lengths, *, time_axis, threads, beam_width, top_paths, **params):
    """Returns the labels (batch with T, paths), their number and their score (batch, paths)."""
    del labels, threads
    if beam_width > _WIDEST:
        raise ValueError(
            f"`beam_width`: pure JAX takes 20 * beam_width**2 bytes for it, so expected at most "
            f"{_WIDEST}, got {beam_width}."
        )
    acts, lengths = _mesh.vary_alike(acts, lengths)
    T, batch = acts.shape[time_axis], lengths.shape

    def frame(state, logits, length, t):
        row = _row(logits, beam_width, **params)
        after, gain = _step(state, row)
        used = t < length
        state = jax.tree.map(lambda x, y: jnp.where(used, x, y), after, state)
        return state, (jnp.where(used, gain + row.gain, 0), row.defined | ~used)

    def finish(state, length, gains, defined):
        bad = ~defined.all() | (length < 0) | (length > T)
        return _results(state, gains.sum(), bad, top_paths, params["softmax"])

    for _ in batch:
        frame = jax.vmap(frame, (0, 0, 0, None))
        finish = jax.vmap(finish, (0, 0, 1, 1))

    # One frame is taken at a time, because a gather from all of them would transpose acts.
    def step(state, t):
        source, t = _operands.in_loop(acts, t)
        return frame(state, lax.dynamic_index_in_dim(source, t, time_axis, False), lengths, t)

    start = _start(beam_width, T, _operands.cost_dtype(acts.dtype))
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *x.shape)), start)
    end = jax.tree.map(lambda x: _mesh.vary_alike(x, acts)[0], start)
    gains, defined = jnp.zeros((T, *batch), end.blank.dtype), jnp.ones((T, *batch), bool)
    if not (isinstance(T, int) and T == 0):  # there is no frame to take
        end, (gains, defined) = lax.scan(step, end, jnp.arange(T, dtype=jnp.int32))
    found, counts, score = finish(end, lengths, gains, defined)
    return [jnp.moveaxis(found, -2, time_axis), counts, score]


def _results(
    end: _Beam, gain: Array, bad: Array, paths: int, softmax: bool
) -> tuple[Array, Array, Array]:
    score = (end.total + gain)[:paths]
    if softmax:
        score = jnp.minimum(score, 0)  # but for rounding it is
    empty = bad | (score == -jnp.inf)
    labels = jnp.where(empty[:, None], -1, end.labels[:paths])
    count = jnp.where(empty, 0, end.length[:paths])
    return labels.T, count, jnp.where(bad, jnp.nan, score)


def _row(logits, width, *, blank, classes_per_frame, softmax) -> _Row:
    """For one prefix, each better class makes another prefix that is at least as probable. One of
    them may be its last label, whose repeat is less probable. So `width` + 1 classes are enough."""
    exact = logits.astype(_operands.cost_dtype(logits.dtype))
    top = exact.max(-1)
    total = jnp.exp(exact - top).sum(-1)
    defined = total > 0  # not NaN; 1 or more, but for a rounding where XLA computes logits anew
    gain = -jnp.log(jnp.where(defined, total, 1)) if softmax else top

    V, C = logits.shape[0], min(width + 1, classes_per_frame or width + 1)
    others = jnp.where(jnp.arange(V, dtype=jnp.int32) == blank, -jnp.inf, exact - top)
    if not isinstance(V, int):  # symbolic (jax.export): there may be fewer classes than C
        others = jnp.pad(others, (0, C), constant_values=-jnp.inf)
    else:
        C = min(C, V - 1)
    scores, best = _largest(others, C)
    return _Row(exact - top, gain, defined, best, scores, blank)


def _largest(x: Array, n: int) -> tuple[Array, Array]:
    """Returns the n largest entries along the last axis, and where they are; the first of equal
    ones first. XLA does not partition lax.top_k along the batch, but a sort it does."""
    position = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    less, position = lax.sort((-x, position), num_keys=1, is_stable=True)
    return -less[..., :n], position[..., :n]


def _start(width: int, T: int, dtype) -> _Beam:
    nothing = jnp.full(width, -jnp.inf, dtype)
    return _Beam(
        blank=nothing.at[0].set(0),
        label=nothing,
        last=jnp.full(width, -1, jnp.int32),
        length=jnp.zeros(width, jnp.int32),
        labels=jnp.full((width, T), -1, jnp.int32),
        ancestor=jnp.zeros((width, width), bool),
    )


def _step(b: _Beam, row: _Row) -> tuple[_Beam, Array]:
    """Returns the beam after a frame, relative to its best prefix, and the score of that."""
    W, C = b.last.shape[0], row.best.shape[0]
    total, best = b.total, row.best
    parent = b.ancestor & (b.length[None] == b.length[:, None] + 1)
    # From its parent a prefix gets paths that had no time to repeat the parent's last label.
    entering = jnp.where(b.last[None] == b.last[:, None], b.blank[:, None], total[:, None])
    entering = jnp.where(parent, entering, -jnp.inf).max(0)
    stay_blank = total + row.logits[row.blank]
    stay_label = jnp.logaddexp(b.label, entering) + row.at(b.last)

    same = b.last[:, None] == best[None]  # (W, C)
    # A product of 0 and 1 does not need the W * W * C bools that an `any` of them does.
    merged = parent.astype(jnp.float32) @ same.astype(jnp.float32) > 0
    longer = jnp.where(same, b.blank[:, None], total[:, None]) + row.scores[None]
    longer = jnp.where(merged, -jnp.inf, longer)

    candidates = jnp.concatenate([jnp.logaddexp(stay_blank, stay_label), longer.reshape(-1)])
    score, chosen = _largest(candidates, W)
    alive = score > -jnp.inf
    gain = jnp.where(alive[0], score[0], 0)
    grows = alive & (chosen >= W)
    source, added = chosen, jnp.full_like(chosen, -1)
    if not (isinstance(C, int) and C == 0):
        source = jnp.where(chosen < W, chosen, (chosen - W) // C)
        added = best[(chosen - W) % C]

    length, labels = b.length[source], b.labels[source]
    # The label that follows prefix i in prefix j, if i is the beginning of j.
    here = jnp.broadcast_to(length[:, None], (W, W))
    follows = jnp.take_along_axis(labels.T, here, axis=0, mode="clip")
    ancestor = b.ancestor[source][:, source]
    grown = (source[:, None] == source[None]) & grows[None]
    ancestor = jnp.where(grows[:, None], ancestor & (follows == added[:, None]), ancestor | grown)
    position = lax.broadcasted_iota(jnp.int32, labels.shape, 1)
    labels = jnp.where(grows[:, None] & (position == length[:, None]), added[:, None], labels)
    after = _Beam(
        blank=jnp.where(alive & ~grows, stay_blank[source] - gain, -jnp.inf),
        label=jnp.where(alive, jnp.where(grows, score, stay_label[source]) - gain, -jnp.inf),
        last=jnp.where(alive, jnp.where(grows, added, b.last[source]), -1),
        length=jnp.where(alive, length + grows.astype(jnp.int32), 0),
        labels=jnp.where(alive[:, None], labels, -1),
        ancestor=ancestor & alive[:, None] & alive[None],
    )
    return after, gain

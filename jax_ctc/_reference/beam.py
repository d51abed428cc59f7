# SPDX-License-Identifier: Apache-2.0
"""Prefix beam search in plain JAX.

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


class _Rows(NamedTuple):
    """What the search needs of the frames of a sequence. Logits are relative to `top`."""

    acts: Array  # (T, V)
    top: Array  # (T,) largest logit
    log_norm: Array  # (T,) of the softmax, relative to `top`
    defined: Array  # (T,) whether a row has a softmax
    best: Array  # (T, C) the most probable classes but the blank, the most probable first
    scores: Array  # (T, C) of these

    def at(self, t: Array, classes: Array) -> Array:
        """Returns the logits of classes at a frame, -inf for a class below 0."""
        taken = self.acts[t, jnp.maximum(classes, 0)].astype(self.top.dtype)
        return jnp.where(classes >= 0, taken - self.top[t], -jnp.inf)


def beam(acts, labels, lengths, *, time_axis, threads, **params):
    """Returns the labels (batch with T, paths), their number and their score (batch, paths)."""
    del labels, threads
    acts, lengths = _mesh.vary_alike(acts, lengths)

    def search(acts, length):
        return _search(acts, length, **params)

    for axis in reversed(range(acts.ndim - 2)):
        after = int(axis >= time_axis)
        search = jax.vmap(search, (after, 0), (after, 0, 0))
    return list(search(acts, lengths))


def _search(acts, length, *, blank, beam_width, top_paths, classes_per_frame, softmax):
    T = acts.shape[0]
    rows = _rows(acts, blank, beam_width, classes_per_frame)
    used = jnp.arange(T, dtype=jnp.int32) < length

    def step(state, t):
        after, gain = _step(state, t, rows, blank)
        state = jax.tree.map(lambda x, y: jnp.where(used[t], x, y), after, state)
        return state, jnp.where(used[t], gain, 0)

    start = _start(beam_width, T, rows.top.dtype)
    end = jax.tree.map(lambda x: _mesh.vary_alike(x, acts)[0], start)
    gains = jnp.zeros_like(rows.top)
    if not (isinstance(T, int) and T == 0):  # a gather from no frames is an error
        end, gains = lax.scan(step, end, jnp.arange(T, dtype=jnp.int32))
    gains = gains + jnp.where(used, -rows.log_norm if softmax else rows.top, 0)
    score = (end.total + gains.sum())[:top_paths]
    bad = (used & ~rows.defined).any() | (length < 0) | (length > T)
    empty = (bad | (score == -jnp.inf))[:, None]
    labels = jnp.where(empty, -1, end.labels[:top_paths])
    count = jnp.where(empty[:, 0], 0, end.length[:top_paths])
    return labels.T, count, jnp.where(bad, jnp.nan, score)


def _rows(acts: Array, blank: int, width: int, classes_per_frame: int) -> _Rows:
    """For one prefix, each better class makes another prefix that is at least as probable. One of
    them may be its last label, whose repeat is less probable. So `width` + 1 classes are enough."""
    V = acts.shape[-1]
    exact = acts.astype(_operands.cost_dtype(acts.dtype))
    top = exact.max(-1)
    total = jnp.exp(exact - top[:, None]).sum(-1)
    defined = total >= 1  # not NaN
    log_norm = jnp.log(jnp.where(defined, total, 1))
    is_blank = lax.broadcasted_iota(jnp.int32, exact.shape, 1) == blank
    others = jnp.where(is_blank, -jnp.inf, exact)
    C = min(width + 1, classes_per_frame or width + 1)
    if not isinstance(V, int):  # symbolic (jax.export): there may be fewer classes than C
        others = jnp.pad(others, ((0, 0), (0, C)), constant_values=-jnp.inf)
    else:
        C = min(C, V - 1)
    scores, best = _largest(others, C)
    return _Rows(acts, top, log_norm, defined, best, scores - top[:, None])


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


def _step(b: _Beam, t: Array, rows: _Rows, blank: int) -> tuple[_Beam, Array]:
    """Returns the beam after a frame, relative to its best prefix, and the score of that."""
    W, C = b.last.shape[0], rows.best.shape[-1]
    total, best, scores = b.total, rows.best[t], rows.scores[t]
    parent = b.ancestor & (b.length[None] == b.length[:, None] + 1)
    # From its parent a prefix gets paths that had no time to repeat the parent's last label.
    entering = jnp.where(b.last[None] == b.last[:, None], b.blank[:, None], total[:, None])
    entering = jnp.where(parent, entering, -jnp.inf).max(0)
    stay_blank = total + rows.at(t, jnp.full(W, blank, jnp.int32))
    stay_label = jnp.logaddexp(b.label, entering) + rows.at(t, b.last)

    same = b.last[:, None] == best[None]  # (W, C)
    merged = (parent[:, :, None] & same[None]).any(1)
    longer = jnp.where(same, b.blank[:, None], total[:, None]) + scores[None]
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

# SPDX-License-Identifier: Apache-2.0
"""The same cost on few classes: those of a sequence's own labels, and all the others as one.

The lattice looks at the blank and the labels only; of the other classes it is enough to know the
sum of their exponentials. With that sum's log in their place, activations (T, L + 3) have the cost
of the (T, V) that they come from (docs/ctc.md, section 6). Sums over slices of V add up, so V can
be spread over devices; and they are the same for all label sequences tried on the same
acts.

Batch axes are as everywhere (_axes.py).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from . import _sums


class Rows(NamedTuple):
    """Of the classes at hand, per frame: the largest logit, how many are equal to it, the sum of
    exp(acts - top) of all others, and the logits of some symbols."""

    top: Array  # batch with T
    ties: Array
    tail: Array
    scores: Array  # batch with T, D; 0 where the symbol is not at hand


def rows(acts: Array, symbols: Array, lengths: Array, time_axis: int, threads: int) -> Rows:
    """One pass over V. `symbols` (batch, D): classes of `acts`, -1 where not at hand."""
    p = {"time_axis": time_axis, "blank": 0, "threads": threads}
    return Rows(*_sums.sums_p.bind(acts, symbols, lengths, **p))


def over_slices(part: Rows, axis_name: str | tuple[str, ...], scatter: int | None = None) -> Rows:
    """The rows of all classes, from those of the slices along a mesh axis. With `scatter` an axis,
    each device gets its part of that axis only."""
    top = lax.pmax(lax.stop_gradient(part.top), axis_name)
    here = part.top == top
    scale = jnp.exp(part.top - _finite(top))
    ties = jnp.where(here, part.ties, 0)
    tail = jnp.where(here, part.tail, (part.ties + part.tail) * scale)
    sums = jnp.concatenate([part.scores, ties[..., None], tail[..., None]], axis=-1)
    if scatter is None:
        sums = lax.psum(sums, axis_name)
    else:
        sums = lax.psum_scatter(sums, axis_name, scatter_dimension=scatter, tiled=True)
        size = sums.shape[scatter]
        top = lax.dynamic_slice_in_dim(top, lax.axis_index(axis_name) * size, size, scatter)
    return Rows(top, sums[..., -2], sums[..., -1], sums[..., :-2])


def symbols_of(labels: Array, blank: int, V: int) -> tuple[Array, Array]:
    """Of labels (batch, L): the symbols (batch, 1 + L), the blank and each label where it comes
    first, -1 elsewhere; and the labels as classes of `acts_of`: padding -1, the bad ones bad."""
    L = labels.shape[-1]
    bad = (labels == blank) | (labels >= V)
    first = jnp.argmax(labels[..., :, None] == labels[..., None, :], axis=-1) if L else labels
    first = first.astype(jnp.int32)
    position = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1)
    own = (first == position) & (labels >= 0) & ~bad
    blanks = jnp.full_like(labels, blank, shape=(*labels.shape[:-1], 1))
    symbols = jnp.concatenate([blanks, jnp.where(own, labels, -1)], axis=-1)
    return symbols, jnp.where(labels < 0, -1, jnp.where(bad, 0, 1 + first))


def acts_of(given: Rows, symbols: Array, time_axis: int) -> Array:
    """Activations (batch with T, L + 3) that have the cost of those that `given` is made of; the
    classes are the `symbols`, then the rest. NaN in a frame without a softmax."""
    top, ties, tail, scores = given
    present = jnp.expand_dims(symbols, time_axis) >= 0
    base = _finite(top)
    equal = present & (scores == top[..., None]) & (top > -jnp.inf)[..., None]
    terms = jnp.where(present, jnp.exp(jnp.where(present, scores, 0) - base[..., None]), 0)
    mine = jnp.where(equal, terms - 1, terms).sum(-1)
    others = (ties - equal.sum(-1, dtype=ties.dtype)) + (tail - mine)
    undefined = ~(top < jnp.inf) | (top == -jnp.inf)
    others += jnp.where(undefined, jnp.nan, 0)
    some = ~(others < jnp.finfo(others.dtype).tiny)
    rest = _in_two(base, jnp.log(jnp.where(some, others, 1)))
    rest = jnp.where(some[..., None], rest, -jnp.inf)
    return jnp.concatenate([jnp.where(present, scores, -jnp.inf), rest], axis=-1)


def _in_two(a: Array, b: Array) -> Array:
    """(..., 2) logits that together have the probability of one logit a + b, which as one float
    would be off by 3e-5 at 1000: one a little smaller, and one for what is missing."""
    total = a + b
    back = total - a
    rounding = (a - (total - back)) + (b - back)
    high = total - 2 * jnp.finfo(total.dtype).eps * (jnp.abs(total) + 1)
    low = high + jnp.log(jnp.expm1((total - high) + rounding))
    both = jnp.stack([high, low], axis=-1)
    total = total[..., None]
    return lax.stop_gradient(both) + (total - lax.stop_gradient(total))  # derivatives: of a + b


def softmax_of(given: Rows) -> Array:
    """Shift and scale of the softmax (batch with T, 2), as the forward pass keeps them."""
    return jnp.stack([given.top, 1 / (given.ties + given.tail)], axis=-1)


def _finite(top: Array) -> Array:
    """0 for -inf: where a slice, or a whole row, holds nothing else."""
    return jnp.where(top == -jnp.inf, 0, top)

# SPDX-License-Identifier: Apache-2.0
"""The same cost on few classes: those of a sequence's own labels.

The lattice looks at the blank and the labels only. So the cost of (T, V) is that of the (T, L + 1)
among them, and what their softmax leaves out: log of the sum over all classes, less that over the
few, in each frame (docs/ctc.md, section 6). Sums over slices of V add up, so V can be sharded over
devices; and they are the same for all label sequences tried on the same acts.

Batch axes are as everywhere (_operands.py). What says that a row has no softmax is `ties`, which
has no derivative. Derivatives are multiplied by `product`: a zero stays a zero, whatever acts,
directions and cotangents hold.
"""

from collections.abc import Callable
from functools import partial, reduce, wraps
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh
from . import row_sums
from .family import RESIDUALS, define, is_zero, zero_like
from .zero_product import product


class Rows(NamedTuple):
    """Of the local classes, per frame: the largest logit, how many are equal to it, the sum of
    exp(acts - top) of all others, and the logits of some symbols.

    A row without a softmax has `ties` NaN (a NaN or +inf in it), or `top` -inf; a frame that is not
    in use has zeros.
    """

    top: Array  # batch with T
    ties: Array
    tail: Array
    scores: Array  # batch with T, D; 0 where the symbol is not local


def _by_itself(f: Callable) -> Callable:
    """Compiled for itself wherever it stands: fused with what is computed from it for a derivative,
    it would have other bits."""

    @wraps(f)
    def alone(*operands, **static):
        return lax.optimization_barrier(f(*lax.optimization_barrier(operands), **static))

    return alone


def rows(acts: Array, symbols: Array, lengths: Array, time_axis: int, threads: int) -> Rows:
    """One pass over V. `symbols` (batch, D): classes of `acts`, -1 where not local."""
    p = {"time_axis": time_axis, "blank": 0, "threads": threads}
    return Rows(*row_sums.sums_p.bind(acts, symbols, lengths, **p))


def over_slices(part: Rows, names: tuple[str, ...], share: int | None, scatters: bool) -> Rows:
    """The rows of all classes, from those of the slices along mesh axes.

    If `share` is given, it is an axis whose length is the number of devices along `names`, and each
    device receives only its own index of that axis. With `scatters` this is a reduce-scatter;
    otherwise every device sums everything and then takes its index."""
    top = _largest(part.top, names)
    ties = jnp.where((part.top == top) | jnp.isnan(part.ties), part.ties, 0)
    tail = _tail(part.top, _with_tangent(part.ties, part.tail), part.tail, top)
    sums = jnp.concatenate([part.scores, ties[..., None], tail[..., None]], axis=-1)

    def own(x: Array) -> Array:
        if share is None:
            return x
        return lax.dynamic_index_in_dim(x, lax.axis_index(names), share, keepdims=False)

    if scatters and share is not None:
        sums = lax.psum_scatter(sums, names, scatter_dimension=share)
    else:
        sums = own(lax.psum(sums, names))
    top, sums = checkpoint_name(own(top), RESIDUALS), checkpoint_name(sums, RESIDUALS)
    return Rows(top, sums[..., -2], sums[..., -1], sums[..., :-2])


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(top: Array, names: tuple[str, ...]) -> Array:
    return lax.pmax(top, names)


@_largest.defjvp
def _(names, primals, tangents):
    """The tangent of `top` may be any (row_sums.py): that of the slices which have it is known."""
    largest = _largest(primals[0], names)
    has_it = primals[0] == largest
    count = lax.psum(has_it.astype(largest.dtype), names)
    return largest, lax.psum(jnp.where(has_it, tangents[0], 0), names) / count


def _with_tangent(x: Array, like: Array) -> Array:
    """x, with zeros as its tangent where `like` has one: inside shard_map JAX 0.7 cannot make the
    zeros that a custom_jvp function is given for an argument without a tangent."""
    return jnp.where(jnp.zeros_like(x, bool), like, x)


@jax.custom_jvp
@partial(jax.jit, inline=True)
@_by_itself
def _tail(top: Array, ties: Array, tail: Array, new_top: Array) -> Array:
    """The tail of a slice when `top` becomes that of all: its largest are in it where they are
    below."""
    scale = _scale(top, new_top)
    below = (top != new_top) & ~jnp.isnan(ties)
    return jnp.where(below, ties * scale, 0) + tail * scale


@_tail.defjvp
def _(primals, tangents):
    top, ties, tail, new_top = primals
    d_top, _, d_tail, d_new_top = tangents
    # Never 0: a slice that adds nothing has the cotangent NaN where its sequence has it.
    scale = jnp.maximum(_scale(top, new_top), jnp.finfo(top.dtype).tiny)
    everything = jnp.where(jnp.isnan(ties), 0, ties) + tail
    of_scale = product(product(scale, everything), d_top - d_new_top)
    return _tail(*primals), product(scale, d_tail) + of_scale


def _scale(top: Array, new_top: Array) -> Array:
    return jnp.exp(top - _finite(new_top))


def symbols_of(labels: Array, blank: int, V: int) -> tuple[Array, Array]:
    """Of labels (batch, L): the symbols (batch, 1 + L), the blank and each label where it comes
    first, -1 elsewhere; and the labels as classes of `acts_of`: padding -1, the bad ones bad."""
    L = labels.shape[-1]
    bad = (labels == blank) | (labels >= V)
    first = jnp.argmax(labels[..., :, None] == labels[..., None, :], axis=-1) if L else labels
    first = first.astype(jnp.int32)
    position = jnp.cumsum(jnp.ones_like(first), axis=-1) - 1  # sharded as labels are
    one_before = [(0, 0)] * (labels.ndim - 1) + [(1, 0)]
    own = (first == position) & (labels >= 0) & ~bad
    symbols = jnp.pad(jnp.where(own, labels, -1), one_before, constant_values=blank)
    return symbols, jnp.where(labels < 0, -1, jnp.where(bad, 0, 1 + first))


def acts_of(given: Rows, symbols: Array, time_axis: int) -> Array:
    """Activations (batch with T, L + 2) of the symbols, and of a class for all the others: its
    gradient, where it is NaN, reaches them. It has probability 0, but 1 where all symbols have 0.
    NaN where there is no softmax."""
    top, ties, tail, _ = given
    scores = _scores(given, symbols, time_axis)
    undefined = jnp.isnan(ties) | (top == -jnp.inf)
    nothing = ~undefined & (lax.stop_gradient(scores).max(-1) == -jnp.inf)
    others = tail - jnp.where(nothing, lax.stop_gradient(tail), jnp.inf)
    few = jnp.concatenate([scores, others[..., None]], axis=-1)
    return few + jnp.where(undefined, jnp.nan, 0).astype(few.dtype)[..., None]


def cost_of(few: Array, given: Rows, symbols: Array, lengths: Array, time_axis: int) -> Array:
    """The costs (batch,) from those of `acts_of`."""
    operands = _scores(given, symbols, time_axis), symbols, lengths, *given[:3]
    p = {"time_axis": time_axis, "blank": 0, "threads": 0}
    total = left_out_p.bind(*_mesh.vary_alike(*operands), **p)
    few = checkpoint_name(few, RESIDUALS)
    return jnp.where(jnp.isfinite(few), few + total, few)


@_by_itself
def _left_out_of_frames(scores, symbols, lengths, top, ties, tail, *, time_axis, **_):
    del symbols
    return _over_frames(_left_out(top, ties, tail, scores), lengths, time_axis)


def _left_out_jvp(primals, tangents, **p):
    """The softmax over all, less that over the few."""
    scores, _, lengths, _, ties, tail = primals
    d_scores, d_tail = tangents[0], tangents[5]
    out, terms = left_out_p.bind(*primals, **p), []
    if not is_zero(d_tail):
        _, _, some, _ = _terms(scores, ties)
        inverse = jnp.where(some, 1 / jnp.where(some, ties + tail, 1), 0)
        terms.append(product(inverse, d_tail))
    if not is_zero(d_scores):
        terms.append(
            -product(_softmax(scores, _with_tangent(ties, scores[..., 0])), d_scores).sum(-1)
        )
    if not terms:
        return out, zero_like(out)
    return out, _over_frames(reduce(jnp.add, terms), lengths, p["time_axis"])


def _over_frames(x: Array, lengths: Array, time_axis: int) -> Array:
    """The sum over frames in use."""
    frame = lax.broadcasted_iota(jnp.int32, x.shape, time_axis)
    used = frame < jnp.expand_dims(lengths, time_axis)
    return _sum(jnp.where(used, x, 0), time_axis)


def _scores(given: Rows, symbols: Array, time_axis: int) -> Array:
    """Logits of the symbols, -inf where there is none. Their tangents are relative to that of top:
    neither the cost among few nor what it leaves out changes with a shift of a frame."""
    top = _finite(given.top)
    shifted = given.scores + (lax.stop_gradient(top) - top)[..., None]
    return jnp.where(jnp.expand_dims(symbols, time_axis) >= 0, shifted, -jnp.inf)


def _left_out(top: Array, ties: Array, tail: Array, scores: Array) -> Array:
    """log (sum over all classes / sum over the symbols) per frame; 0 where one of them is 0."""
    terms, few, some, base = _terms(scores, ties)
    everything = ties + tail
    ratio = jnp.log(jnp.where(some, everything, 1)) - jnp.log(few)
    # A confident row keeps the digits of what little it leaves out: the largest are counted, so
    # that nothing cancels.
    equal = (scores == top[..., None]) & (terms > 0)
    others = (ties - equal.sum(-1, dtype=ties.dtype)) + (tail - jnp.where(equal, 0, terms).sum(-1))
    close = jnp.log1p(jnp.maximum(others, 0) / few)
    exact = jnp.where(base == top, close, (top - base) + ratio)
    return jnp.where(some, exact, 0)


@jax.custom_jvp
def _softmax(scores: Array, ties: Array) -> Array:
    """Among the symbols; 0 where they have nothing."""
    terms, few, _, _ = _terms(scores, ties)
    return terms / few[..., None]


@_softmax.defjvp
def _(primals, tangents):
    p, direction = _softmax(*primals), tangents[0]
    return p, product(p, direction - product(p, direction).sum(-1, keepdims=True))


def _terms(scores: Array, ties: Array) -> tuple[Array, Array, Array, Array]:
    """exp(scores - base), their sum (1 where there is none), whether there is one, and `base`, the
    largest score."""
    base = scores.max(-1)
    some = (ties > 0) & (base > -jnp.inf)
    base = jnp.where(some, base, 0)
    alive = (scores > -jnp.inf) & some[..., None]
    terms = jnp.where(alive, jnp.exp(jnp.where(alive, scores - base[..., None], 0)), 0)
    return terms, jnp.where(some, terms.sum(-1), 1), some, base


def softmax_of(given: Rows) -> Array:
    """Shift and scale of the softmax (batch with T, 2), as the forward pass keeps them."""
    return jnp.stack([given.top, 1 / (given.ties + given.tail)], axis=-1)


def _finite(top: Array) -> Array:
    """0 for -inf: where a slice, or a whole row, holds nothing else."""
    return jnp.where(top == -jnp.inf, 0, top)


def _sum(x: Array, axis: int) -> Array:
    """In groups: one float after the other loses 1e-6 of a sum of 10,000."""
    group, size = 32, x.shape[axis]
    while isinstance(size, int) and size > group:
        padding = [(0, -size % group if a == axis else 0) for a in range(x.ndim)]
        x = jnp.pad(x, padding)
        size = x.shape[axis] // group
        x = x.reshape(*x.shape[:axis], size, group, *x.shape[axis + 1 :]).sum(axis + 1)
    return x.sum(axis)


left_out_p = define("left_out", _left_out_of_frames)
ad.primitive_jvps[left_out_p] = _left_out_jvp

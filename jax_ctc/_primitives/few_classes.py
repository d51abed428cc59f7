# SPDX-License-Identifier: Apache-2.0
"""The same cost from few classes: the blank and the labels of each sequence.

The recursion reads only the logits of the blank and the labels. So the cost over V classes is the
cost over these few, plus the log of the sum over all classes minus the log of the sum over the
few, in each frame (docs/ctc.md, section 6). Sums over slices of V add up, so V can be sharded over
devices. They are the same for all label sequences of the same acts.

The axes are those of _operands.py. The recursion runs on (batch with T, L + 2) acts. `ties` marks a
row without a softmax, because it has no derivative. Derivatives are multiplied by `multiply`, so a
zero stays zero whatever acts, directions and cotangents hold.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce, wraps
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh, _operands
from . import row_sums
from .family import RESIDUALS, define, is_zero, primitives
from .zero_product import multiply


class Sums(NamedTuple):
    """The results of `sums` (row_sums.py): of the local classes, per frame.

    In a row without a softmax `ties` is NaN (the row has a NaN or a +inf), or `top` is -inf. In a
    frame that is not in use all are 0.
    """

    top: Array  # (batch with T): the largest logit
    ties: Array  # how many logits equal it
    tail: Array  # the sum of exp(acts - top) over all others
    scores: Array  # (batch with T, D): logits of the symbols, 0 for a symbol that is not local


def _unfused(f: Callable) -> Callable:
    """Puts f between optimization barriers, because XLA would fuse it with the code of a
    derivative. Its bits must not depend on a derivative."""

    @wraps(f)
    def wrapper(*operands, **static):
        return lax.optimization_barrier(f(*lax.optimization_barrier(operands), **static))

    return wrapper


def is_more_than(size: int, other: int) -> bool:
    """Returns False if a size is symbolic (jax.export), because it may then be any number."""
    return isinstance(size, int) and isinstance(other, int) and size > other


def each_hypothesis(op: str, f: Callable, acts: Array, args: Sequence[Array], dims: Sequence):
    """Returns f(labels, lengths) for many label sequences of the same `acts`, and the new axis of
    each result of the op. It is the last of the batch, so the symbols of all label sequences lie
    side by side."""
    axis = acts.ndim - 2
    moved = [x if d is None else jnp.moveaxis(x, d, axis) for x, d in zip(args, dims, strict=True)]
    axes = [axis + kind.has_time for kind in _operands.SIGNATURES[op].results]
    out_axes = axes if len(axes) > 1 else axes[0]
    return jax.vmap(f, [None if d is None else axis for d in dims], out_axes)(*moved), out_axes


def sums_of(acts: Array, symbols: Array, lengths: Array, time_axis: int, threads: int) -> Sums:
    """Reads the local classes once. `symbols` (batch, D) counts these classes from 0; -1 stands for
    a symbol that is not local."""
    params = {"time_axis": time_axis, "blank": 0, "threads": threads}
    return Sums(*row_sums.sums_p.bind(acts, symbols, lengths, **params))


def scores_of(acts: Array, symbols: Array, lengths: Array, time_axis: int) -> Array:
    """Reads the entries of the symbols alone (batch with T, D), for acts that are log-scores. A
    symbol of -1 has 0."""
    return row_sums.scores_at(acts, symbols, lengths, time_axis)


def over_slices(
    part: Sums | Array, names: tuple[str, ...], share: int | None, scatters: bool
) -> Sums | Array:
    """Returns the sums over all classes, from those over the slices along the mesh axes `names`; of
    log-scores the entries of all symbols.

    If `share` is given, it is an axis whose length is the number of devices along `names`, and each
    device receives only its own index of that axis. With `scatters` this is a reduce-scatter;
    otherwise every device computes all sums and then takes its own index."""

    def own(x: Array) -> Array:
        if share is None:
            return x
        return lax.dynamic_index_in_dim(x, lax.axis_index(names), share, keepdims=False)

    def summed(x: Array) -> Array:
        if scatters and share is not None:
            x = lax.psum_scatter(x, names, scatter_dimension=share)
        else:
            x = own(lax.psum(x, names))
        return checkpoint_name(x, RESIDUALS)

    if not isinstance(part, Sums):
        return summed(part)
    top = _largest(part.top, names)
    ties = jnp.where((part.top == top) | jnp.isnan(part.ties), part.ties, 0)
    tail = tail_below(part.top, _with_tangent(part.ties, part.tail), part.tail, top)
    ties = _with_tangent(ties, tail)  # JAX 0.7 cannot split a cotangent that is partly 0
    sums = summed(jnp.concatenate([part.scores, ties[..., None], tail[..., None]], axis=-1))
    top = checkpoint_name(own(top), RESIDUALS)
    return Sums(top, sums[..., -2], sums[..., -1], sums[..., :-2])


# JAX's partial evaluation drops the rule of a custom_jvp function and keeps its body, for example
# in a gradient that is taken through `scan`. A derivative of that gradient is one of the body. So
# the bodies of this file have the right derivatives themselves. The rules are for digits, and for
# what is 0 or NaN.


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(top: Array, names: tuple[str, ...]) -> Array:
    """Without the rule its tangent is 0, which may be chosen too."""
    return lax.stop_gradient(lax.pmax(lax.stop_gradient(top), names))


@_largest.defjvp
def _(names, primals, tangents):
    """The tangent of the largest may be chosen (row_sums.py). The choice is the mean over those
    slices whose `top` is the largest."""
    largest = _largest(primals[0], names)
    is_largest = primals[0] == largest
    slices = lax.psum(is_largest.astype(largest.dtype), names)
    return largest, lax.psum(jnp.where(is_largest, tangents[0], 0), names) / slices


def _with_tangent(x: Array, like: Array) -> Array:
    """Returns x, with a tangent of zeros if `like` has a tangent. A custom_jvp function needs zeros
    for an argument without a tangent, and inside shard_map JAX 0.7 cannot make them."""
    return jnp.where(jnp.zeros_like(x, bool), like, x)


@jax.custom_jvp
@partial(jax.jit, inline=True)
@_unfused
def tail_below(top: Array, ties: Array, tail: Array, new_top: Array) -> Array:
    """Returns the tail of a slice relative to new_top, the largest logit of all slices. If that is
    not in this slice, the slice's own largest logits belong to the tail."""
    scale = _scale(top, new_top)
    counted = jnp.where(jnp.isnan(ties), 0, ties)
    below = top != new_top
    own = jnp.exp(jnp.where(below | (top == -jnp.inf), 0, top - new_top))  # 1, and its derivatives
    of_ties = counted * jnp.where(below, scale, own - lax.stop_gradient(own))
    return of_ties + tail * scale


@tail_below.defjvp
def _(primals, tangents):
    top, ties, tail, new_top = primals
    d_top, _, d_tail, d_new_top = tangents
    # Never 0, so that a cotangent of NaN also reaches a slice whose terms are 0.
    scale = jnp.maximum(_scale(top, new_top), jnp.finfo(top.dtype).tiny)
    everything = jnp.where(jnp.isnan(ties), 0, ties) + tail
    of_scale = multiply(multiply(scale, everything), d_top - d_new_top)
    return tail_below(*primals), multiply(scale, d_tail) + of_scale


def _scale(top: Array, new_top: Array) -> Array:
    return jnp.exp(top - _finite(new_top))


def symbols_of(labels: Array, blank: int, V: int) -> tuple[Array, Array]:
    """Returns symbols, and the labels (batch, L) as classes of `acts_of`.

    Symbols (batch, 1 + L) are the blank and, at the first position of each different label, its
    class; -1 elsewhere. The labels returned have -1 for padding, and the blank for an invalid
    label, which is invalid too."""
    L = labels.shape[-1]
    invalid = (labels == blank) | (labels >= V)
    first = jnp.argmax(labels[..., :, None] == labels[..., None, :], axis=-1) if L else labels
    first = first.astype(jnp.int32)
    position = jnp.cumsum(jnp.ones_like(first), axis=-1) - 1  # sharded as labels are
    one_before = [(0, 0)] * (labels.ndim - 1) + [(1, 0)]
    own = (first == position) & (labels >= 0) & ~invalid
    symbols = jnp.pad(jnp.where(own, labels, -1), one_before, constant_values=blank)
    return symbols, jnp.where(labels < 0, -1, jnp.where(invalid, 0, 1 + first))


def acts_of(sums: Sums, symbols: Array, time_axis: int) -> Array:
    """Returns activations (batch with T, L + 2) of the symbols, and of one class for all other
    classes.

    The last class has probability 0, or 1 if all symbols have probability 0. It is there because a
    gradient of NaN must reach the other classes through it. A row without a softmax is NaN."""
    top, ties, tail, _ = sums
    scores = _scores(sums, symbols, time_axis)
    undefined = jnp.isnan(ties) | (top == -jnp.inf)
    nothing = ~undefined & (lax.stop_gradient(scores).max(-1) == -jnp.inf)
    others = tail - jnp.where(nothing, lax.stop_gradient(tail), jnp.inf)
    few_acts = jnp.concatenate([scores, others[..., None]], axis=-1)
    return few_acts + jnp.where(undefined, jnp.nan, 0).astype(few_acts.dtype)[..., None]


def acts_of_scores(scores: Array, symbols: Array, time_axis: int) -> Array:
    """The same for log-scores, from the results of `scores_of`."""
    few = jnp.where(jnp.expand_dims(symbols, time_axis) >= 0, scores, -jnp.inf)
    one_after = [(0, 0)] * (few.ndim - 1) + [(0, 1)]
    return jnp.pad(few, one_after, constant_values=-jnp.inf)


def cost(
    sums: Sums | Array, symbols: Array, labels: Array, lengths: Array, time_axis: int, threads: int
) -> Array:
    """Returns the costs (batch,) over all classes, for the results of `symbols_of` and those of
    `sums_of` or, of log-scores, `scores_of`."""
    params = {"time_axis": time_axis, "blank": 0, "threads": threads}

    def cost_of_few(few_acts: Array, softmax: bool) -> Array:
        operands = _mesh.vary_alike(few_acts, labels, lengths)
        return primitives["loss"].bind(*operands, softmax=softmax, **params)

    if not isinstance(sums, Sums):
        return cost_of_few(acts_of_scores(sums, symbols, time_axis), softmax=False)
    few_acts = acts_of(sums, symbols, time_axis)
    few_cost = cost_of_few(few_acts, softmax=True)
    return cost_of(few_cost, few_acts, sums, symbols, lengths, time_axis)


def cost_of(
    few_cost: Array,
    few_acts: Array,
    sums: Sums,
    symbols: Array,
    lengths: Array,
    time_axis: int,
) -> Array:
    """Returns the costs (batch,) over all classes, from those of `acts_of`."""
    operands = few_acts, symbols, lengths, *sums[:3]
    params = {"time_axis": time_axis, "blank": 0, "threads": 0}
    total = left_out_p.bind(*_mesh.vary_alike(*operands), **params)
    few_cost = checkpoint_name(few_cost, RESIDUALS)
    return jnp.where(jnp.isfinite(few_cost), few_cost + total, few_cost)


@_unfused
def _left_out_of_frames(few_acts, symbols, lengths, top, ties, tail, *, time_axis, **_):
    del symbols
    return _over_frames(_left_out(top, ties, tail, few_acts), lengths, time_axis)


def _left_out_jvp(primals, tangents, **params):
    """The derivative is the softmax over all classes minus the softmax over the few."""
    few_acts, _, lengths, _, ties, tail = primals
    d_few_acts, d_tail = tangents[0], tangents[5]
    out, terms = left_out_p.bind(*primals, **params), []
    if not is_zero(d_tail):
        nonzero = _few_sums(few_acts, ties).nonzero
        inverse = jnp.where(nonzero, 1 / jnp.where(nonzero, ties + tail, 1), 0)
        terms.append(multiply(inverse, d_tail))
    if not is_zero(d_few_acts):
        terms.append(_mean(few_acts, _with_tangent(ties, few_acts[..., 0]), d_few_acts))
    return out, _over_frames(reduce(jnp.add, terms), lengths, params["time_axis"])


@jax.checkpoint
def _mean(few_acts: Array, ties: Array, direction: Array) -> Array:
    """Returns minus the mean of a direction under the softmax over the few. That softmax is
    computed again in the backward pass, because it is as large as `few_acts`."""
    return -multiply(_softmax(few_acts, ties), direction).sum(-1)


def _over_frames(x: Array, lengths: Array, time_axis: int) -> Array:
    """Returns the sum over the frames in use."""
    return _sum(jnp.where(_operands.used(x.shape, lengths, time_axis), x, 0), time_axis)


def _scores(sums: Sums, symbols: Array, time_axis: int) -> Array:
    """Returns the logits of the symbols, and -inf for a symbol of -1. Their tangents are relative
    to the tangent of `top`. That is allowed, because no shift of a frame changes the cost over the
    few classes or the part left out."""
    top = _finite(sums.top)
    shifted = sums.scores + (lax.stop_gradient(top) - top)[..., None]
    return jnp.where(jnp.expand_dims(symbols, time_axis) >= 0, shifted, -jnp.inf)


def _left_out(top: Array, ties: Array, tail: Array, few_acts: Array) -> Array:
    """Returns log (sum over all classes / sum over the symbols) per frame, and 0 if one of the sums
    is 0."""
    few = _few_sums(few_acts, ties)
    few_sum = jnp.where(few.nonzero, few.ties + few.tail, 1)
    ratio = jnp.log(jnp.where(few.nonzero, ties + tail, 1)) - jnp.log(few_sum)
    # If the symbols have nearly all of the probability, log1p keeps the digits of the rest. The
    # logits equal to `top` are counted, so no large terms cancel. They do where `tail` has some of
    # them (row_sums.py), but a cost is not small there.
    others = (ties - few.ties) + (tail - few.tail)
    close = jnp.log1p(jnp.maximum(others, 0) / few_sum)
    exact = jnp.where(few.top == top, close, (top - few.top) + ratio)
    return jnp.where(few.nonzero, exact, 0)


@jax.custom_jvp
def _softmax(few_acts: Array, ties: Array) -> Array:
    """Returns the softmax over the symbols, and 0 if their sum is 0. The last class, which stands
    for all others, has 0."""
    few = _few_sums(few_acts, ties)
    log_sum = jnp.log(jnp.where(few.nonzero, few.ties + few.tail, 1))
    alive = (few_acts > -jnp.inf) & few.nonzero[..., None]
    exponent = (few_acts - few.top[..., None]) - log_sum[..., None]
    return jnp.where(alive, jnp.exp(jnp.where(alive, exponent, 0)), 0)


@_softmax.defjvp
def _(primals, tangents):
    p, direction = _softmax(*primals), tangents[0]
    return p, multiply(p, direction - multiply(p, direction).sum(-1, keepdims=True))


class _FewSums(NamedTuple):
    """The sums over the symbols, per frame. All are 0 where `nonzero` is False."""

    top: Array
    ties: Array
    tail: Array
    nonzero: Array  # whether both the symbols and all classes have a sum


def _few_sums(few_acts: Array, ties: Array) -> _FewSums:
    """The kernel of `sums` stores no terms. XLA on a CPU would store those of each sum."""
    frames = few_acts.shape[:-1]
    nothing, used = jnp.zeros((*frames, 0), jnp.int32), jnp.ones(frames, jnp.int32)
    operands = _mesh.vary_alike(few_acts[None], nothing, used)
    params = {"time_axis": 0, "blank": 0, "threads": 0}
    top, few_ties, tail, _ = (x[0] for x in row_sums.sums_p.bind(*operands, **params))
    # The class of all others has probability 0 unless the symbols have none.
    nonzero = (ties > 0) & (few_ties > 0) & (top > -jnp.inf) & (few_acts[..., -1] == -jnp.inf)
    top, few_ties, tail = (jnp.where(nonzero, x, 0) for x in (top, few_ties, tail))
    return _FewSums(top, few_ties, tail, nonzero)


def softmax_of(sums: Sums) -> Array:
    """Returns shift and scale of the softmax (batch with T, 2), as the forward pass keeps them."""
    return jnp.stack([sums.top, 1 / (sums.ties + sums.tail)], axis=-1)


def _finite(top: Array) -> Array:
    """Returns top, with 0 for the -inf of a slice or row whose logits are all -inf."""
    return jnp.where(top == -jnp.inf, 0, top)


def _sum(x: Array, axis: int) -> Array:
    """Sums in groups, because adding 10,000 floats one by one loses 1e-6 of the sum."""
    group, size = 32, x.shape[axis]
    while isinstance(size, int) and size > group:
        padding = [(0, -size % group if a == axis else 0) for a in range(x.ndim)]
        x = jnp.pad(x, padding)
        size = x.shape[axis] // group
        x = x.reshape(*x.shape[:axis], size, group, *x.shape[axis + 1 :]).sum(axis + 1)
    return x.sum(axis)


left_out_p = define("left_out", _left_out_of_frames)
ad.primitive_jvps[left_out_p] = _left_out_jvp

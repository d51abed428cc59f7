# SPDX-License-Identifier: Apache-2.0
"""The recursion in plain JAX: what platforms without kernels run, and how higher derivatives go.

The same numbers as in the kernels, m * 2^e with an exponent for every state (docs/ctc.md, section
3), so the same accuracy. Every function here has the operands of the primitive of its name and can
be differentiated any number of times: exponents are integers, so a tangent shares the exponent of
its value, and since nothing is ever 0 or infinite, neither is a derivative.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import _axes, _scaled
from ._scaled import Scaled


def _over_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` knows at most one batch axis. Further ones are mapped over: merged by a reshape, axes
    that are spread over devices would be gathered."""
    signature = _axes.SIGNATURES[f.__name__]

    @functools.wraps(f)
    def mapped(acts: Array, *rest: Array, time_axis: int, **parameters: Any) -> Any:
        if acts.ndim <= 3:
            return f(acts, *rest, time_axis=time_axis, **parameters)
        inner = max(time_axis - 1, 0)

        def axis(kind: str) -> int:
            return int(kind in _axes.WITH_FRAMES and time_axis == 0)

        outs = [axis(kind) for kind in signature.results]
        return jax.vmap(
            functools.partial(mapped, time_axis=inner, **parameters),
            in_axes=tuple(axis(kind) for kind in signature.operands),
            out_axes=outs if len(outs) > 1 else outs[0],
        )(acts, *rest)

    return mapped


@_over_batch
def loss(acts: Array, labels: Array, lengths: Array, **parameters: Any) -> Array:
    """Cost per sequence, in nats."""
    problem = _flatten(acts, labels, lengths, **parameters)
    return _cost(problem, _total(problem, _alpha(problem))).reshape(lengths.shape)


@_over_batch
def forward(acts: Array, labels: Array, lengths: Array, **parameters: Any) -> list[Array]:
    """Cost, and what the derivatives need: rows (shift, scale) and columns."""
    problem = _flatten(acts, labels, lengths, **parameters)
    cost, rows, columns = _forward(problem)
    frames = _axes.axis_names(_axes.ACTS, acts.ndim - 2, parameters["time_axis"]).index("t")

    def shaped(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*lengths.shape, *x.shape[1:]), -2, frames)

    return [cost.reshape(lengths.shape), shaped(rows), shaped(columns)]


@_over_batch
def tangent(
    acts: Array,
    labels: Array,
    lengths: Array,
    rows: Array,
    columns: Array,
    directions: Array,
    **parameters: Any,
) -> Array:
    """Derivative of the cost along `directions`."""
    time_axis = parameters["time_axis"]
    problem = _flatten(acts, labels, lengths, **parameters)
    unit = _gradient(problem, _frames_of(rows, time_axis), _frames_of(columns, time_axis))
    along = _frames_of(directions, time_axis).astype(unit.dtype)
    # Where there is no gradient the direction is not looked at: it may be anything.
    return jnp.where(unit == 0, 0, unit * along).sum((-2, -1)).reshape(lengths.shape)


@_over_batch
def cotangent(
    acts: Array,
    labels: Array,
    lengths: Array,
    rows: Array,
    columns: Array,
    cotangents: Array,
    **parameters: Any,
) -> Array:
    """Gradient of the costs, each times its cotangent; exactly 0 where that is 0."""
    time_axis = parameters["time_axis"]
    problem = _flatten(acts, labels, lengths, **parameters)
    unit = _gradient(problem, _frames_of(rows, time_axis), _frames_of(columns, time_axis))
    return _like(_with_cotangents(unit, cotangents), acts, time_axis)


@_over_batch
def hvp(
    acts: Array,
    labels: Array,
    lengths: Array,
    rows: Array,
    columns: Array,
    cotangents: Array,
    directions: Array,
    **parameters: Any,
) -> Array:
    """Hessian of the costs times `directions`, each times its cotangent. Reads no residuals."""
    time_axis = parameters["time_axis"]
    wide, along = acts.astype(cotangents.dtype), directions.astype(cotangents.dtype)

    # A row of the Hessian adds up to 0, so any number may be taken off a frame's directions. Taken
    # off is their mean under the occupancies: what is left is small where the directions are large
    # (1000 + noise: an error of 1e-6 in place of 1).
    problem = _flatten(acts, labels, lengths, **parameters)
    unit = _gradient(problem, _frames_of(rows, time_axis), _frames_of(columns, time_axis))
    frames = jnp.where(problem.used[..., None], _frames_of(along, time_axis), 0)
    occupancy = jax.nn.softmax(problem.acts, axis=-1) - unit
    frames -= lax.stop_gradient((occupancy * frames).sum(-1, keepdims=True))

    # rows and columns are functions of acts too: the derivative starts from acts alone.
    def unit_gradient(x: Array) -> Array:
        problem = _flatten(x, labels, lengths, **parameters)
        return _gradient(problem, *_forward(problem)[1:])

    _, change = jax.jvp(unit_gradient, (wide,), (_like(frames, wide, time_axis),))
    return _like(
        _with_cotangents(jnp.where(jnp.isnan(unit), jnp.nan, change), cotangents), acts, time_axis
    )


# ---- the problem in one shape ------------------------------------------------------------------


class _Problem(NamedTuple):
    """N sequences; rows that are not used are zeros, whatever stood there."""

    acts: Array  # (N, T, V), float32 or float64
    labels: Array  # (N, L) as they came, padding replaced by the blank
    position: Array  # (N, L) where each of them stands among the real ones; padding comes after
    states: Array  # (N, S) class of each state: blank, label, blank, ..., blank; S = 2 L + 1
    may_skip: Array  # (N, S) from the state two before
    last: Array  # (N,) index of the last state
    bad: Array  # (N,) a label or a length is not valid
    broken: Array  # (N, T) frames in use of sequences in which a row has no softmax
    used: Array  # (N, T) frames in use of all other sequences
    blank: int
    dense: bool


def _flatten(
    acts: Array, labels: Array, lengths: Array, *, time_axis: int, blank: int, threads: int
) -> _Problem:
    del threads
    L = labels.shape[-1]
    x = _frames_of(acts, time_axis)
    x = x.astype(_axes.cost_dtype(x.dtype))
    N, T, V = x.shape
    labels, lengths = labels.reshape(N, L), lengths.reshape(N)

    padding = labels < 0
    bad = ((labels >= V) | (labels == blank)).any(-1) | (lengths < 0) | (lengths > T)
    count = jnp.where(bad, 0, (~padding).sum(-1, dtype=jnp.int32))
    # Padding goes to the end, the order of the labels stays.
    order = jnp.argsort(padding, axis=-1, stable=True)
    labels = jnp.where(padding | bad[:, None], blank, labels)
    states = jnp.full((N, 2 * L + 1), blank, labels.dtype)
    states = states.at[:, 1::2].set(jnp.take_along_axis(labels, order, axis=-1))
    two_before = jnp.pad(states, ((0, 0), (2, 0)), constant_values=blank)[:, : 2 * L + 1]
    s = _counting(2 * L + 1)

    in_use = (_counting(T) < lengths[:, None]) & ~bad[:, None]
    top = jnp.where(in_use[..., None], x, 0).max(-1)  # NaN where the row has one
    undefined = (~jnp.isfinite(top)).any(-1)
    used = in_use & ~undefined[:, None]
    return _Problem(
        acts=jnp.where(used[..., None], x, 0),
        labels=labels,
        position=jnp.argsort(order, axis=-1),
        states=states,
        may_skip=(s % 2 == 1) & (s > 1) & (states != two_before),
        last=2 * count,
        bad=bad,
        broken=in_use & undefined[:, None],
        used=used,
        blank=blank,
        dense=_axes.is_dense(V, L),
    )


def _counting(n: int) -> Array:
    return jnp.arange(n, dtype=jnp.int32)[None, :]


def _frames_of(x: Array, time_axis: int) -> Array:
    """(..., T at time_axis, ..., K) as (N, T, K)."""
    x = jnp.moveaxis(x, time_axis, -2)
    size = 1
    for d in x.shape[:-2]:
        size *= d
    return x.reshape(size, *x.shape[-2:])


def _like(x: Array, acts: Array, time_axis: int) -> Array:
    """(N, T, V) in the shape and dtype of acts."""
    batch = [d for axis, d in enumerate(acts.shape[:-1]) if axis != time_axis]
    return jnp.moveaxis(x.reshape(*batch, *x.shape[1:]), -2, time_axis).astype(acts.dtype)


def _with_cotangents(unit: Array, cotangents: Array) -> Array:
    c = cotangents.reshape(-1, 1, 1)
    return jnp.where(c == 0, 0, c * unit)


# ---- the recursion -----------------------------------------------------------------------------


def _row_normaliser(p: _Problem) -> tuple[Array, Array, Array]:
    """Shift, sum and log of the sum of every row (N, T): softmax = exp(acts - shift) / sum."""
    shift = lax.stop_gradient(p.acts.max(-1))
    top = p.acts == shift[..., None]
    terms = jnp.exp(p.acts - shift[..., None])
    # The largest entries are counted, so that a sum of 1 + 1e-9 keeps its digits.
    count, tail = top.sum(-1, dtype=terms.dtype), jnp.where(top, terms - 1, terms).sum(-1)
    return shift, count + tail, jnp.log(count) + jnp.log1p(tail / count)


def _emissions(p: _Problem) -> Scaled:
    """(T, N, S) of each state's class."""
    classes = jnp.broadcast_to(p.states[:, None, :], (*p.used.shape, p.states.shape[-1]))
    logits = jnp.take_along_axis(p.acts, classes, axis=-1)
    shift, _, _ = _row_normaliser(p)
    emissions = _scaled.split_exp(logits, jnp.broadcast_to(shift[..., None], logits.shape))
    return Scaled(*(jnp.moveaxis(x, 1, 0) for x in emissions))


def _advance(states: Scaled, may_skip: Array) -> Scaled:
    """Sum over the states one may come from: the state itself, one before, two before (eq. 4)."""
    none = _scaled.none_like(states.m)

    def shifted(by: int) -> Scaled:
        moved = (
            jnp.concatenate([n[..., :by], x[..., :-by]], axis=-1)
            for n, x in zip(none, states, strict=True)
        )
        return Scaled(*moved)

    if states.m.shape[-1] == 1:  # no labels
        return states
    return _scaled.add(states, shifted(1), _scaled.where(may_skip, shifted(2), none))


def _sweep(start: Scaled, emissions: Scaled, used: Array, may_skip: Array) -> Any:
    """Runs the recursion over frames. Returns the last states, and per frame the states before and
    after its emission."""

    def frame(states: Scaled, inputs: Any) -> Any:
        emission, in_use = inputs
        before = _advance(states, may_skip)
        after = _scaled.times(before, emission)
        return _scaled.where(in_use[..., None], after, states), (before, after)

    return lax.scan(frame, start, (emissions, used))


def _start(p: _Problem, index: Array) -> Scaled:
    none = _scaled.none_like(jnp.zeros_like(p.acts, shape=p.states.shape))
    here = _counting(p.states.shape[-1]) == index[:, None]
    return Scaled(none.m, jnp.where(here, 0, none.e))


def _alpha(p: _Problem) -> Scaled:
    """States after the last frame (N, S)."""
    start = _start(p, jnp.zeros_like(p.last))
    return _sweep(start, _emissions(p), p.used.T, p.may_skip)[0]


def _alpha_and_beta(p: _Problem) -> tuple[Scaled, Scaled, Scaled]:
    """alpha after the last frame (N, S), alpha before each frame's emission and beta after it
    (T, N, S). Beta is the same sweep over reversed frames and states, so one sweep does both: on an
    axis of its own, because N may be sharded."""

    def both(alpha: Array, beta: Array, axis: int) -> Array:
        return jnp.stack([alpha, beta], axis)

    first, last = _start(p, jnp.zeros_like(p.last)), _start(p, p.last)
    skip_ahead = jnp.pad(p.may_skip, ((0, 0), (0, 2)))[:, 2:]  # seen from where it starts
    end, (before, after) = _sweep(
        Scaled(*(both(x, jnp.flip(y, -1), 0) for x, y in zip(first, last, strict=True))),
        Scaled(*(both(x, jnp.flip(x, (0, -1)), 1) for x in _emissions(p))),
        both(p.used.T, jnp.flip(p.used.T, 0), 1),
        both(p.may_skip, jnp.flip(skip_ahead, -1), 0),
    )
    return (
        Scaled(*(x[0] for x in end)),
        Scaled(*(x[:, 0] for x in before)),
        Scaled(*(jnp.flip(x[:, 1], (0, -1)) for x in after)),
    )


def _total(p: _Problem, end: Scaled) -> Scaled:
    """Z (N,), the sum over all alignments (eq. 6)."""
    last = end.at(p.last)
    return _scaled.add(
        last,
        _scaled.where(p.last > 0, end.at(jnp.maximum(p.last - 1, 0)), _scaled.none_like(last.m)),
    )


def _cost(p: _Problem, z: Scaled) -> Array:
    _, _, log_sums = _row_normaliser(p)
    log_z = jnp.log(z.m) + z.e.astype(z.m.dtype) * np.log(2).item()
    cost = jnp.maximum(jnp.where(p.used, log_sums, 0).sum(-1) - log_z, 0)  # eq. 7
    cost = jnp.where(z.e < _scaled.NO_PATH, jnp.inf, cost)
    return jnp.where(p.bad | p.broken.any(-1), jnp.nan, cost)


def _forward(p: _Problem) -> tuple[Array, Array, Array]:
    """Cost (N,), rows (N, T, 2 or 0) and columns (N, T, C)."""
    end, alpha, beta = _alpha_and_beta(p)
    z = _total(p, end)
    e = alpha.e + beta.e
    gamma = alpha.m * beta.m * _scaled.pow2(e - e.max(-1, keepdims=True), alpha.m.dtype)  # eq. 8
    gamma = jnp.moveaxis(gamma / gamma.sum(-1, keepdims=True), 0, 1)  # (N, T, S)
    labels = jnp.take_along_axis(gamma[..., 1::2], p.position[:, None, :], axis=-1)
    columns = jnp.concatenate([gamma[..., ::2].sum(-1, keepdims=True), labels], axis=-1)

    shift, sums, _ = _row_normaliser(p)
    rows = jnp.stack([shift, 1 / sums], axis=-1)
    active = (p.used & (z.e >= _scaled.NO_PATH)[:, None])[..., None]
    if p.dense:
        columns = _softmax(p, rows) - _by_class(p, columns)
        rows = rows[..., :0]

    def kept(x: Array) -> Array:
        return jnp.where(p.broken[..., None], jnp.nan, jnp.where(active, x, 0))

    return _cost(p, z), kept(rows), kept(columns)


def _softmax(p: _Problem, rows: Array) -> Array:
    return jnp.exp(p.acts - rows[..., :1]) * rows[..., 1:2]


def _by_class(p: _Problem, columns: Array) -> Array:
    """(N, T, 1 + L) occupancies of the blank and of each label position, as (N, T, V)."""
    blank = jnp.full_like(p.labels, p.blank, shape=(p.labels.shape[0], 1))
    classes = jnp.concatenate([blank, p.labels], axis=-1)

    def one(classes: Array, columns: Array) -> Array:
        return jnp.zeros_like(columns, shape=p.acts.shape[-1]).at[classes].add(columns)

    return jax.vmap(jax.vmap(one, (None, 0)))(classes, columns)


def _gradient(p: _Problem, rows: Array, columns: Array) -> Array:
    """(N, T, V) gradient of the costs, from what `_forward` kept (eq. 9)."""
    if p.dense:
        return columns
    gradient = _softmax(p, rows) - _by_class(p, columns)
    return jnp.where(rows[..., 1:2] == 0, 0, gradient)

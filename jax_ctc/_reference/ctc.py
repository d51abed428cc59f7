# SPDX-License-Identifier: Apache-2.0
"""The primitives in plain JAX: what platforms without kernels run, and how higher derivatives go.

The same numbers as in the kernels, m * 2^e with an exponent for every state (docs/ctc.md, section
3), so the same accuracy. Every function here has the operands of the primitive of its name and can
be differentiated any number of times: exponents are integers, so a tangent shares the exponent of
its value, and since nothing is ever 0 or infinite, neither is a derivative.

A zero stays a zero, whatever it is multiplied with: frames and sequences without a gradient have
none, also where a cotangent or a direction is not finite.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import _operands
from . import lattice, problem
from .problem import Problem


def _over_batch(f: Callable) -> Callable:
    """`f` knows at most one batch axis. Further ones are mapped over: merged by a reshape, axes
    that are sharded over devices would be gathered."""
    signature = _operands.SIGNATURES[f.__name__]

    @functools.wraps(f)
    def mapped(acts, *rest, time_axis, **parameters):
        if acts.ndim <= 3:
            return f(acts, *rest, time_axis=time_axis, **parameters)
        inner = max(time_axis - 1, 0)

        def axis(kind: _operands.Kind) -> int:
            return int(kind.has_time and time_axis == 0)

        outs = [axis(kind) for kind in signature.results]
        return jax.vmap(
            functools.partial(mapped, time_axis=inner, **parameters),
            in_axes=tuple(axis(kind) for kind in signature.operands),
            out_axes=outs if len(outs) > 1 else outs[0],
        )(acts, *rest)

    return mapped


@_over_batch
def loss(acts, labels, lengths, **parameters):
    """Cost per sequence, in nats."""
    p = problem.make(acts, labels, lengths, **parameters)
    return lattice.cost(p).reshape(lengths.shape)


@_over_batch
def forward(acts, labels, lengths, **parameters):
    """Cost, and what the derivatives need: rows (shift, scale) and columns."""
    p = problem.make(acts, labels, lengths, **parameters)
    cost, rows, columns = _forward(p)
    return [cost.reshape(lengths.shape), _unbatched(rows, acts), _unbatched(columns, acts)]


@_over_batch
def tangent(acts, labels, lengths, rows, columns, directions, **parameters):
    """Derivative of the cost along `directions`."""
    p = problem.make(acts, labels, lengths, **parameters)
    unit = _gradient(p, rows, columns)
    along = _batched(directions).astype(unit.dtype)
    change = jnp.where(unit == 0, 0, unit * along)
    return change.sum(-1).sum(p.time_axis).reshape(lengths.shape)


@_over_batch
def cotangent(acts, labels, lengths, rows, columns, cotangents, **parameters):
    """Gradient of the costs, each times its cotangent; exactly 0 where that is 0."""
    p = problem.make(acts, labels, lengths, **parameters)
    unit = _gradient(p, rows, columns)
    return _unbatched(_with_cotangents(unit, cotangents, p), acts).astype(acts.dtype)


@_over_batch
def hvp(acts, labels, lengths, rows, columns, cotangents, directions, **parameters):
    """Hessian of the costs times `directions`, each times its cotangent."""
    wide, along = acts.astype(cotangents.dtype), _batched(directions).astype(cotangents.dtype)

    # A row of the Hessian adds up to 0, so any number may be taken off a frame's directions. Taken
    # off is their mean under the occupancies: what is left is small where the directions are large
    # (1000 + noise: an error of 1e-6 in place of 1).
    p = problem.make(acts, labels, lengths, **parameters)
    unit = _gradient(p, rows, columns)
    used = problem.swapped(p.used, p.time_axis)
    # Nothing changes with a logit of -inf, in whatever direction.
    alive = used[..., None] & (_batched(acts) != -jnp.inf)
    along = jnp.where(alive, along, 0)
    occupancy = _softmax(p, _scale(p)) - unit
    along -= lax.stop_gradient((occupancy * along).sum(-1, keepdims=True))

    # rows and columns are functions of acts too: the derivative starts from acts alone.
    def unit_gradient(x: Array) -> Array:
        p = problem.make(x, labels, lengths, **parameters)
        return _gradient(p, *_forward(p)[1:])

    _, change = jax.jvp(unit_gradient, (wide,), (_unbatched(along, wide),))
    change = jnp.where(jnp.isnan(unit), jnp.nan, jnp.where(alive, change, 0))
    return _unbatched(_with_cotangents(change, cotangents, p), acts).astype(acts.dtype)


# ---- parts of them -----------------------------------------------------------------------------


def _batched(x: Array) -> Array:
    """(T, K) as (T, 1, K): the axes of a problem."""
    return x[:, None] if x.ndim == 2 else x


def _unbatched(x: Array, acts: Array) -> Array:
    return x[:, 0] if acts.ndim == 2 else x


def _forward(p: Problem) -> tuple[Array, Array, Array]:
    """Cost (N,), rows and columns in the order of acts."""
    V, L = p.acts.shape[-1], p.labels.shape[-1]
    dense = _operands.is_dense(V, L)
    cost, columns, possible = lattice.cost_and_columns(p, dense=bool(dense))

    def kept(x: Array) -> Array:  # (T, N, K) in the order of acts
        active = (p.used & possible[None])[..., None]
        x = jnp.where(p.broken[..., None], jnp.nan, jnp.where(active, x, 0))
        return problem.swapped(x, p.time_axis)

    rows = kept(jnp.stack([p.rows.shift, 1 / p.rows.total], axis=-1))
    if dense is False:
        return cost, rows, kept(columns)
    softmax = problem.swapped(_softmax(p, _scale(p)), p.time_axis)
    if dense:
        return cost, rows[..., :0], kept(softmax - columns)
    # Symbolic sizes: both layouts, as wide as the narrower one. At run time one of them is right.
    count, width = _operands.kept_sizes(V, L)
    by_class = _narrowed(kept(softmax - lattice.by_class(p, columns)), width)
    columns = jnp.where(_is_dense_now(V, L), by_class, _narrowed(kept(columns), width))
    return cost, _narrowed(rows, count), columns


def _gradient(p: Problem, rows: Array, columns: Array) -> Array:
    """Gradient of the costs like acts, from what `_forward` kept (eq. 9)."""
    V, L = p.acts.shape[-1], p.labels.shape[-1]
    rows, columns = _batched(rows), _batched(columns)
    dense = _operands.is_dense(V, L)
    if dense:
        return columns
    kept = columns
    if dense is None:
        rows, columns = _widened(rows, 2), _widened(columns, L + 1)
    softmax = problem.softmax(p.acts, rows[..., 0], rows[..., 1])
    gradient = problem.minus_columns(softmax, p, problem.swapped(columns, p.time_axis))
    return (
        gradient if dense is False else jnp.where(_is_dense_now(V, L), _widened(kept, V), gradient)
    )


def _is_dense_now(V: int, L: int) -> Array:
    return jnp.asarray(V) <= jnp.asarray(L) + 1


def _narrowed(x: Array, size: int) -> Array:
    return lax.slice_in_dim(x, 0, size, axis=-1)


def _widened(x: Array, size: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _scale(p: Problem) -> Array:
    """(T, N), 0 in unused frames."""
    return jnp.where(p.used, 1 / p.rows.total, 0)


def _softmax(p: Problem, scale: Array) -> Array:
    shift, scale = (problem.swapped(x, p.time_axis) for x in (p.rows.shift, scale))
    return problem.softmax(p.acts, shift, scale)


def _with_cotangents(unit: Array, cotangents: Array, p: Problem) -> Array:
    c = jnp.expand_dims(cotangents.reshape(-1), (p.time_axis, 2))
    return jnp.where((c == 0) | (unit == 0), 0, c * unit)

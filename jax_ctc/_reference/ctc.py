# SPDX-License-Identifier: Apache-2.0
"""The primitives in pure JAX, for platforms without kernels and for derivatives of third order.

Each function has the name and the operands of its primitive (_primitives/ctc.py). The values are
those of the kernels, m * 2^e with an exponent for every state (docs/ctc.md, section 3), so the
accuracy is the same.

Each function can be differentiated any number of times. Exponents are integers, so a tangent shares
the exponent of its value. No value is 0 or infinite, so no derivative divides by 0.

A zero stays zero, whatever it is multiplied with. So frames and sequences without a gradient have a
gradient of 0, even if a cotangent or a direction is not finite.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from .. import _operands
from . import lattice, problem
from .batch import over_batch
from .problem import Problem


@over_batch
def loss(acts, labels, lengths, **params):
    """Returns the cost per sequence, in nats."""
    p = problem.make(acts, labels, lengths, **params)
    return lattice.cost(p).reshape(lengths.shape)


@over_batch
def forward(acts, labels, lengths, **params):
    """Returns the cost and the residuals rows (shift, scale) and columns."""
    p = problem.make(acts, labels, lengths, **params)
    cost, rows, columns = _forward(p)
    return [cost.reshape(lengths.shape), _unbatched(rows, acts), _unbatched(columns, acts)]


@over_batch
def tangent(acts, labels, lengths, rows, columns, direction, **params):
    """Returns the derivative of the cost along `direction`."""
    p = problem.make(acts, labels, lengths, **params)
    unit = _gradient(p, rows, columns)
    direction = _batched(direction).astype(unit.dtype)
    terms = jnp.where(unit == 0, 0, unit * direction)
    return terms.sum(-1).sum(p.time_axis).reshape(lengths.shape)


@over_batch
def cotangent(acts, labels, lengths, rows, columns, cotangents, **params):
    """Returns the gradient of each cost times its cotangent; exactly 0 if the cotangent is 0."""
    p = problem.make(acts, labels, lengths, **params)
    unit = _gradient(p, rows, columns)
    return _unbatched(_with_cotangents(unit, cotangents, p), acts).astype(acts.dtype)


@over_batch
def hvp(acts, labels, lengths, rows, columns, cotangents, direction, **params):
    """Returns the Hessian of each cost times `direction` times the cotangent."""
    exact = acts.astype(cotangents.dtype)
    direction = _batched(direction).astype(cotangents.dtype)

    # A row of the Hessian adds up to 0, so any number may be subtracted from a frame's direction.
    # We subtract its mean under the occupancies, because the rest is small even if the direction is
    # large: for 1000 + noise the error is 1e-6 instead of 1.
    p = problem.make(acts, labels, lengths, **params)
    unit = _gradient(p, rows, columns)
    used = problem.swapped(p.used, p.time_axis)
    # A logit of -inf has no influence, so its direction counts as 0.
    alive = used[..., None] & (_batched(acts) != -jnp.inf)
    direction = jnp.where(alive, direction, 0)
    occupancy = _softmax(p) - unit
    mean = jnp.where(occupancy == 0, 0, occupancy * direction).sum(-1, keepdims=True)
    # Where the mean is finite, and the direction is not, the occupancy is 0: nothing changes there.
    direction = jnp.where(jnp.isfinite(direction), direction, mean)
    direction -= lax.stop_gradient(mean)

    # rows and columns depend on acts too, so they are computed again from acts.
    def unit_gradient(x: Array) -> Array:
        p = problem.make(x, labels, lengths, **params)
        return _gradient(p, *_forward(p)[1:])

    _, d_unit = jax.jvp(unit_gradient, (exact,), (_unbatched(direction, exact),))
    d_unit = jnp.where(jnp.isnan(unit), jnp.nan, jnp.where(alive, d_unit, 0))
    return _unbatched(_with_cotangents(d_unit, cotangents, p), acts).astype(acts.dtype)


# ---- steps of these ----------------------------------------------------------------------------


def _batched(x: Array) -> Array:
    """Returns (T, K) as (T, 1, K), the axes of a problem."""
    return x[:, None] if x.ndim == 2 else x


def _unbatched(x: Array, acts: Array) -> Array:
    return x[:, 0] if acts.ndim == 2 else x


def _forward(p: Problem) -> tuple[Array, Array, Array]:
    """Returns the cost (N,), and the residuals in the order of acts."""
    V, L = p.acts.shape[-1], p.labels.shape[-1]
    dense = _operands.is_dense(V, L)
    cost, columns, possible = lattice.cost_and_columns(p, dense=bool(dense))

    def kept(x: Array, may_be_nan: Array | bool = True) -> Array:  # (T, N, K) in the order of acts
        active = (p.used & possible[None])[..., None]
        undefined = p.undefined[..., None] & may_be_nan
        x = jnp.where(undefined, jnp.nan, jnp.where(active, x, 0))
        return problem.swapped(x, p.time_axis)

    rows = kept(jnp.stack([p.normaliser.shift, 1 / p.normaliser.total], axis=-1))
    if not p.softmax:
        rows = rows[..., :0]
    if dense is False:
        return cost, rows, kept(columns)
    softmax = problem.swapped(_softmax(p), p.time_axis)
    read = True if p.softmax else problem.is_read(p)
    if dense:
        return cost, rows[..., :0], kept(softmax - columns, read)
    # With symbolic sizes both layouts are computed, cut to the width of the narrower one. At run
    # time one of the two is chosen.
    factors, width = _operands.kept_sizes(V, L, p.softmax)
    by_class = _narrowed(kept(softmax - lattice.by_class(p, columns), read), width)
    columns = jnp.where(_is_dense_now(V, L), by_class, _narrowed(kept(columns), width))
    return cost, _narrowed(rows, factors), columns


def _gradient(p: Problem, rows: Array, columns: Array) -> Array:
    """Returns the gradient of each cost, in the order of acts, from the residuals of `_forward`
    (eq. 9)."""
    V, L = p.acts.shape[-1], p.labels.shape[-1]
    rows, columns = _batched(rows), _batched(columns)
    dense = _operands.is_dense(V, L)
    if dense:
        return columns
    kept = columns
    if dense is None:
        columns = _widened(columns, L + 1)
        rows = _widened(rows, 2) if p.softmax else rows
    if p.softmax:
        softmax = problem.softmax(p.acts, rows[..., 0], rows[..., 1])
    else:
        softmax = jnp.zeros_like(p.acts, columns.dtype)
    gradient = problem.minus_columns(softmax, p, columns)
    return (
        gradient if dense is False else jnp.where(_is_dense_now(V, L), _widened(kept, V), gradient)
    )


def _is_dense_now(V: int, L: int) -> Array:
    return jnp.asarray(V) <= jnp.asarray(L) + 1


def _narrowed(x: Array, size: int) -> Array:
    return lax.slice_in_dim(x, 0, size, axis=-1)


def _widened(x: Array, size: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _softmax(p: Problem) -> Array:
    """Returns the softmax in the order of acts, 0 in unused frames and of log-scores."""
    if not p.softmax:
        return jnp.zeros_like(p.acts, p.dtype)
    scale = jnp.where(p.used, 1 / p.normaliser.total, 0)
    shift, scale = (problem.swapped(x, p.time_axis) for x in (p.normaliser.shift, scale))
    return problem.softmax(p.acts, shift, scale)


def _with_cotangents(unit: Array, cotangents: Array, p: Problem) -> Array:
    c = jnp.expand_dims(cotangents.reshape(-1), (p.time_axis, 2))
    return jnp.where((c == 0) | (unit == 0), 0, c * unit)

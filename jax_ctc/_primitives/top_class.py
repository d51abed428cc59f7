# SPDX-License-Identifier: Apache-2.0
"""The primitive of the most probable class of each frame.

    top_class    acts, labels, lengths    -> best, top, others

`top` is the largest logit of a frame, `best` the first class that has it, and `others` the sum of
exp(acts - top) over all classes but `best`. So the log-probability of `best` is -log1p(others). A
frame without a softmax has (-1, -inf, NaN), a frame that is not in use (-1, 0, 0). The operand
`labels` is empty, (batch, 0): it is there because every kernel has it.

The tangents are those of the logit of `best` and of the sum, as long as `best` stays the best.
Callers may not read frames at and after the length.
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh, _operands
from .family import RESIDUALS, define, zero_like
from .row_sums import sums_centre_p, sums_tangent_p
from .zero_product import multiply

_ACTS, _LENGTHS = 0, 2  # positions of operands


def _top_class(acts, labels, lengths, *, time_axis, **_):
    del labels
    used = _operands.used(acts.shape[:-1], lengths, time_axis)
    x = jnp.where(used[..., None], acts, 0).astype(_operands.cost_dtype(acts.dtype))
    best = lax.argmax(x, x.ndim - 1, jnp.int32)[..., None]
    top = jnp.take_along_axis(x, best, axis=-1)
    defined = jnp.isfinite(top)  # it is the first NaN of a row that has one
    # The best class is left out by its number: exp(x - top) of itself may be less than 1, if XLA
    # computes x anew, as a product that is rounded in another way.
    others = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) != best
    others &= defined & used[..., None]
    terms = jnp.where(others, jnp.exp(jnp.where(others, x - top, 0)), 0)
    best, top, defined = best[..., 0], top[..., 0], defined[..., 0]
    return [
        jnp.where(used & defined, best, -1),
        jnp.where(defined, top, -jnp.inf),
        jnp.where(defined, terms.sum(-1), jnp.nan),
    ]


def _batch_shared_acts(op, args, dims, **params):
    """Batches many lengths for the same `acts`: one pass reads each frame that is in use for any of
    them. Returns None if the general rule is needed."""
    if dims[:_LENGTHS] != (None,) * _LENGTHS or _mesh.mapped_over(args, dims):
        return None
    lengths = args[_LENGTHS].max(dims[_LENGTHS], initial=0)
    out = top_class_p.bind(*args[:_LENGTHS], lengths, **params)
    return out, [None] * len(out)


def tangents(primals, found, direction, **params) -> tuple[Array, Array]:
    """Returns those of `top` and `others` along a direction of their dtype."""
    best, top, others = found
    used = (best >= 0) | jnp.isnan(others)
    d_top = _mesh.taken_along(direction, jnp.maximum(best, 0)[..., None])[..., 0]
    d_top = jnp.where(used, d_top, 0)
    # Relative to the mean of the direction: of a direction of 1000 + noise the noise keeps its
    # digits. What this choice adds to one term it takes from the other. The best class counts in
    # the second alone. Else a small `others` would be lost beside its exp(0).
    centre = sums_centre_p.bind(*primals, top, direction, **params)
    direction = _with_best(direction, best, centre)
    d_others, _ = sums_tangent_p.bind(*primals, top, direction, centre, **params)
    return d_top, d_others - multiply(others, d_top - centre)


def _with_best(x: Array, best: Array, value: Array) -> Array:
    """Returns x with another value at the best class of each frame that has one."""

    def put(row: Array, best: Array, value: Array) -> Array:
        return row.at[best].set(value, mode="drop")

    put = _operands.along_last_axis(put, best.ndim)
    return put(x, jnp.where(best < 0, x.shape[-1], best), value)


def _jvp(primals, d_primals, **params):
    out = [checkpoint_name(x, RESIDUALS) for x in top_class_p.bind(*primals, **params)]
    direction = d_primals[_ACTS].astype(out[1].dtype)  # so that halves are rounded once
    return out, [zero_like(out[0]), *tangents(primals, out, direction, **params)]


top_class_p = define("top_class", _top_class, _batch_shared_acts)
ad.primitive_jvps[top_class_p] = _jvp

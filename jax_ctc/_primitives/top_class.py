# SPDX-License-Identifier: Apache-2.0
"""The primitive of the most probable class of each frame.

    top_class    acts, labels, lengths    -> best, top, others

`top` is the largest logit of a frame, `best` the first class that has it, and `others` the sum of
exp(acts - top) over all classes but `best`. So the log-probability of `best` is -log1p(others). A
frame without a softmax has (-1, -inf, NaN), a frame that is not in use (-1, 0, 0). The operand
`labels` is empty, (batch, 0): it is there because every kernel has it.

The tangents are those of the logit of `best` and of the sum, as long as `best` stays the best.
"""

import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh, _operands
from . import custom_call, row_sums
from .family import RESIDUALS, define, is_zero, zero_like
from .zero_product import multiply

_ACTS, _LENGTHS = 0, 2  # positions of operands


def pure_top_class(acts, labels, lengths, **params):
    top, ties, tail, _ = row_sums.pure_sums(acts, labels, lengths, **params)
    # XLA may compute acts anew, and round them in another way than for `top`. Then there may be no
    # ties, and the best class counts in `tail`.
    defined = ties + tail > 0
    others = jnp.where(defined, jnp.maximum(ties - 1 + tail, 0), 0)
    undefined = _operands.used(top.shape, lengths, params["time_axis"]) & ~defined
    best = lax.argmax(acts, acts.ndim - 1, jnp.int32)
    return [jnp.where(defined, best, -1), top, jnp.where(undefined, jnp.nan, others)]


def _in_two_passes(acts, labels, lengths, *, time_axis, **_):
    """XLA on a CPU would store the terms of the sum; on a GPU it does not."""
    del labels
    used = _operands.used(acts.shape[:-1], lengths, time_axis)
    x = jnp.where(used[..., None], acts, 0).astype(_operands.cost_dtype(acts.dtype))
    best = lax.argmax(x, x.ndim - 1, jnp.int32)[..., None]
    top = jnp.take_along_axis(x, best, axis=-1)
    defined = jnp.isfinite(top)  # it is the first NaN of a row that has one
    # The best class is left out by its number: exp(x - top) of itself may be less than 1, if XLA
    # computes x anew.
    others = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) != best
    others &= defined & used[..., None]
    rest = jnp.where(others, jnp.exp(jnp.where(others, x - top, 0)), 0).sum(-1)
    best, top, defined = best[..., 0], top[..., 0], defined[..., 0]
    return [
        jnp.where(used & defined, best, -1),
        jnp.where(defined, top, -jnp.inf),
        jnp.where(defined, rest, jnp.nan),
    ]


def _batch_shared_acts(op, args, dims, **params):
    """Batches many lengths for the same `acts`: one pass reads each frame that is in use for any of
    them. No caller reads the frames at and after its own length. Returns None if the general rule
    is needed."""
    if dims[:_LENGTHS] != (None,) * _LENGTHS or _mesh.mapped_over(args, dims):
        return None
    lengths = args[_LENGTHS].max(dims[_LENGTHS], initial=0)
    out = top_class_p.bind(*args[:_LENGTHS], lengths, **params)
    return out, [None] * len(out)


def _jvp(primals, tangents, **params):
    out = [checkpoint_name(x, RESIDUALS) for x in top_class_p.bind(*primals, **params)]
    if is_zero(tangents[_ACTS]):
        return out, [zero_like(x) for x in out]
    best, top, others = out
    direction = tangents[_ACTS].astype(top.dtype)  # so that halves are rounded once
    d_top = jnp.take_along_axis(direction, jnp.maximum(best, 0)[..., None], axis=-1)[..., 0]
    used = _operands.used(top.shape, primals[_LENGTHS], params["time_axis"])
    d_top = jnp.where(used, d_top, 0)
    # Relative to the mean of the direction: of a direction of 1000 + noise the noise keeps its
    # digits. What this choice adds to one term it takes from the other.
    centre = row_sums.sums_centre_p.bind(*primals, top, direction, **params)
    d_sum, _ = row_sums.sums_tangent_p.bind(*primals, top, direction, centre, **params)
    return out, [zero_like(best), d_top, d_sum - multiply(1 + others, d_top - centre)]


top_class_p = define("top_class", pure_top_class, _batch_shared_acts)
ad.primitive_jvps[top_class_p] = _jvp
custom_call.register_pure(top_class_p, _in_two_passes, platform="cuda")

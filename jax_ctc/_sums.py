# SPDX-License-Identifier: Apache-2.0
"""What the lattice needs of a row of V classes, or of a slice of it, in one pass.

    sums            acts, symbols, lengths                              -> top, count, tail, scores
    sums_tangent    acts, symbols, lengths, top, d_acts                 -> d_tail, d_scores
    sums_cotangent  acts, symbols, lengths, top, ct_tail, ct_scores     -> d_acts

Per frame in use: `top`, the largest logit; `count`, how many are equal to it; `tail`, the sum of
exp(acts - top) of all others; `scores`, the logits of `symbols` (batch, D), 0 for those below 0. In
other frames all are 0. A row with a NaN or +inf has `top` -inf, `count` NaN and `tail` 0: what is
multiplied with cotangents is never NaN.

`top` is a reference, no function of acts: its tangent is 0, and `tail` has the derivative of the
whole sum of exp(acts - top). So derivatives are linear in exp(acts - top), and each is one of the
last two primitives: any order, without a rule for it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from . import _axes
from ._define import RESIDUALS, define, is_zero, primitives, spread_over, sum_or_zero, zero_like

_SYMBOLS, _LENGTHS, _LINEAR = 1, 2, 4  # positions of operands


# ---- plain JAX ---------------------------------------------------------------------------------


def _used(acts: Array, lengths: Array, time_axis: int) -> Array:
    """(batch with T, 1)"""
    shape = (*acts.shape[:-1], 1)
    frame = lax.broadcasted_iota(jnp.int32, shape, time_axis)
    return frame < jnp.expand_dims(lengths, (time_axis, lengths.ndim + 1))


def _classes(acts: Array, symbols: Array, time_axis: int) -> Array:
    """`symbols` at every frame."""
    at = jnp.expand_dims(symbols, time_axis)
    return jnp.broadcast_to(at, (*acts.shape[:-1], symbols.shape[-1]))


def _scores(acts: Array, symbols: Array, used: Array, time_axis: int) -> Array:
    at = _classes(acts, symbols, time_axis)
    taken = jnp.take_along_axis(acts, jnp.maximum(at, 0), axis=-1)
    return jnp.where(used & (at >= 0), taken.astype(_axes.cost_dtype(acts.dtype)), 0)


def _terms(acts: Array, lengths: Array, top: Array, time_axis: int) -> tuple[Array, Array]:
    """exp(acts - top), 0 in frames not in use and for slices of nothing but -inf; frames in use."""
    exact, used = acts.astype(top.dtype), _used(acts, lengths, time_axis)
    some = used & (top != -jnp.inf)[..., None]
    return jnp.where(some, jnp.exp(jnp.where(some, exact - top[..., None], 0)), 0), used


def _sums(
    acts: Array, symbols: Array, lengths: Array, *, time_axis: int, blank: int, threads: int
) -> list[Array]:
    del blank, threads
    used = _used(acts, lengths, time_axis)
    exact = jnp.where(used, acts, 0).astype(_axes.cost_dtype(acts.dtype))
    top = jnp.where(used[..., 0], exact.max(-1), 0)
    terms, _ = _terms(acts, lengths, top, time_axis)
    equal = used & (exact == top[..., None]) & (terms > 0)
    # The largest are counted: a sum of 1 + 1e-9 keeps its digits.
    tail, count = jnp.where(equal, 0, terms).sum(-1), equal.sum(-1, dtype=top.dtype)
    bad = jnp.isnan(tail) | ~(top < jnp.inf)
    return [
        jnp.where(bad, -jnp.inf, top),
        jnp.where(bad, jnp.nan, count),
        jnp.where(bad, 0, tail),
        _scores(acts, symbols, used, time_axis),
    ]


def _sums_tangent(
    acts: Array,
    symbols: Array,
    lengths: Array,
    top: Array,
    d_acts: Array,
    *,
    time_axis: int,
    blank: int,
    threads: int,
) -> list[Array]:
    del blank, threads
    terms, used = _terms(acts, lengths, top, time_axis)
    d_tail = jnp.where(terms == 0, 0, terms * d_acts.astype(top.dtype)).sum(-1)
    return [d_tail, _scores(d_acts, symbols, used, time_axis)]


def _sums_cotangent(
    acts: Array,
    symbols: Array,
    lengths: Array,
    top: Array,
    ct_tail: Array,
    ct_scores: Array,
    *,
    time_axis: int,
    blank: int,
    threads: int,
) -> Array:
    del blank, threads
    terms, used = _terms(acts, lengths, top, time_axis)
    dense = jnp.where(ct_tail[..., None] == 0, 0, terms * ct_tail[..., None])
    dense = jnp.where(used, dense, 0)
    at = _classes(acts, symbols, time_axis)
    at = jnp.where(used & (at >= 0), at, acts.shape[-1])  # beyond the end: dropped

    def add(row: Array, at: Array, x: Array) -> Array:
        return row.at[at].add(x, mode="drop")

    for _ in range(acts.ndim - 1):  # as batching dimensions, which a partitioner can split
        add = jax.vmap(add)
    return add(dense, at, ct_scores).astype(acts.dtype)


# ---- batching ----------------------------------------------------------------------------------


def _batch_of_one_acts(
    op: str, args: Any, dims: Any, *, time_axis: int, **parameters: Any
) -> tuple[Any, Any] | None:
    """Several sets of symbols, but one `acts` for all: it is read once, for all symbols together.

    Frames that are in use for any are read for all; nobody looks at those behind his own length.
    """
    mapped = [i for i, d in enumerate(dims) if d is not None]
    if op == "sums_cotangent" or not set(mapped) <= {_SYMBOLS, _LENGTHS} or spread_over(args, dims):
        return None
    operands = list(args)
    if _LENGTHS in mapped:
        operands[_LENGTHS] = args[_LENGTHS].max(dims[_LENGTHS], initial=0)
    if _SYMBOLS not in mapped:
        out = primitives[op].bind(*operands, time_axis=time_axis, **parameters)
        return out, [None] * len(out)
    symbols = jnp.moveaxis(args[_SYMBOLS], dims[_SYMBOLS], -2)
    operands[_SYMBOLS] = symbols.reshape(*symbols.shape[:-2], symbols.shape[-2] * symbols.shape[-1])
    *sums, scores = primitives[op].bind(*operands, time_axis=time_axis, **parameters)
    scores = scores.reshape(*scores.shape[:-1], *symbols.shape[-2:])
    return [*sums, scores], [None] * len(sums) + [scores.ndim - 2]


# ---- derivatives -------------------------------------------------------------------------------


def _sums_jvp(primals: Any, tangents: Any, **p: Any) -> Any:
    top, count, tail, scores = sums_p.bind(*primals, **p)
    top, count, tail, scores = (checkpoint_name(x, RESIDUALS) for x in (top, count, tail, scores))
    fixed = [zero_like(top), zero_like(count)]
    if is_zero(tangents[0]):
        return [top, count, tail, scores], [*fixed, zero_like(tail), zero_like(scores)]
    along = sums_tangent_p.bind(*primals, top, tangents[0], **p)
    return [top, count, tail, scores], [*fixed, *along]


def _tangent_jvp(primals: Any, tangents: Any, **p: Any) -> Any:
    *kept, d_acts = primals
    out = sums_tangent_p.bind(*primals, **p)
    d_tail, d_scores = [], []
    if not is_zero(tangents[_LINEAR]):
        tail, scores = sums_tangent_p.bind(*kept, tangents[_LINEAR], **p)
        d_tail.append(tail)
        d_scores.append(scores)
    if not is_zero(tangents[0]):
        d_tail.append(sums_tangent_p.bind(*kept, tangents[0] * d_acts, **p)[0])
    return out, [sum_or_zero(out[0], d_tail), sum_or_zero(out[1], d_scores)]


def _tangent_transpose(cts: Any, *operands: Any, **p: Any) -> Any:
    *kept, d_acts = operands
    assert ad.is_undefined_primal(d_acts)
    if all(map(is_zero, cts)):
        return [None] * len(kept) + [ad.Zero(d_acts.aval)]
    cts = map(ad.instantiate_zeros, cts)
    return [None] * len(kept) + [sums_cotangent_p.bind(*kept, *cts, **p)]


def _cotangent_jvp(primals: Any, tangents: Any, **p: Any) -> Any:
    *kept, ct_tail, ct_scores = primals
    out = sums_cotangent_p.bind(*primals, **p)
    d_cts, terms = tangents[_LINEAR:], []
    if not all(map(is_zero, d_cts)):
        terms.append(sums_cotangent_p.bind(*kept, *map(ad.instantiate_zeros, d_cts), **p))
    if not is_zero(tangents[0]):
        of_tail = sums_cotangent_p.bind(*kept, ct_tail, jnp.zeros_like(ct_scores), **p)
        terms.append(of_tail * tangents[0])
    return out, sum_or_zero(out, terms)


def _cotangent_transpose(d_out: Any, *operands: Any, **p: Any) -> Any:
    *kept, ct_tail, ct_scores = operands
    cts = (ct_tail, ct_scores)
    if is_zero(d_out):
        out: list[Any] = [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in cts]
    else:
        along = sums_tangent_p.bind(*kept, d_out, **p)
        out = [y if ad.is_undefined_primal(x) else None for x, y in zip(cts, along, strict=True)]
    return [None] * len(kept) + out


# ---- registrations -----------------------------------------------------------------------------

sums_p = define("sums", _sums, _batch_of_one_acts)
ad.primitive_jvps[sums_p] = _sums_jvp

sums_tangent_p = define("sums_tangent", _sums_tangent, _batch_of_one_acts)
ad.primitive_jvps[sums_tangent_p] = _tangent_jvp
ad.primitive_transposes[sums_tangent_p] = _tangent_transpose

sums_cotangent_p = define("sums_cotangent", _sums_cotangent, _batch_of_one_acts)
ad.primitive_jvps[sums_cotangent_p] = _cotangent_jvp
ad.primitive_transposes[sums_cotangent_p] = _cotangent_transpose

# SPDX-License-Identifier: Apache-2.0
"""What the lattice needs of a row of V classes, or of a slice of it, in one pass.

    sums            acts, symbols, lengths                              -> top, count, tail, scores
    sums_centre     acts, symbols, lengths, top, d_acts                 -> d_top
    sums_tangent    acts, symbols, lengths, top, d_acts, d_top          -> d_tail, d_scores
    sums_cotangent  acts, symbols, lengths, top, ct_tail, ct_scores     -> d_acts

Per frame in use: `top`, the largest logit; `count`, how many are equal to it; `tail`, the sum of
exp(acts - top) of all others; `scores`, the logits of `symbols` (batch, D), 0 for those below 0. In
other frames all are 0. A row with a NaN or +inf has `top` -inf, `count` NaN and `tail` 0: what is
multiplied with cotangents is never NaN.

`top` is a reference: the sum of all is (count + tail) * exp(top), and no result that is made of
`top`, `count`, `tail` and `scores` depends on which reference it is. So its tangent may be chosen
too, as long as that of `tail` is relative to it:

    d_tail = sum of exp(acts - top) * (d_acts - d_top)

Chosen is the mean of a frame's direction under the softmax of the slice (`sums_centre`), because
what is left is then small where directions are large: of a direction of 1000 + noise the noise
keeps its digits. For the same reason the cotangent of `top` is not needed: what it would add to the
gradient is 0.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh, _operands
from .._reference import problem
from .family import RESIDUALS, Tangent, define, is_zero, primitives, sum_or_zero, zero_like
from .zero_product import product

_SYMBOLS, _LENGTHS, _TOP, _LINEAR = 1, 2, 3, 4  # positions of operands


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
    return jnp.where(used & (at >= 0), taken.astype(_operands.cost_dtype(acts.dtype)), 0)


def _terms(acts: Array, lengths: Array, top: Array, time_axis: int) -> tuple[Array, Array]:
    """exp(acts - top), 0 in frames not in use and for slices of nothing but -inf; frames in use."""
    exact, used = acts.astype(top.dtype), _used(acts, lengths, time_axis)
    some = used & (top != -jnp.inf)[..., None]
    return jnp.where(some, jnp.exp(jnp.where(some, exact - top[..., None], 0)), 0), used


def _relative(d_acts: Array, d_top: Tangent, top: Array) -> Array:
    """A direction less that of top, in the precision of the costs."""
    d_acts = d_acts.astype(top.dtype)
    return d_acts if isinstance(d_top, ad.Zero) else d_acts - d_top[..., None]


def _sums(acts, symbols, lengths, *, time_axis, **_):
    used = _used(acts, lengths, time_axis)
    top, has_nan = problem.largest(acts, used[..., 0])
    bad = has_nan | (top == jnp.inf)
    count, tail = problem.count_and_tail(acts, used[..., 0], jnp.where(jnp.isfinite(top), top, 0))
    return [
        jnp.where(bad, -jnp.inf, top),
        jnp.where(bad, jnp.nan, count),
        jnp.where(bad, 0, tail),
        _scores(acts, symbols, used, time_axis),
    ]


def _sums_centre(acts, symbols, lengths, top, d_acts, *, time_axis, **_):
    del symbols
    terms, _ = _terms(acts, lengths, top, time_axis)
    mean = product(terms, d_acts.astype(top.dtype)).sum(-1) / jnp.maximum(terms.sum(-1), 1)
    return jnp.where(jnp.isfinite(mean), mean, 0)


def _sums_tangent(acts, symbols, lengths, top, d_acts, d_top, *, time_axis, **_):
    terms, used = _terms(acts, lengths, top, time_axis)
    d_tail = jnp.where(terms == 0, 0, terms * _relative(d_acts, d_top, top)).sum(-1)
    return [d_tail, _scores(d_acts, symbols, used, time_axis)]


def _sums_cotangent(acts, symbols, lengths, top, ct_tail, ct_scores, *, time_axis, **_):
    terms, used = _terms(acts, lengths, top, time_axis)
    ct = ct_tail[..., None]
    dense = jnp.where((ct == 0) | (terms == 0), 0, terms * ct)
    dense = jnp.where(used & jnp.isnan(ct), jnp.nan, dense)  # a sequence of NaN, whatever its terms
    at = _classes(acts, symbols, time_axis)
    at = jnp.where(used & (at >= 0), at, acts.shape[-1])  # beyond the end: dropped

    def add(row: Array, at: Array, x: Array) -> Array:
        return row.at[at].add(x, mode="drop")

    for _ in range(acts.ndim - 1):  # as batching dimensions, which a partitioner can split
        add = jax.vmap(add)
    return add(dense, at, ct_scores).astype(acts.dtype)


# ---- batching ----------------------------------------------------------------------------------


def _batch_of_one_acts(op, args, dims, *, time_axis, **parameters):
    """Several sets of symbols, but one `acts` for all: it is read once, for all symbols together.

    Frames that are in use for any are read for all; nobody looks at those behind his own length.
    """
    mapped = [i for i, d in enumerate(dims) if d is not None]
    if (
        op == "sums_cotangent"
        or not set(mapped) <= {_SYMBOLS, _LENGTHS}
        or _mesh.mapped_over(args, dims)
    ):
        return None
    operands = list(args)
    if _LENGTHS in mapped:
        operands[_LENGTHS] = args[_LENGTHS].max(dims[_LENGTHS], initial=0)
    if _SYMBOLS in mapped and op == "sums_centre":  # which has no use for them
        operands[_SYMBOLS] = args[_SYMBOLS].max(dims[_SYMBOLS], initial=-1)
    if _SYMBOLS not in mapped or op == "sums_centre":
        out = primitives[op].bind(*operands, time_axis=time_axis, **parameters)
        return out, jax.tree.map(lambda _: None, out)
    symbols = jnp.moveaxis(args[_SYMBOLS], dims[_SYMBOLS], -2)
    operands[_SYMBOLS] = symbols.reshape(*symbols.shape[:-2], symbols.shape[-2] * symbols.shape[-1])
    *sums, scores = primitives[op].bind(*operands, time_axis=time_axis, **parameters)
    scores = scores.reshape(*scores.shape[:-1], *symbols.shape[-2:])
    return [*sums, scores], [None] * len(sums) + [scores.ndim - 2]


# ---- derivatives -------------------------------------------------------------------------------


def _sums_jvp(primals, tangents, **p):
    top, count, tail, scores = sums_p.bind(*primals, **p)
    top, count, tail, scores = (checkpoint_name(x, RESIDUALS) for x in (top, count, tail, scores))
    out, d_acts = [top, count, tail, scores], tangents[0]
    if is_zero(d_acts):
        return out, [zero_like(x) for x in out]
    d_top = sums_centre_p.bind(*primals, top, d_acts, **p)
    d_tail, d_scores = sums_tangent_p.bind(*primals, top, d_acts, d_top, **p)
    return out, [d_top, zero_like(count), d_tail, d_scores]


def _centre_jvp(primals, tangents, **p):
    """A choice is no function of acts."""
    out = sums_centre_p.bind(*primals, **p)
    if is_zero(tangents[_LINEAR]):
        return out, zero_like(out)
    return out, sums_centre_p.bind(*primals[:_LINEAR], tangents[_LINEAR], **p)


def _centre_transpose(ct, *operands, **_):
    del ct
    return [None] * _LINEAR + [ad.Zero(operands[_LINEAR].aval)]


def _tangent_jvp(primals, tangents, **p):
    *kept, d_acts, d_top = primals
    out = sums_tangent_p.bind(*primals, **p)
    d_tail, d_scores = [], []
    if not all(map(is_zero, tangents[_LINEAR:])):
        linear = map(ad.instantiate_zeros, tangents[_LINEAR:])
        tail, scores = sums_tangent_p.bind(*kept, *linear, **p)
        d_tail.append(tail)
        d_scores.append(scores)
    if not is_zero(tangents[0]):
        along = _relative(tangents[0], tangents[_TOP], d_top)
        both = product(along, _relative(d_acts, d_top, d_top))
        d_tail.append(sums_tangent_p.bind(*kept, both, jnp.zeros_like(d_top), **p)[0])
    return out, [sum_or_zero(out[0], d_tail), sum_or_zero(out[1], d_scores)]


def _tangent_transpose(cts, *operands, **p):
    *kept, d_acts, d_top = operands
    assert ad.is_undefined_primal(d_acts)
    nothing = [ad.Zero(d_top.aval) if ad.is_undefined_primal(d_top) else None]
    if all(map(is_zero, cts)):
        return [*[None] * len(kept), ad.Zero(d_acts.aval), *nothing]
    cts = map(ad.instantiate_zeros, cts)
    exact = kept[0].astype(d_acts.aval.dtype)
    return [*[None] * len(kept), sums_cotangent_p.bind(exact, *kept[1:], *cts, **p), *nothing]


def _cotangent_jvp(primals, tangents, **p):
    *kept, ct_tail, ct_scores = primals
    out = sums_cotangent_p.bind(*primals, **p)
    d_cts, terms = tangents[_LINEAR:], []
    if is_zero(tangents[0]):
        if all(map(is_zero, d_cts)):
            return out, zero_like(out)
        return out, sums_cotangent_p.bind(*kept, *map(ad.instantiate_zeros, d_cts), **p)
    kept[0] = kept[0].astype(kept[_TOP].dtype)  # so that halves are rounded once
    if not all(map(is_zero, d_cts)):
        terms.append(sums_cotangent_p.bind(*kept, *map(ad.instantiate_zeros, d_cts), **p))
    of_tail = sums_cotangent_p.bind(*kept, ct_tail, jnp.zeros_like(ct_scores), **p)
    terms.append(product(of_tail, _relative(tangents[0], tangents[_TOP], kept[_TOP])))
    return out, reduce(jnp.add, terms).astype(out.dtype)


def _cotangent_transpose(d_out, *operands, **p):
    *kept, ct_tail, ct_scores = operands
    cts = (ct_tail, ct_scores)
    if is_zero(d_out):
        out = [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in cts]
    else:
        # Not relative to anything: these cotangents need not add up to 0 in a frame.
        along = sums_tangent_p.bind(*kept, d_out, jnp.zeros_like(kept[_TOP]), **p)
        out = [y if ad.is_undefined_primal(x) else None for x, y in zip(cts, along, strict=True)]
    return [None] * len(kept) + out


# ---- registrations -----------------------------------------------------------------------------

sums_p = define("sums", _sums, _batch_of_one_acts)
ad.primitive_jvps[sums_p] = _sums_jvp

sums_centre_p = define("sums_centre", _sums_centre, _batch_of_one_acts)
ad.primitive_jvps[sums_centre_p] = _centre_jvp
ad.primitive_transposes[sums_centre_p] = _centre_transpose

sums_tangent_p = define("sums_tangent", _sums_tangent, _batch_of_one_acts)
ad.primitive_jvps[sums_tangent_p] = _tangent_jvp
ad.primitive_transposes[sums_tangent_p] = _tangent_transpose

sums_cotangent_p = define("sums_cotangent", _sums_cotangent, _batch_of_one_acts)
ad.primitive_jvps[sums_cotangent_p] = _cotangent_jvp
ad.primitive_transposes[sums_cotangent_p] = _cotangent_transpose

# SPDX-License-Identifier: Apache-2.0
"""Primitives that reduce a row of V classes, or a slice of it, to what the recursion needs.

    sums            acts, symbols, lengths                              -> top, ties, tail, scores
    sums_centre     acts, symbols, lengths, top, direction              -> d_top
    sums_tangent    acts, symbols, lengths, top, direction, d_top       -> d_tail, d_scores
    sums_cotangent  acts, symbols, lengths, top, ct_tail, ct_scores     -> ct_acts

For each frame in use, `top` is the largest logit, `ties` the number of logits equal to it, `tail`
the sum of exp(acts - top) over all others, and `scores` are the logits of `symbols` (batch, D), 0
for negative symbols. In other frames all four are 0. A row with a NaN or a +inf has `top` -inf,
`ties` NaN and `tail` 0, because no factor of a cotangent may be NaN. Where many logits of a frame
are equal, the kernels for CPUs may count one of them, and `tail` has the rest.

`top` is a reference: the sum of all exponentials is (ties + tail) * exp(top). No result computed
from the four depends on the choice of the reference. So the tangent of `top` may be chosen too, if
the tangent of `tail` is relative to it:

    d_tail = sum of exp(acts - top) * (direction - d_top)

The choice is the mean of a frame's direction under the softmax of the slice (`sums_centre`),
because direction - d_top is then small even if the direction is large: of a direction of 1000 +
noise the noise keeps its digits. The cotangent of `top` is not needed, because what it would add
to the gradient is 0.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh, _operands
from .._reference import problem
from . import custom_call
from .family import RESIDUALS, Tangent, define, is_zero, primitives, sum_or_zero, zero_like
from .zero_product import multiply

_ACTS, _SYMBOLS, _LENGTHS, _TOP, _LINEAR = 0, 1, 2, 3, 4  # positions of operands


# ---- pure JAX ----------------------------------------------------------------------------------


def _used(acts: Array, lengths: Array, time_axis: int) -> Array:
    """Returns (batch with T, 1): whether a frame is in use."""
    return _operands.used(acts.shape[:-1], lengths, time_axis)[..., None]


def _classes(acts: Array, symbols: Array, time_axis: int) -> Array:
    """Returns `symbols` at every frame."""
    classes = jnp.expand_dims(symbols, time_axis)
    return jnp.broadcast_to(classes, (*acts.shape[:-1], symbols.shape[-1]))


def _scores(acts: Array, symbols: Array, used: Array, time_axis: int) -> Array:
    classes = _classes(acts, symbols, time_axis)
    taken = _mesh.taken_along(acts, jnp.maximum(classes, 0))
    return jnp.where(used & (classes >= 0), taken.astype(_operands.cost_dtype(acts.dtype)), 0)


def scores_at(acts: Array, symbols: Array, lengths: Array, time_axis: int) -> Array:
    """Returns the logits of `symbols` (batch with T, D), 0 for negative symbols and in frames that
    are not in use."""
    return _scores(acts, symbols, _used(acts, lengths, time_axis), time_axis)


def _terms(acts: Array, lengths: Array, top: Array, time_axis: int) -> tuple[Array, Array]:
    """Returns exp(acts - top), and which frames are in use. The terms of other frames are 0, and so
    are those of a slice whose logits are all -inf."""
    exact, used = acts.astype(top.dtype), _used(acts, lengths, time_axis)
    alive = used & (top != -jnp.inf)[..., None]
    return jnp.where(alive, jnp.exp(jnp.where(alive, exact - top[..., None], 0)), 0), used


def _relative(direction: Array, d_top: Tangent, top: Array) -> Array:
    """Returns direction - d_top, in the dtype of costs."""
    direction = direction.astype(top.dtype)
    return direction if isinstance(d_top, ad.Zero) else direction - d_top[..., None]


def _sums(acts, symbols, lengths, *, time_axis, **_):
    used = _used(acts, lengths, time_axis)
    top, has_nan = problem.largest(acts, used[..., 0])
    ties, tail = problem.ties_and_tail(acts, used[..., 0], jnp.where(jnp.isfinite(top), top, 0))
    return [*_marked(top, has_nan, ties, tail), _scores(acts, symbols, used, time_axis)]


def _sums_at_once(acts, symbols, lengths, *, time_axis, **_):
    """Reduces a row in one step. XLA on a CPU would store its terms; on a GPU it does not, and the
    steps of `_sums` would each be a launch."""
    used = _used(acts, lengths, time_axis)
    x = jnp.where(used, acts, 0).astype(_operands.cost_dtype(acts.dtype))
    top, has_nan = x.max(-1), jnp.isnan(x).any(-1)
    shift = jnp.where(jnp.isfinite(top), top, 0)[..., None]
    is_top = x == shift
    ties = (used & is_top).sum(-1, dtype=x.dtype)
    tail = jnp.where(used & ~is_top, jnp.exp(x - shift), 0).sum(-1)
    return [*_marked(top, has_nan, ties, tail), _scores(acts, symbols, used, time_axis)]


def _marked(top: Array, has_nan: Array, ties: Array, tail: Array) -> list[Array]:
    """Returns top, ties and tail, in which `ties` marks a row with a NaN or a +inf."""
    undefined = has_nan | (top == jnp.inf)
    values = ((top, -jnp.inf), (ties, jnp.nan), (tail, 0))
    return [jnp.where(undefined, mark, x) for x, mark in values]


def _sums_centre(acts, symbols, lengths, top, direction, *, time_axis, **_):
    del symbols
    terms, _ = _terms(acts, lengths, top, time_axis)
    mean = multiply(terms, direction.astype(top.dtype)).sum(-1) / jnp.maximum(terms.sum(-1), 1)
    return jnp.where(jnp.isfinite(mean), mean, 0)


def _sums_tangent(acts, symbols, lengths, top, direction, d_top, *, time_axis, **_):
    terms, used = _terms(acts, lengths, top, time_axis)
    d_tail = jnp.where(terms == 0, 0, terms * _relative(direction, d_top, top)).sum(-1)
    return [d_tail, _scores(direction, symbols, used, time_axis)]


def _sums_cotangent(acts, symbols, lengths, top, ct_tail, ct_scores, *, time_axis, **_):
    terms, used = _terms(acts, lengths, top, time_axis)
    ct = ct_tail[..., None]
    dense = jnp.where((ct == 0) | (terms == 0), 0, terms * ct)
    # A cotangent of NaN marks a sequence whose gradient is NaN, even where a term is 0.
    dense = jnp.where(used & jnp.isnan(ct), jnp.nan, dense)
    classes = _classes(acts, symbols, time_axis)
    classes = jnp.where(used & (classes >= 0), classes, acts.shape[-1])  # dropped: out of bounds

    def add(row: Array, classes: Array, x: Array) -> Array:
        return row.at[classes].add(x, mode="drop")

    add = _operands.along_last_axis(add, acts.ndim - 1)
    return add(dense, classes, ct_scores).astype(acts.dtype)


# ---- batching ----------------------------------------------------------------------------------


def _batch_shared_acts(op, args, dims, *, time_axis, **params):
    """Batches many sets of symbols for the same `acts`: one pass reads acts for all of them.

    That pass reads each frame that is in use for any of them. No caller reads the frames at and
    after its own length. Returns None if the general rule is needed.
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
    if _SYMBOLS in mapped and op == "sums_centre":  # which does not read symbols
        operands[_SYMBOLS] = args[_SYMBOLS].max(dims[_SYMBOLS], initial=-1)
    if _SYMBOLS not in mapped or op == "sums_centre":
        out = primitives[op].bind(*operands, time_axis=time_axis, **params)
        return out, jax.tree.map(lambda _: None, out)
    symbols = jnp.moveaxis(args[_SYMBOLS], dims[_SYMBOLS], -2)
    operands[_SYMBOLS] = symbols.reshape(*symbols.shape[:-2], symbols.shape[-2] * symbols.shape[-1])
    *sums, scores = primitives[op].bind(*operands, time_axis=time_axis, **params)
    scores = scores.reshape(*scores.shape[:-1], *symbols.shape[-2:])
    return [*sums, scores], [None] * len(sums) + [scores.ndim - 2]


# ---- derivatives -------------------------------------------------------------------------------
#
# `point` stands for acts, symbols, lengths and top; the other operands are linear.


def _sums_jvp(primals, tangents, **params):
    out = [checkpoint_name(x, RESIDUALS) for x in sums_p.bind(*primals, **params)]
    top, ties, _, _ = out
    direction = tangents[_ACTS]
    d_top = sums_centre_p.bind(*primals, top, direction, **params)
    d_tail, d_scores = sums_tangent_p.bind(*primals, top, direction, d_top, **params)
    return out, [d_top, zero_like(ties), d_tail, d_scores]


def _centre_jvp(primals, tangents, **params):
    """The centre is chosen, so it counts as independent of acts."""
    out = sums_centre_p.bind(*primals, **params)
    if is_zero(tangents[_LINEAR]):
        return out, zero_like(out)
    return out, sums_centre_p.bind(*primals[:_LINEAR], tangents[_LINEAR], **params)


def _centre_transpose(ct, *operands, **_):
    del ct
    return [None] * _LINEAR + [ad.Zero(operands[_LINEAR].aval)]


def _tangent_jvp(primals, tangents, **params):
    *point, direction, d_top = primals
    out = sums_tangent_p.bind(*primals, **params)
    d_tail, d_scores = [], []
    if not all(map(is_zero, tangents[_LINEAR:])):
        linear = map(ad.instantiate_zeros, tangents[_LINEAR:])
        tail, scores = sums_tangent_p.bind(*point, *linear, **params)
        d_tail.append(tail)
        d_scores.append(scores)
    if not is_zero(tangents[_ACTS]):
        relative = _relative(tangents[_ACTS], tangents[_TOP], d_top)
        both = multiply(relative, _relative(direction, d_top, d_top))
        d_tail.append(sums_tangent_p.bind(*point, both, jnp.zeros_like(d_top), **params)[0])
    return out, [sum_or_zero(out[0], d_tail), sum_or_zero(out[1], d_scores)]


def _tangent_transpose(cts, *operands, **params):
    *point, direction, d_top = operands
    assert ad.is_undefined_primal(direction)
    nothing = [ad.Zero(d_top.aval) if ad.is_undefined_primal(d_top) else None]
    if all(map(is_zero, cts)):
        return [*[None] * len(point), ad.Zero(direction.aval), *nothing]
    cts = map(ad.instantiate_zeros, cts)
    exact = point[_ACTS].astype(direction.aval.dtype)
    ct_acts = sums_cotangent_p.bind(exact, *point[1:], *cts, **params)
    return [*[None] * len(point), ct_acts, *nothing]


def _cotangent_jvp(primals, tangents, **params):
    *point, ct_tail, ct_scores = primals
    out = sums_cotangent_p.bind(*primals, **params)
    d_cts, terms = tangents[_LINEAR:], []
    if is_zero(tangents[_ACTS]):
        if all(map(is_zero, d_cts)):
            return out, zero_like(out)
        return out, sums_cotangent_p.bind(*point, *map(ad.instantiate_zeros, d_cts), **params)
    point[_ACTS] = point[_ACTS].astype(point[_TOP].dtype)  # so that halves are rounded once
    if not all(map(is_zero, d_cts)):
        terms.append(sums_cotangent_p.bind(*point, *map(ad.instantiate_zeros, d_cts), **params))
    of_tail = sums_cotangent_p.bind(*point, ct_tail, jnp.zeros_like(ct_scores), **params)
    terms.append(multiply(of_tail, _relative(tangents[_ACTS], tangents[_TOP], point[_TOP])))
    return out, reduce(jnp.add, terms).astype(out.dtype)


def _cotangent_transpose(ct, *operands, **params):
    *point, ct_tail, ct_scores = operands
    linear = (ct_tail, ct_scores)
    if is_zero(ct):
        out = [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in linear]
    else:
        # d_top is 0 here, because these cotangents need not add up to 0 in a frame.
        tangents = sums_tangent_p.bind(*point, ct, jnp.zeros_like(point[_TOP]), **params)
        pairs = zip(linear, tangents, strict=True)
        out = [tangent if ad.is_undefined_primal(x) else None for x, tangent in pairs]
    return [None] * len(point) + out


# ---- registrations -----------------------------------------------------------------------------

sums_p = define("sums", _sums, _batch_shared_acts)
ad.primitive_jvps[sums_p] = _sums_jvp
custom_call.register_pure(sums_p, _sums_at_once, platform="cuda")

sums_centre_p = define("sums_centre", _sums_centre, _batch_shared_acts)
ad.primitive_jvps[sums_centre_p] = _centre_jvp
ad.primitive_transposes[sums_centre_p] = _centre_transpose

sums_tangent_p = define("sums_tangent", _sums_tangent, _batch_shared_acts)
ad.primitive_jvps[sums_tangent_p] = _tangent_jvp
ad.primitive_transposes[sums_tangent_p] = _tangent_transpose

sums_cotangent_p = define("sums_cotangent", _sums_cotangent, _batch_shared_acts)
ad.primitive_jvps[sums_cotangent_p] = _cotangent_jvp
ad.primitive_transposes[sums_cotangent_p] = _cotangent_transpose

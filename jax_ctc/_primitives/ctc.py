# SPDX-License-Identifier: Apache-2.0
"""The primitives of CTC and all their rules. Registrations come last, so a missing rule is seen.

    loss       acts, labels, lengths                                -> cost
    forward    acts, labels, lengths                                -> cost, rows, columns
    tangent    acts, labels, lengths, rows, columns, direction      -> d_cost
    cotangent  acts, labels, lengths, rows, columns, cotangents     -> gradient
    hvp        acts, labels, lengths, rows, columns, cotangents, direction  -> product

`tangent` is linear in the direction, `cotangent` in the cotangents, and `hvp` in both. Direction,
gradient and product have the shape of acts. Cotangents are one number per sequence, like the cost.

Undifferentiated code runs `loss`. The JVP of `loss` binds `forward` and `tangent`. `tangent` and
`cotangent` are each other's transposes, so forward mode gives reverse mode. The JVP of both binds
`hvp`. `hvp` is its own transpose, because a Hessian is symmetric. Transposes bind `masked_hvp`. It
differs from `hvp` where a direction is 0 at all frames in use of a sequence: the product is 0
there, also where the Hessian is NaN. It is a primitive, because it is linear, and a condition on
the direction has no derivative.

`rows` and `columns` are the residuals that `forward` keeps for the derivatives (docs/kernels.md).
They depend on `acts`, but their tangents are defined as zero. The JVP rule of each consumer
differentiates through them itself, so the tangent of `acts` already accounts for all of it.

The parameters of these primitives and of the sums (row_sums.py) are static. `time_axis` is the
position of T among the axes of acts before V. `blank` is a class. `threads` is the largest number
of threads for a CPU kernel; 0 means no limit. `softmax`, which sums do not have, says that acts are
logits. Otherwise they are log-scores: only the entries of the blank and of the labels are read, and
`rows` is empty.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh, _operands, _reference
from . import few_classes
from .family import (
    RESIDUALS,
    define,
    is_zero,
    one_by_one,
    primitives,
    sum_or_zero,
    zero_like,
)
from .zero_product import multiply

_ACTS, _LABELS, _LENGTHS, _ROWS, _LINEAR = 0, 1, 2, 3, 5  # positions of operands


# ---- batching ----------------------------------------------------------------------------------


def _batch_shared_acts(op, args, dims, *, time_axis, **params):
    """Batches many label sequences (hypotheses), directions or cotangents for the same `acts`.

    `acts` are not copied. `loss` and `forward` read them once and then run on few classes for each
    label sequence. The other ops run once per mapped index, one after the other. Returns None if
    the general rule is better.
    """
    if dims[_ACTS] is not None or _mesh.mapped_over(args, dims):
        return None  # if the mapped axis is sharded, each device copies acts for its own part of it
    mapped = [i for i, d in enumerate(dims) if d is not None]
    if op in _ONCE and mapped == [_LINEAR]:
        return _ONCE[op](*args, dim=dims[_LINEAR], time_axis=time_axis, **params)
    acts = args[_ACTS]
    if op in ("loss", "forward"):
        hypotheses = _mesh.mapped_size(args, dims)
        if _copies_are_better(acts, hypotheses, args[_LABELS].shape[-1], params["softmax"]):
            return None
        return _hypotheses(op, args, dims, time_axis=time_axis, **params)
    return one_by_one(primitives[op], args, dims, time_axis=time_axis, **params), 0


# Copies of at most so many bytes; their gradient is as large. glibc keeps blocks of up to 32 MB
# from call to call. Larger ones get fresh pages in each call, which cost more than the work itself.
most_bytes_of_copies = 12 << 20


def _copies_are_better(acts: Array, hypotheses: int, L: int, softmax: bool) -> bool:
    """Whether copies of acts are faster than arrays of few classes. Up to V = 3 (L + 2) they are as
    small. Up to 8 (L + 2) they are faster while they stay in place (docs/scaling.md). Of log-scores
    there are fewer such arrays, so there the bound of both is 2 (L + 2)."""
    V = acts.shape[-1]
    if not few_classes.is_more_than(V, (3 if softmax else 2) * (L + 2)):
        return True
    size = acts.size * acts.dtype.itemsize * hypotheses
    small = isinstance(size, int) and size <= most_bytes_of_copies
    return softmax and small and not few_classes.is_more_than(V, 8 * (L + 2))


def _hypotheses(op, args, dims, *, time_axis, blank, threads, softmax):
    """Runs each label sequence on its own few classes. `sums` reads acts once for all of them."""
    acts = args[_ACTS]
    params = {"time_axis": time_axis, "blank": 0, "threads": threads, "softmax": softmax}

    def one_hypothesis(labels, lengths):
        symbols, few_labels = few_classes.symbols_of(labels, blank, acts.shape[-1])
        if not softmax:
            scores = few_classes.scores_of(acts, symbols, lengths, time_axis)
            few = few_classes.acts_of_scores(scores, symbols, time_axis)
            return primitives[op].bind(few, few_labels, lengths, **params)
        sums = few_classes.sums_of(acts, symbols, lengths, time_axis, threads)
        if op == "loss":
            return few_classes.cost(sums, symbols, few_labels, lengths, time_axis, threads)
        few_acts = few_classes.acts_of(sums, symbols, time_axis)
        cost, rows, columns = forward_p.bind(few_acts, few_labels, lengths, **params)
        # Rows that say "zero gradient" or "NaN" stay; the others get the softmax over all classes.
        all_classes = jnp.broadcast_to(few_classes.softmax_of(sums), rows.shape)
        scale = rows[..., 1:]
        rows = jnp.where((scale == 0) | jnp.isnan(scale), rows, all_classes)
        cost = few_classes.cost_of(cost, few_acts, sums, symbols, lengths, time_axis)
        return [cost, rows, columns]

    return few_classes.each_hypothesis(op, one_hypothesis, acts, args[1:], dims[1:])


def _unit_gradient(acts, labels, lengths, rows, columns, **params):
    """Returns the gradient of each cost in the dtype of costs, the factor of a linear function."""
    exact = _operands.rounded(acts).astype(rows.dtype)
    ones = _ones(rows, lengths)
    return cotangent_p.bind(exact, labels, lengths, rows, columns, ones, **params)


def _cotangent_once(acts, labels, lengths, rows, columns, cotangents, *, dim, **params):
    """Handles many cotangents of one problem (jacrev) with one kernel call and an outer product."""
    unit = _unit_gradient(acts, labels, lengths, rows, columns, **params)
    cotangents = jnp.moveaxis(cotangents, dim, 0)
    cotangents = jnp.expand_dims(cotangents, (1 + params["time_axis"], cotangents.ndim + 1))
    return multiply(cotangents, unit[None]).astype(acts.dtype), 0


def _tangent_once(acts, labels, lengths, rows, columns, direction, *, dim, **params):
    """Handles many directions for one problem (jacfwd) with one gradient and a contraction."""
    unit = _unit_gradient(acts, labels, lengths, rows, columns, **params)[None]
    directions = jnp.moveaxis(direction, dim, 0).astype(unit.dtype)
    return multiply(unit, directions).sum((1 + params["time_axis"], -1)), 0


_ONCE = {"cotangent": _cotangent_once, "tangent": _tangent_once}


# ---- derivatives -------------------------------------------------------------------------------
#
# `point` stands for the operands before those in which a primitive is linear.


def _ones(rows: Array, lengths: Array) -> Array:
    return jnp.ones(lengths.shape, rows.dtype)


def _contract(gradient: Array, direction: Array, rows: Array, time_axis: int) -> Array:
    """Returns the sum of gradient * direction over frames and classes, in the dtype of costs."""
    return multiply(gradient.astype(rows.dtype), direction.astype(rows.dtype)).sum((time_axis, -1))


def _loss_jvp(primals, tangents, **params):
    cost, rows, columns = forward_p.bind(*primals, **params)
    rows, columns = checkpoint_name(rows, RESIDUALS), checkpoint_name(columns, RESIDUALS)
    return cost, tangent_p.bind(*primals, rows, columns, tangents[_ACTS], **params)


def _forward_jvp(primals, tangents, **params):
    cost, rows, columns = forward_p.bind(*primals, **params)
    d_cost = tangent_p.bind(*primals, rows, columns, tangents[_ACTS], **params)
    return [cost, rows, columns], [d_cost, zero_like(rows), zero_like(columns)]


def _tangent_jvp(primals, tangents, **params):
    *point, direction = primals
    rows, lengths = point[_ROWS], point[_LENGTHS]
    out = tangent_p.bind(*primals, **params)
    terms = []
    if not is_zero(tangents[_LINEAR]):
        terms.append(tangent_p.bind(*point, tangents[_LINEAR], **params))
    if not is_zero(tangents[_ACTS]):
        d_gradient = hvp_p.bind(*point, _ones(rows, lengths), tangents[_ACTS], **params)
        terms.append(_contract(d_gradient, direction, rows, params["time_axis"]))
    return out, sum_or_zero(out, terms)


def _tangent_transpose(ct, *operands, **params):
    *point, direction = operands
    assert ad.is_undefined_primal(direction)
    out = ad.Zero(direction.aval) if is_zero(ct) else cotangent_p.bind(*point, ct, **params)
    return [None] * len(point) + [out]


def _cotangent_jvp(primals, tangents, **params):
    *point, cotangents = primals
    out = cotangent_p.bind(*primals, **params)
    terms = []
    if not is_zero(tangents[_LINEAR]):
        terms.append(cotangent_p.bind(*point, tangents[_LINEAR], **params))
    if not is_zero(tangents[_ACTS]):
        terms.append(hvp_p.bind(*point, cotangents, tangents[_ACTS], **params))
    return out, sum_or_zero(out, terms)


def _cotangent_transpose(ct, *operands, **params):
    *point, cotangents = operands
    assert ad.is_undefined_primal(cotangents)
    out = ad.Zero(cotangents.aval) if is_zero(ct) else tangent_p.bind(*point, ct, **params)
    return [None] * len(point) + [out]


def _masked_hvp(*operands, **params):
    *point, cotangents, direction = operands
    time_axis = params["time_axis"]
    used = _operands.used(direction.shape[:-1], point[_LENGTHS], time_axis)
    given = ((direction != 0).any(-1) & used).any(time_axis)
    return hvp_p.bind(*point, jnp.where(given, cotangents, 0), direction, **params)


def _hvp_jvp(hvp_p, primals, tangents, **params):
    *point, cotangents, direction = primals
    out = hvp_p.bind(*primals, **params)
    d_acts, d_cotangents, d_direction = (tangents[i] for i in (_ACTS, _LINEAR, _LINEAR + 1))
    terms = []
    if not is_zero(d_cotangents):
        terms.append(hvp_p.bind(*point, d_cotangents, direction, **params))
    if not is_zero(d_direction):
        terms.append(hvp_p.bind(*point, cotangents, d_direction, **params))
    if not is_zero(d_acts):  # third order and beyond run in pure JAX

        def third_order(d_acts, acts, *rest):
            return jax.jvp(lambda x: _reference.hvp(x, *rest, **params), (acts,), (d_acts,))[1]

        third_order = _mesh.with_auto_axes(third_order, jax.typeof(out))
        terms.append(third_order(d_acts, *primals))
    return out, sum_or_zero(out, terms)


def _hvp_transpose(ct, *operands, **params):
    *point, cotangents, direction = operands
    nothing = [None] * len(point)
    if ad.is_undefined_primal(direction):
        if is_zero(ct):
            return [*nothing, None, ad.Zero(direction.aval)]
        return [*nothing, None, masked_hvp_p.bind(*point, cotangents, ct, **params)]
    if is_zero(ct):
        return [*nothing, ad.Zero(cotangents.aval), None]
    rows, lengths = point[_ROWS], point[_LENGTHS]
    d_gradient = masked_hvp_p.bind(*point, _ones(rows, lengths), ct, **params)
    return [*nothing, _contract(d_gradient, direction, rows, params["time_axis"]), None]


# ---- registrations -----------------------------------------------------------------------------

loss_p = define("loss", _reference.loss, _batch_shared_acts)
ad.primitive_jvps[loss_p] = _loss_jvp

forward_p = define("forward", _reference.forward, _batch_shared_acts)
ad.primitive_jvps[forward_p] = _forward_jvp

tangent_p = define("tangent", _reference.tangent, _batch_shared_acts)
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose

cotangent_p = define("cotangent", _reference.cotangent, _batch_shared_acts)
ad.primitive_jvps[cotangent_p] = _cotangent_jvp
ad.primitive_transposes[cotangent_p] = _cotangent_transpose

hvp_p = define("hvp", _reference.hvp, _batch_shared_acts)
ad.primitive_jvps[hvp_p] = partial(_hvp_jvp, hvp_p)
ad.primitive_transposes[hvp_p] = _hvp_transpose

masked_hvp_p = define("masked_hvp", _masked_hvp, _batch_shared_acts)
ad.primitive_jvps[masked_hvp_p] = partial(_hvp_jvp, masked_hvp_p)
ad.primitive_transposes[masked_hvp_p] = _hvp_transpose

# SPDX-License-Identifier: Apache-2.0
"""The primitives of CTC and all their rules. Registrations come last, so a missing rule is seen.

    loss       acts, labels, lengths                               -> cost
    forward    acts, labels, lengths                               -> cost, rows, columns
    tangent    acts, labels, lengths, rows, columns, d_acts        -> d_cost        linear in d_acts
    cotangent  acts, labels, lengths, rows, columns, ct            -> d_acts        linear in ct
    hvp        acts, labels, lengths, rows, columns, ct, u         -> d_acts        linear in ct, u

Undifferentiated code runs `loss`. Its JVP binds `forward` and `tangent`; the transpose of `tangent`
is `cotangent` and the other way round, so forward mode gives reverse mode; `hvp` is in the JVP of
both and its own transpose, because a Hessian is symmetric.

`rows` and `columns` are the residuals that `forward` keeps for the derivatives (docs/kernels.md).
They depend on `acts`, but their tangents are defined as zero. The JVP rule of each consumer
differentiates through them itself, so the tangent of `acts` already accounts for all of it.

Parameters of these and of the sums (row_sums.py), all static: `time_axis`, where acts have T among
the axes before V; `blank`; `threads`, how many a CPU kernel may use at most (0: all there are).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh, _reference
from . import few_classes
from .family import RESIDUALS, define, is_zero, primitives, sum_or_zero, zero_like
from .zero_product import product

_ACTS, _LABELS, _ROWS, _LINEAR = 0, 1, 3, 5  # positions of operands


# ---- batching ----------------------------------------------------------------------------------


def _batch_of_one_acts(op, args, dims, *, time_axis, **parameters):
    """Several label sequences (hypotheses), directions or cotangents, but one `acts` for all.

    It is not copied: costs, and what derivatives need, come from one pass over it and then from few
    classes for each; derivatives one after the other.
    """
    if dims[_ACTS] is not None or _mesh.mapped_over(args, dims):
        return None  # in the second case each device copies acts for what it has of the others
    mapped = [i for i, d in enumerate(dims) if d is not None]
    if op in _ONCE and mapped == [_LINEAR]:
        return _ONCE[op](*args, dim=dims[_LINEAR], time_axis=time_axis, **parameters)
    acts = args[_ACTS]
    if op in ("loss", "forward"):
        if not _is_more_than(acts.shape[-1], 2 * (args[_LABELS].shape[-1] + 2)):
            return None  # copies of acts are about as small as what would be made, and faster
        return _hypotheses(op, args, dims, time_axis=time_axis, **parameters)
    front = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]

    def one(some):
        operands = list(front)
        for i, x in zip(mapped, some, strict=True):
            operands[i] = x
        return primitives[op].bind(*operands, time_axis=time_axis, **parameters)

    return jax.lax.map(one, [front[i] for i in mapped]), 0


def _is_more_than(size: int, other: int) -> bool:
    """False where sizes are symbolic (jax.export) and may be anything."""
    return isinstance(size, int) and isinstance(other, int) and size > other


def _hypotheses(op, args, dims, *, time_axis, blank, threads):
    """Each label sequence on its own few classes; `sums` reads acts once for all sequences."""
    acts, labels, lengths = args
    p = {"time_axis": time_axis, "blank": 0, "threads": threads}

    def one(labels, lengths):
        symbols, columns = few_classes.symbols_of(labels, blank, acts.shape[-1])
        rows = few_classes.rows(acts, symbols, lengths, time_axis, threads)
        few = few_classes.acts_of(rows, symbols, time_axis)
        if op == "loss":
            cost = loss_p.bind(few, columns, lengths, **p)
            return few_classes.cost_of(cost, rows, symbols, lengths, time_axis)
        cost, kept, occupancies = forward_p.bind(few, columns, lengths, **p)
        usual = jnp.broadcast_to(few_classes.softmax_of(rows), kept.shape)
        kept = jnp.where((kept[..., 1:] == 0) | jnp.isnan(kept[..., 1:]), kept, usual)
        return [few_classes.cost_of(cost, rows, symbols, lengths, time_axis), kept, occupancies]

    # The new axis is the last of the batch: symbols of all are then side by side.
    batch_axis = acts.ndim - 2
    moved = [
        x if d is None else jnp.moveaxis(x, d, batch_axis)
        for x, d in zip((labels, lengths), dims[1:], strict=True)
    ]
    axes = tuple(None if d is None else batch_axis for d in dims[1:])
    places = [batch_axis, batch_axis + 1, batch_axis + 1] if op == "forward" else batch_axis
    return jax.vmap(one, axes, places)(*moved), places


def _unit_gradient(acts, labels, lengths, *residuals, **p):
    """The gradient of the costs in their own precision, for what is linear in something else."""
    exact = acts.astype(residuals[0].dtype)
    ones = jnp.ones(lengths.shape, exact.dtype)
    return cotangent_p.bind(exact, labels, lengths, *residuals, ones, **p)


def _cotangent_once(acts, labels, lengths, rows, columns, ct, *, dim, **p):
    """Many cotangents of one problem (jacrev): one kernel call and an outer product."""
    unit = _unit_gradient(acts, labels, lengths, rows, columns, **p)
    time_axis = p["time_axis"]
    ct = jnp.moveaxis(ct, dim, 0)
    ct = jnp.expand_dims(ct, (1 + time_axis, ct.ndim + 1))
    return product(ct, unit[None]).astype(acts.dtype), 0


def _tangent_once(acts, labels, lengths, rows, columns, d_acts, *, dim, **p):
    """Many directions for one problem (jacfwd): one gradient and a contraction with it."""
    unit = _unit_gradient(acts, labels, lengths, rows, columns, **p)[None]
    d_acts = jnp.moveaxis(d_acts, dim, 0).astype(unit.dtype)
    return product(unit, d_acts).sum((1 + p["time_axis"], -1)), 0


_ONCE = {"cotangent": _cotangent_once, "tangent": _tangent_once}


# ---- derivatives -------------------------------------------------------------------------------


def _ones(rows: Array, lengths: Array) -> Array:
    return jnp.ones(lengths.shape, rows.dtype)


def _contract(gradient: Array, direction: Array, rows: Array, time_axis: int) -> Array:
    """Sum over frames and classes, in the precision of the costs."""
    return product(gradient.astype(rows.dtype), direction.astype(rows.dtype)).sum((time_axis, -1))


def _loss_jvp(primals, tangents, **p):
    if is_zero(tangents[_ACTS]):
        cost = loss_p.bind(*primals, **p)
        return cost, zero_like(cost)
    cost, rows, columns = forward_p.bind(*primals, **p)
    rows, columns = checkpoint_name(rows, RESIDUALS), checkpoint_name(columns, RESIDUALS)
    return cost, tangent_p.bind(*primals, rows, columns, tangents[_ACTS], **p)


def _forward_jvp(primals, tangents, **p):
    cost, rows, columns = forward_p.bind(*primals, **p)
    d_acts = tangents[_ACTS]
    d_cost = (
        zero_like(cost) if is_zero(d_acts) else tangent_p.bind(*primals, rows, columns, d_acts, **p)
    )
    return [cost, rows, columns], [d_cost, zero_like(rows), zero_like(columns)]


def _tangent_jvp(primals, tangents, **p):
    *kept, d_acts = primals
    rows = primals[_ROWS]
    out = tangent_p.bind(*primals, **p)
    terms = []
    if not is_zero(tangents[_LINEAR]):
        terms.append(tangent_p.bind(*kept, tangents[_LINEAR], **p))
    if not is_zero(tangents[_ACTS]):
        change = hvp_p.bind(*kept, _ones(rows, primals[2]), tangents[_ACTS], **p)
        terms.append(_contract(change, d_acts, rows, p["time_axis"]))
    return out, sum_or_zero(out, terms)


def _tangent_transpose(ct, *operands, **p):
    *kept, d_acts = operands
    assert ad.is_undefined_primal(d_acts)
    out = ad.Zero(d_acts.aval) if is_zero(ct) else cotangent_p.bind(*kept, ct, **p)
    return [None] * len(kept) + [out]


def _cotangent_jvp(primals, tangents, **p):
    *kept, ct = primals
    out = cotangent_p.bind(*primals, **p)
    terms = []
    if not is_zero(tangents[_LINEAR]):
        terms.append(cotangent_p.bind(*kept, tangents[_LINEAR], **p))
    if not is_zero(tangents[_ACTS]):
        terms.append(hvp_p.bind(*kept, ct, tangents[_ACTS], **p))
    return out, sum_or_zero(out, terms)


def _cotangent_transpose(d_gradient, *operands, **p):
    *kept, ct = operands
    assert ad.is_undefined_primal(ct)
    out = ad.Zero(ct.aval) if is_zero(d_gradient) else tangent_p.bind(*kept, d_gradient, **p)
    return [None] * len(kept) + [out]


def _hvp_jvp(primals, tangents, **p):
    *kept, ct, u = primals
    out = hvp_p.bind(*primals, **p)
    d_acts, d_ct, d_u = tangents[_ACTS], tangents[_LINEAR], tangents[_LINEAR + 1]
    terms = []
    if not is_zero(d_ct):
        terms.append(hvp_p.bind(*kept, d_ct, u, **p))
    if not is_zero(d_u):
        terms.append(hvp_p.bind(*kept, ct, d_u, **p))
    if not is_zero(d_acts):  # third order and beyond: pure JAX, exact

        def along(d_x, x, *rest):
            return jax.jvp(lambda x: _reference.hvp(x, *rest, **p), (x,), (d_x,))[1]

        along = _mesh.with_auto_axes(along, [jax.typeof(out)], several=False)
        terms.append(along(d_acts, *primals))
    return out, sum_or_zero(out, terms)


def _hvp_transpose(d_out, *operands, **p):
    *kept, ct, u = operands
    nothing = [None] * len(kept)
    if ad.is_undefined_primal(u):
        out = ad.Zero(u.aval) if is_zero(d_out) else hvp_p.bind(*kept, ct, d_out, **p)
        return [*nothing, None, out]
    if is_zero(d_out):
        return [*nothing, ad.Zero(ct.aval), None]
    rows = kept[_ROWS]
    change = hvp_p.bind(*kept, _ones(rows, kept[2]), d_out, **p)
    return [*nothing, _contract(change, u, rows, p["time_axis"]), None]


# ---- registrations -----------------------------------------------------------------------------

loss_p = define("loss", _reference.loss, _batch_of_one_acts)
ad.primitive_jvps[loss_p] = _loss_jvp

forward_p = define("forward", _reference.forward, _batch_of_one_acts)
ad.primitive_jvps[forward_p] = _forward_jvp

tangent_p = define("tangent", _reference.tangent, _batch_of_one_acts)
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose

cotangent_p = define("cotangent", _reference.cotangent, _batch_of_one_acts)
ad.primitive_jvps[cotangent_p] = _cotangent_jvp
ad.primitive_transposes[cotangent_p] = _cotangent_transpose

hvp_p = define("hvp", _reference.hvp, _batch_of_one_acts)
ad.primitive_jvps[hvp_p] = _hvp_jvp
ad.primitive_transposes[hvp_p] = _hvp_transpose

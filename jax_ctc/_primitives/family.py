# SPDX-License-Identifier: Apache-2.0
"""What all primitives have alike: abstract evaluation, batching, lowerings."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, xla

from .. import _mesh, _operands
from . import custom_call, taylor

RESIDUALS = "ctc_residuals"  # the name under which a remat policy can save them

Tangent = Array | ad.Zero  # or a cotangent

primitives: dict[str, Primitive] = {}


def define(op: str, pure: Callable, batch: Callable | None = None) -> Primitive:
    """The primitive of an op. `pure` computes it where there is no kernel. `batch`, if given, is
    tried first under vmap; it returns None to fall back to `_batch_acts`."""
    primitive = Primitive("ctc" if op == "loss" else f"ctc_{op}")
    primitive.multiple_results = len(_operands.SIGNATURES[op].results) > 1
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(functools.partial(_abstract_eval, op))
    batching.primitive_batchers[primitive] = functools.partial(_batch, op, batch)
    custom_call.register(op, primitive, pure)
    taylor.register(primitive)
    primitives[op] = primitive
    return primitive


def is_zero(tangent: Tangent) -> bool:
    return type(tangent) is ad.Zero


def zero_like(x: Array) -> ad.Zero:
    return ad.Zero(jax.typeof(x))


def sum_or_zero(out: Array, terms: Sequence[Array]) -> Tangent:
    return functools.reduce(jnp.add, terms) if terms else zero_like(out)


def _abstract_eval(op, acts, labels, lengths, *rest, time_axis, **_):
    avals = _operands.result_avals(op, acts, labels, time_axis=time_axis)
    return avals if len(avals) > 1 else avals[0]


def _batch(op, better, args, dims, **parameters):
    done = better(op, args, dims, **parameters) if better is not None else None
    return done if done is not None else _batch_acts(op, args, dims, **parameters)


def _batch_acts(op, args, dims, *, time_axis, **parameters):
    """The new axis stays where acts have it: acts are moved only where they are mapped over V."""
    signature = _operands.SIGNATURES[op]
    names = _mesh.mapped_over(args, dims)
    size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    at = dims[0]
    if at is None or at > args[0].ndim - 2:
        at = 0
    before_time = at <= time_axis
    batch_at = at if before_time else at - 1
    moved = []
    for x, d, kind in zip(args, dims, signature.operands, strict=True):
        place = at if kind.has_time else batch_at
        if d is None:
            x = jnp.broadcast_to(
                jnp.expand_dims(x, place), (*x.shape[:place], size, *x.shape[place:])
            )
            if names:
                entries = [_mesh.sharded_over(x, axis) or None for axis in range(x.ndim)]
                entries[place] = names
                x = jax.sharding.reshard(x, jax.sharding.PartitionSpec(*entries))
        elif d != place:
            x = jnp.moveaxis(x, d, place)
        moved.append(x)
    out = primitives[op].bind(*moved, time_axis=time_axis + before_time, **parameters)
    places = [at if kind.has_time else batch_at for kind in signature.results]
    return (out, places) if len(places) > 1 else (out, places[0])

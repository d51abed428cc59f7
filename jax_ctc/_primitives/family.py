# SPDX-License-Identifier: Apache-2.0
"""What all primitives have in common: abstract evaluation, batching, lowerings."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, xla
from jax.sharding import NamedSharding, PartitionSpec

from .. import _mesh, _operands
from . import custom_call, taylor

RESIDUALS = "ctc_residuals"  # a remat policy can save residuals by this name

Tangent = Array | ad.Zero  # or a cotangent

primitives: dict[str, Primitive] = {}


def define(op: str, pure: Callable, batch: Callable | None = None) -> Primitive:
    """Defines the primitive of an op. `pure` computes it on platforms without a kernel. `batch`, if
    given, is tried first under vmap; it returns None to fall back to `_batch_acts`."""
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


def _abstract_eval(op, acts, labels, lengths, *rest, **params):
    avals = _operands.result_avals(op, acts, labels, **params)
    return avals if len(avals) > 1 else avals[0]


def _batch(op, special, args, dims, **params):
    out = special(op, args, dims, **params) if special is not None else None
    return out if out is not None else _batch_acts(op, args, dims, **params)


def one_by_one(primitive: Primitive, args: Sequence[Array], dims: Sequence[int | None], **params):
    """Returns the primitive at each index of the mapped axes, one index after the other. The new
    axis of the results is the first."""
    return _one_by_one(args, primitive, tuple(dims), tuple(params.items()))


# A program of its own, so that a call outside of jit does not compile the loop again.
@functools.partial(jax.jit, inline=True, static_argnums=(1, 2, 3))
def _one_by_one(args, primitive, dims, params):
    mapped = [None if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]

    def at_one_index(own):
        operands = (x if y is None else y for x, y in zip(args, own, strict=True))
        return primitive.bind(*operands, **dict(params))

    return jax.lax.map(at_one_index, mapped)


_MOST_OPERANDS = 64  # of a concatenation


def _copies(x: Array, axis: int, size: int, names: tuple[str, ...], args: Sequence[Array]) -> Array:
    """Returns `x`, one of the operands `args`, as often along a new axis, which types shard over
    the mesh axes `names`.

    It is a concatenation for floats of 4 bytes and more, because its transpose is a chain of
    additions. The transpose of a broadcast is a sum over a leading axis, for which XLA's code for
    CPUs takes 90 times as long: 18 ms for 10 copies of (400, 8, 200). For halves and for an axis
    that is sharded it is a broadcast: that sum is rounded once, and is an all-reduce."""
    x = jnp.expand_dims(x, axis)
    if names:
        spec = [*jax.typeof(x).sharding.spec]
        spec[axis] = names
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        sharding = NamedSharding(_mesh.mesh_of(args), PartitionSpec(*spec))
        return jnp.broadcast_to(x, shape, out_sharding=sharding)
    if isinstance(size, int) and 0 < size <= _MOST_OPERANDS and x.dtype.itemsize >= 4:
        return jnp.concatenate([x] * size, axis)
    return jnp.broadcast_to(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]))


def _batch_acts(op, args, dims, *, time_axis, **params):
    """The new axis stays where acts have it. So acts are moved only if they are mapped over V."""
    signature = _operands.SIGNATURES[op]
    names = _mesh.mapped_over(args, dims)
    size = _mesh.mapped_size(args, dims)
    new_axis = dims[0]  # of arrays with T
    if new_axis is None or new_axis > args[0].ndim - 2:
        new_axis = 0
    before_time = new_axis <= time_axis
    new_batch_axis = new_axis if before_time else new_axis - 1  # of arrays without T

    def axis_of(kind: _operands.Kind) -> int:
        return new_axis if kind.has_time else new_batch_axis

    moved = []
    for x, d, kind in zip(args, dims, signature.operands, strict=True):
        axis = axis_of(kind)
        if d is None:
            x = _copies(x, axis, size, names, args)
        elif d != axis:
            x = jnp.moveaxis(x, d, axis)
        moved.append(x)
    out = primitives[op].bind(*moved, time_axis=time_axis + before_time, **params)
    out_axes = [axis_of(kind) for kind in signature.results]
    return (out, out_axes) if len(out_axes) > 1 else (out, out_axes[0])

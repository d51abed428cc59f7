# SPDX-License-Identifier: Apache-2.0
"""A primitive that runs a function of frames and classes one tile at a time.

    tiled       lengths, operands of a function  ->  its results

A tile is some frames times some classes. The function gets the part of each operand that belongs
to the tile, so an array of all frames times all classes is never stored. An operand, or a result,
belongs to frames (batch with T, ...), to sequences (batch, ...) or to classes (..., V). Axes at
`...` are never cut. Results of the tiles are merged: those of a frame over its classes, those of a
class over all frames. The merge is a sum unless the function says otherwise.

Only frames in use are read. If one device has the whole batch, these frames lie side by side in
the tiles, so the work is proportional to the sum of the lengths. Results are 0 in other frames.

Sums over tiles are closed under differentiation. The derivative of such a function is one more
function of the same kind, and so is its transpose: what was summed over classes is then given per
frame, and the reverse. So the rules below wrap functions in functions, for derivatives of any
order. A function must be hashable, because it is a parameter of the primitive.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import NamedSharding, PartitionSpec

from .. import _mesh
from . import taylor, tile_loops, tile_transformations
from .family import is_zero
from .tile_function import Function, Per, results_of, sizes_of, uncut, wide, widest_cost_dtype


def tiled(
    function: Function, lengths: Array, *operands: Array, time_axis: int, tile_bytes: int | None
) -> list[Array]:
    """Returns the results of the function for all frames in use and all classes. Without
    `tile_bytes` the platform decides."""
    params = {"function": function, "time_axis": time_axis, "tile_bytes": tile_bytes}
    axes = frozenset().union(*map(_mesh.varying_axes, (lengths, *operands)))
    # The gradient of what is the same on all devices is a sum over them. So it has to be wide until
    # then, and is rounded once.
    alike = [
        x if _mesh.varying_axes(x) == axes else wide(x, widest_cost_dtype(operands))
        for x in operands
    ]
    return tiled_p.bind(*_mesh.vary_alike(lengths, *alike), **params)


# ---- abstract evaluation, lowering -------------------------------------------------------------


def _abstract_eval(lengths, *operands, function, time_axis, **_):
    sizes = sizes_of(function, lengths, operands, time_axis)

    def typed(x: jax.ShapeDtypeStruct) -> ShapedArray:
        """Returns the type of a result, which varies over the same mesh axes as lengths."""
        sharding = NamedSharding(lengths.sharding.mesh, PartitionSpec(*[None] * len(x.shape)))
        return lengths.update(shape=x.shape, dtype=x.dtype, weak_type=False, sharding=sharding)

    return list(map(typed, results_of(function, sizes, operands, time_axis)))


def _lower(limits, ctx, *operands, **params):
    params["limits"] = limits
    loop = tile_loops.one_device
    if not _mesh.is_unpartitioned(ctx):
        context = getattr(ctx.module_context, "axis_context", None)
        devices = getattr(context, "num_devices", None) or 1
        loop = partial(tile_loops.many_devices, devices=devices)
    # Types inside a loop need not say over which axes of a shard_map they vary.
    ctx = ctx.replace(
        avals_in=[ShapedArray(x.shape, x.dtype) for x in ctx.avals_in],
        avals_out=[ShapedArray(x.shape, x.dtype) for x in ctx.avals_out],
    )
    named = jax.named_scope("ctc_tiles")(partial(loop, **params))  # in a profile
    return mlir.lower_fun(named, multiple_results=True)(ctx, *operands)


# ---- derivatives -------------------------------------------------------------------------------


def _jvp(primals, tangents, *, function, **params):
    if function.jvp is not None:
        return function.jvp(primals, tangents, function=function, **params)
    out = tiled_p.bind(*primals, function=function, **params)
    active = tuple(i for i, t in enumerate(tangents[1:]) if not is_zero(t))
    moving = [tangents[1 + i] for i in active]
    return out, tiled(tile_transformations.jvp(function, active), *primals, *moving, **params)


def _transpose(cts, lengths, *operands, function, **params):
    linear = tuple(i for i, x in enumerate(operands) if ad.is_undefined_primal(x))
    avals = [operands[i].aval for i in linear]
    given = tuple(i for i, ct in enumerate(cts) if not is_zero(ct))
    results: list[Array | ad.Zero] = list(map(ad.Zero, avals))
    if given:
        rests = tuple(
            uncut(aval, function.operands[i], lengths.ndim)
            for i, aval in zip(linear, avals, strict=True)
        )
        cotangents = tiled(
            tile_transformations.transposed(function, linear, rests, given),
            lengths,
            *(x for i, x in enumerate(operands) if i not in linear),
            *(cts[i] for i in given),
            **params,
        )
        results = [x.astype(aval.dtype) for x, aval in zip(cotangents, avals, strict=True)]
    placed = dict(zip(linear, results, strict=True))
    return [None, *(placed.get(i) for i in range(len(operands)))]


# ---- batching ----------------------------------------------------------------------------------


def longest(args, dims, function: Function, time_axis: int) -> Array:
    """Returns the largest of mapped lengths. No caller reads the frames at and after its own. An
    invalid length counts as 0, as everywhere, so that it does not hide the valid ones."""
    where = function.operands.index(Per.FRAME)
    frames, d = args[1 + where], dims[1 + where]
    T = frames.shape[time_axis + (d is not None and d <= time_axis)]
    most = jnp.where(args[0] > T, 0, args[0]).max(dims[0], initial=0)
    return _mesh.vary_alike(most, frames)[0]  # the largest of no lengths is a constant


def _batch(args, dims, *, function, time_axis, tile_bytes):
    params = {"time_axis": time_axis, "tile_bytes": tile_bytes}
    if function.batch is not None:
        return function.batch(args, dims, function=function, **params)
    lengths = args[0] if dims[0] is None else longest(args, dims, function, time_axis)

    def axis(per: Per) -> int:
        return 0 if per is Per.CLASS else lengths.ndim + (per is Per.FRAME)

    operands = [
        x if d is None else jnp.moveaxis(x, d, axis(per))
        for x, d, per in zip(args[1:], dims[1:], function.operands, strict=True)
    ]
    mapped = tuple(d is not None for d in dims[1:])
    if not any(mapped):
        out = tiled(function, lengths, *operands, **params)
        return out, [None] * len(out)
    if any(m and per is not Per.SEQUENCE for m, per in zip(mapped, function.operands, strict=True)):
        size = _mesh.mapped_size(args, dims)
        most = tile_bytes or tile_loops.CPU.tile_bytes
        params["tile_bytes"] = max(most // max(size, 1), 1)  # a tile has all indices
    sizes = sizes_of(function, lengths, operands, time_axis)
    function, results = tile_transformations.vmapped(function, mapped, sizes, operands, time_axis)
    out = tiled(function, lengths, *operands, **params)
    kinds = zip(function.results, results, strict=True)
    return out, [axis(per) if is_mapped else None for per, is_mapped in kinds]


# ---- registrations -----------------------------------------------------------------------------

tiled_p = Primitive("ctc_tiled")
tiled_p.multiple_results = True
tiled_p.def_impl(partial(xla.apply_primitive, tiled_p))
tiled_p.def_abstract_eval(_abstract_eval)
ad.primitive_jvps[tiled_p] = _jvp
ad.primitive_transposes[tiled_p] = _transpose
batching.primitive_batchers[tiled_p] = _batch
mlir.register_lowering(tiled_p, partial(_lower, tile_loops.OTHER))
mlir.register_lowering(tiled_p, partial(_lower, tile_loops.CPU), platform="cpu")
taylor.register(tiled_p)

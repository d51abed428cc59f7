# SPDX-License-Identifier: Apache-2.0
"""Loops that run a function of a tile over all frames in use and all classes."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from .. import _operands
from .tile_function import Function, Per, Tile, results_of, sizes_of, uncut, wide, widest_cost_dtype

# ---- the size of a tile ------------------------------------------------------------------------

# Smaller tiles make slower products. More rows than these are waste where lengths differ, because
# the last tile of rows is padded. More bytes leave the caches of a CPU (docs/output_layer.md). On
# a GPU a tile must be worth a dozen launches; its size there is an estimate.
_LEAST_ROWS, _LEAST_COLUMNS = 64, 256


class Limits(NamedTuple):
    """What a tile is at most, if the caller does not say how many bytes."""

    rows: int
    tile_bytes: int


CPU = Limits(512, 4 << 20)
OTHER = Limits(2048, 32 << 20)


def tile_size(
    frames: int, V: int, itemsize: int, tile_bytes: int | None, limits: Limits
) -> tuple[int, int]:
    """Returns rows and columns of a tile. A symbolic V (jax.export) is not cut."""
    if not isinstance(V, int):
        return _LEAST_ROWS, V
    entries = (tile_bytes or limits.tile_bytes) // itemsize
    rows = min(limits.rows, max(entries // _LEAST_COLUMNS, _LEAST_ROWS))
    if isinstance(frames, int):
        rows = _equal_blocks(frames, rows)
    return rows, _equal_blocks(V, entries // rows)


def _equal_blocks(size: int, most: int) -> int:
    """Returns the length of blocks as equal as can be, of which none is longer than `most`."""
    return -(-size // -(-size // max(most, 1)))


# ---- one device --------------------------------------------------------------------------------


def one_device(
    lengths: Array,
    *operands: Array,
    function: Function,
    time_axis: int,
    tile_bytes: int | None,
    limits: Limits,
) -> list[Array]:
    """Cuts the frames in use into tiles, sequence after sequence, so that no other frame is read.
    The number of tiles is known when the program runs."""
    sizes = sizes_of(function, lengths, operands, time_axis)
    T, V, rank = sizes.T, sizes.V, len(sizes.batch)
    frames, dtype = sizes.frames(time_axis), widest_cost_dtype(operands)
    N, B = math.prod(frames), math.prod(sizes.batch)
    avals = results_of(function, sizes, operands, time_axis)
    totals = [jnp.zeros(x.shape, x.dtype) for x in avals]
    if 0 in (*frames, V):  # XLA does not compile the body of a shard_map that uses no operand
        return lax.optimization_barrier((totals, operands))[0]
    rows, columns = tile_size(N, V, dtype.itemsize, tile_bytes, limits)

    def flat(x: Array, per: Per) -> Array:
        if per is Per.CLASS:
            return x
        return x.reshape(N if per is Per.FRAME else B, *uncut(x, per, rank))

    operands = tuple(map(flat, operands, function.operands))
    lengths = lengths.reshape(B)
    lengths = jnp.where(lengths > T, 0, jnp.maximum(lengths, 0))
    ends = jnp.cumsum(lengths, dtype=jnp.int32)
    inner = math.prod(sizes.batch[time_axis:])  # sequences between a frame and the next

    def some_rows(i: Array, totals: list[Array]) -> list[Array]:
        row = i * rows + lax.iota(jnp.int32, rows)
        used = row < ends[-1]
        b = jnp.minimum(_sequence_of(row, ends), B - 1)
        t = row - (ends[b] - lengths[b])
        frame = jnp.where(used, (b // inner * T + t) * inner + b % inner, N)

        def take(x: Array, per: Per) -> Array:
            if per is Per.CLASS:
                return x
            if per is Per.SEQUENCE:
                return wide(x.at[b].get(mode="promise_in_bounds"), dtype)
            x, place = _operands.in_loop(x, frame)
            return wide(x.at[place].get(mode="fill", fill_value=0), dtype)

        def start(r: int) -> Array:
            whole = totals[r]
            if function.results[r] is Per.CLASS:
                return whole
            return jnp.full((rows, *whole.shape[1:]), function.start(r), whole.dtype)

        def put(whole: Array, x: Array, per: Per) -> Array:
            if per is Per.CLASS:
                return x
            return whole.at[frame].set(x, mode="drop", unique_indices=True)

        state = _over_classes(
            function,
            [start(r) for r in range(len(totals))],
            list(map(take, operands, function.operands)),
            lambda first, fresh: Tile((rows,), columns, used.astype(jnp.int32), first, fresh),
            V,
            columns,
        )
        return list(map(put, totals, state, function.results))

    tiles = (ends[-1] + (rows - 1)) // rows
    out = lax.fori_loop(jnp.int32(0), tiles, some_rows, list(map(flat, totals, function.results)))
    return [x.reshape(aval.shape) for x, aval in zip(out, avals, strict=True)]


def _sequence_of(row: Array, ends: Array) -> Array:
    """Returns how many of `ends`, which are in order, are not above each row."""
    if isinstance(ends.size, int) and ends.size > 4096:
        return jnp.searchsorted(ends, row, side="right").astype(jnp.int32)
    return (ends[:, None] <= row[None]).sum(0, dtype=jnp.int32)  # one step, not a loop


# ---- many devices ------------------------------------------------------------------------------


def many_devices(
    lengths: Array,
    *operands: Array,
    function: Function,
    time_axis: int,
    tile_bytes: int | None,
    limits: Limits,
    devices: int,
) -> list[Array]:
    """Cuts classes only, so that a partitioner can split the batch axes, and so that devices sum
    the results of a class once. A tile has its part on each of the devices."""
    sizes = sizes_of(function, lengths, operands, time_axis)
    V, frames, dtype = sizes.V, sizes.frames(time_axis), widest_cost_dtype(operands)
    avals = results_of(function, sizes, operands, time_axis)
    if 0 in (*frames, V):
        return [jnp.zeros(x.shape, x.dtype) for x in avals]
    columns, N = V, math.prod(frames)
    if isinstance(V, int) and isinstance(N, int):
        entries = devices * (tile_bytes or limits.tile_bytes) // dtype.itemsize
        columns = _equal_blocks(V, max(entries // N, _LEAST_ROWS))
    used = _operands.used(frames, lengths, time_axis)

    def where_used(x: Array) -> Array:
        mask = jnp.expand_dims(used, tuple(range(used.ndim, x.ndim)))
        return jnp.where(mask, x, jnp.zeros_like(x))

    def take(x: Array, per: Per) -> Array:
        if per is Per.CLASS:
            return x
        if per is Per.SEQUENCE:
            x = jnp.expand_dims(x, time_axis)
            return wide(jnp.broadcast_to(x, (*frames, *x.shape[len(frames) :])), dtype)
        return wide(where_used(x), dtype)

    state = _over_classes(
        function,
        [jnp.full(x.shape, function.start(r), x.dtype) for r, x in enumerate(avals)],
        list(map(take, operands, function.operands)),
        lambda first, fresh: Tile(frames, columns, used.astype(jnp.int32), first, fresh),
        V,
        columns,
    )
    kinds = zip(state, function.results, strict=True)
    return [x if per is Per.CLASS else where_used(x) for x, per in kinds]


# ---- both --------------------------------------------------------------------------------------


def _over_classes(
    function: Function,
    state: Sequence[Array],
    operands: Sequence[Array],
    tile_at: Callable[[Array, Array], Tile],
    V: int,
    columns: int,
) -> list[Array]:
    """Merges the tiles of some rows into `state`, block after block of classes. The operands and
    results of rows are those of these rows. Those of classes are whole."""
    blocks = -(-V // columns) if isinstance(V, int) else 1
    of_rows = [r for r, per in enumerate(function.results) if per is not Per.CLASS]

    def block(j: Array, state: Sequence[Array]) -> list[Array]:
        fresh = j * columns
        first = jnp.minimum(fresh, V - columns)

        def take(x: Array, per: Per) -> Array:
            if per is not Per.CLASS:
                return x
            x, start = _operands.in_loop(x, first)
            x = x if blocks == 1 else lax.dynamic_slice_in_dim(x, start, columns, axis=-1)
            return wide(x, widest_cost_dtype(operands))

        out = function.call(tile_at(first, fresh), *map(take, operands, function.operands))
        after = list(state)
        merged = function.merged([state[r] for r in of_rows], [out[r] for r in of_rows])
        for r, x in zip(of_rows, merged, strict=True):
            after[r] = x
        for r in set(range(len(out))) - set(of_rows):
            before = lax.dynamic_slice_in_dim(state[r], first, columns, axis=-1)
            after[r] = lax.dynamic_update_slice_in_dim(
                state[r], before + out[r], first, axis=state[r].ndim - 1
            )
        return after

    return lax.fori_loop(jnp.int32(0), jnp.int32(blocks), block, list(state))

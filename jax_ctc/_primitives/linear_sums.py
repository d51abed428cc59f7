# SPDX-License-Identifier: Apache-2.0
"""The sums of row_sums.py for acts = hidden @ kernel + bias, which are made one tile at a time.

    linear sums    lengths, hidden, kernel, bias, symbols  ->  top, ties, tail, scores

`hidden` is (batch with T, D), `kernel` (D, V) and `bias` (1, V). The results are those of `sums`.
They are differentiated like them (row_sums.py): the derivative is a sum over tiles, which
tiles.py differentiates again. Acts of a tile are made again for each derivative.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import ad

from .. import _mesh
from . import few_classes, row_sums, tiles
from .family import RESIDUALS, one_by_one, zero_like
from .tile_function import Function, Per, Tile, widest_cost_dtype
from .wide_product import AXES, product

# ---- functions of a tile -----------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """How a layer is multiplied, and how many threads reduce its acts."""

    dtype: str
    precision: lax.PrecisionLike
    threads: int

    def product(self, hidden: Array, kernel: Array) -> Array:
        rows = AXES[: hidden.ndim - 1]
        spec = f"{rows}d,dv->{rows}v"
        return product(spec, hidden, kernel, dtype=self.dtype, precision=self.precision)

    def acts(self, tile: Tile, hidden: Array, kernel: Array, bias: Array) -> Array:
        """Returns the acts of a tile. Classes of another tile too have -inf here."""
        bias = jnp.where(self._is_fresh(tile), bias[0], -jnp.inf)
        # A row with a NaN or an inf has no softmax.
        shift = jnp.where(jnp.isfinite(hidden).all(-1), 0, jnp.nan).astype(hidden.dtype)
        return _plus_bias(self.product(_finite(hidden), kernel), bias) + shift[..., None]

    def direction(
        self, tile: Tile, hidden: Array, kernel: Array, directions: Sequence[Array]
    ) -> Array:
        """Returns the direction of acts, from those of hidden, kernel and bias."""
        d_hidden, d_kernel, d_bias = directions
        of_kernel = self.product(_finite(hidden), d_kernel)
        d_bias = jnp.where(self._is_fresh(tile), d_bias[0], 0)
        return _plus_bias(self.product(d_hidden, kernel) + of_kernel, d_bias)

    def _is_fresh(self, tile: Tile) -> Array:
        return tile.first + lax.iota(jnp.int32, tile.columns) >= tile.fresh

    def local(self, tile: Tile, symbols: Array) -> Array:
        """Returns symbols as columns of the tile, -1 if they are elsewhere."""
        column = symbols - tile.first
        here = (symbols >= 0) & (symbols >= tile.fresh) & (column >= 0) & (column < tile.columns)
        return jnp.where(here, column, -1)

    @property
    def parameters(self) -> dict[str, int]:
        return {"time_axis": 0, "blank": 0, "threads": self.threads}


def _finite(hidden: Array) -> Array:
    """Returns hidden, with rows of 0 for those with a NaN or an inf. In the gradient of the kernel
    these must not meet the zero cotangent of a masked sequence."""
    return jnp.where(jnp.isfinite(hidden).all(-1, keepdims=True), hidden, 0)


def _plus_bias(x: Array, bias: Array) -> Array:
    return x + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


@dataclass(frozen=True)
class _Sums:
    layer: Layer

    def __call__(self, tile, hidden, kernel, bias, symbols):
        acts = self.layer.acts(tile, hidden, kernel, bias)
        local = self.layer.local(tile, symbols)
        out = row_sums.sums_p.bind(acts[None], local, tile.used, **self.layer.parameters)
        return tuple(x[0] for x in out)


@dataclass(frozen=True)
class _Tangent:
    """What `sums_tangent` is for `sums`."""

    layer: Layer

    def __call__(self, tile, hidden, kernel, bias, symbols, top, *directions_and_d_top):
        *directions, d_top = directions_and_d_top
        layer = self.layer
        acts = layer.acts(tile, hidden, kernel, bias)
        direction = layer.direction(tile, hidden, kernel, directions)
        out = row_sums.sums_tangent_p.bind(
            acts[None],
            layer.local(tile, symbols),
            tile.used,
            top[None],
            direction[None],
            d_top[None],
            **layer.parameters,
        )
        return tuple(x[0] for x in out)


def _merge(before: Sequence[Array], now: Sequence[Array]) -> list[Array]:
    """Merges the sums over some classes with those over others."""
    top = jnp.maximum(before[0], now[0])

    def ties(part):
        return jnp.where((part[0] == top) | jnp.isnan(part[1]), part[1], 0)

    def tail(part):
        return few_classes.tail_below(*part[:3], top)

    scores = before[3] + now[3]  # one of them is 0
    return [top, ties(before) + ties(now), tail(before) + tail(now), scores]


def _jvp(primals, tangents, *, function, time_axis, tile_bytes):
    lengths, hidden, kernel, bias, symbols = primals
    layer = function.call.layer
    params = {"time_axis": time_axis, "tile_bytes": tile_bytes}
    out = [checkpoint_name(x, RESIDUALS) for x in tiles.tiled(function, *primals, **params)]
    directions = [ad.instantiate_zeros(t) for t in tangents[1:4]]
    top, ties, _, _ = out
    d_top = _centre(layer, primals, directions, time_axis)
    tangent = Function(
        _Tangent(layer),
        (*function.operands, Per.FRAME, Per.FRAME, Per.CLASS, Per.CLASS, Per.FRAME),
        (Per.FRAME, Per.FRAME),
    )
    d_tail, d_scores = tiles.tiled(
        tangent, lengths, hidden, kernel, bias, symbols, top, *directions, d_top, **params
    )
    return out, [d_top, zero_like(ties), d_tail, d_scores]


def _centre(layer, primals, directions, time_axis):
    """Returns the tangent of `top`, which may be chosen. The choice is the direction of the first
    class, so that what is common to all classes of a direction cancels."""
    lengths, hidden, kernel, bias, symbols = primals
    dtype = widest_cost_dtype((hidden, kernel, bias))
    tile = Tile(hidden.shape[:-1], 1, lengths, 0, 0)
    hidden, d_hidden = (x.astype(dtype) for x in (hidden, directions[0]))
    kernel, d_kernel, d_bias = (x[..., :1].astype(dtype) for x in (kernel, *directions[1:]))
    direction = layer.direction(tile, hidden, kernel, (d_hidden, d_kernel, d_bias))
    nothing = jnp.zeros_like(direction)
    operands = _mesh.vary_alike(nothing, symbols, lengths, nothing[..., 0], direction)
    params = layer.parameters | {"time_axis": time_axis}
    return row_sums.sums_centre_p.bind(*operands, **params)


def _batch(args, dims, *, function, time_axis, tile_bytes):
    """Acts are made once for all label sequences of the same hidden states."""
    lengths, hidden, kernel, bias, symbols = args
    params = {"function": function, "time_axis": time_axis, "tile_bytes": tile_bytes}
    if dims[1] is None and dims[2] is None and dims[3] is None:
        if dims[0] is not None:
            lengths = tiles.longest(args, dims, function, time_axis)
        if dims[4] is None:
            return tiles.tiled_p.bind(lengths, *args[1:], **params), [None] * 4
        symbols = jnp.moveaxis(symbols, dims[4], -2)
        flat = symbols.reshape(*symbols.shape[:-2], symbols.shape[-2] * symbols.shape[-1])
        *sums, scores = tiles.tiled_p.bind(lengths, hidden, kernel, bias, flat, **params)
        scores = scores.reshape(*scores.shape[:-1], *symbols.shape[-2:])
        return [*sums, scores], [None, None, None, scores.ndim - 2]

    if dims[2] is None and dims[3] is None:  # one more axis of the batch
        of_batch = 0, 1, 4
        lengths, hidden, symbols = _mesh.mapped_to_front(
            [args[i] for i in of_batch], [dims[i] for i in of_batch]
        )
        params["time_axis"] += 1
        return tiles.tiled_p.bind(lengths, hidden, kernel, bias, symbols, **params), [0] * 4
    return one_by_one(tiles.tiled_p, args, dims, **params), [0] * 4


def sums_of(
    layer: Layer,
    arrays: Sequence[Array],
    symbols: Array,
    lengths: Array,
    time_axis: int,
    tile_bytes: int | None,
) -> few_classes.Sums:
    """Returns the sums of the local classes (few_classes.py). `arrays` are hidden, kernel and
    bias."""
    function = Function(
        _Sums(layer),
        (Per.FRAME, Per.CLASS, Per.CLASS, Per.SEQUENCE),
        (Per.FRAME,) * 4,
        merge=_merge,
        starts=(-float("inf"), 0.0, 0.0, 0.0),
        jvp=_jvp,
        batch=_batch,
    )
    params = {"time_axis": time_axis, "tile_bytes": tile_bytes}
    out = tiles.tiled(function, lengths, *arrays, symbols, **params)
    return few_classes.Sums(*out)

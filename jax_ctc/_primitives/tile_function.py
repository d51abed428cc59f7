# SPDX-License-Identifier: Apache-2.0
"""Functions of a tile: what their operands and results belong to, and their shapes."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Per(enum.Enum):
    """What an operand or a result belongs to, and so its axes."""

    FRAME = "frame"  # batch with T, then axes that are not cut
    SEQUENCE = "sequence"  # batch, then axes that are not cut
    CLASS = "class"  # axes that are not cut, then V


class Tile(NamedTuple):
    """One tile. In it, operands of frames and of sequences have the leading axes `rows`, and those
    of classes the trailing axis `columns`."""

    rows: tuple[int, ...]
    columns: int
    used: Array  # rows, int32: 1 for a frame in use, 0 for padding
    first: Array | int  # class of the first column
    fresh: Array | int  # classes below this one belong to the tile before too


@dataclass(frozen=True)
class Function:
    """A function of a tile. Floating operands arrive in the dtype of costs (float32, float64), and
    results leave in it. Operands of frames are 0 in padding.

    The results of tiles are added. If `merge` is given it is called instead, with two lists of
    results. It then has `starts`, and rules of its own for JVP and batching."""

    call: Callable[..., Sequence[Array]]  # (tile, *operands) -> results
    operands: tuple[Per, ...]
    results: tuple[Per, ...]
    merge: Callable[[Sequence[Array], Sequence[Array]], list[Array]] | None = None
    starts: tuple[float, ...] | None = None  # of each result, the neutral element of `merge`
    jvp: Callable | None = None
    batch: Callable | None = None

    def start(self, result: int) -> float:
        return self.starts[result] if self.starts else 0.0

    def merged(self, before: Sequence[Array], now: Sequence[Array]) -> list[Array]:
        if self.merge is not None:
            return self.merge(before, now)
        return [x + y for x, y in zip(before, now, strict=True)]


class HasShape(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


class Sizes(NamedTuple):
    batch: tuple[int, ...]
    T: int
    V: int

    def frames(self, time_axis: int) -> tuple[int, ...]:
        return *self.batch[:time_axis], self.T, *self.batch[time_axis:]


def sizes_of(
    function: Function, lengths: HasShape, operands: Sequence[HasShape], time_axis: int
) -> Sizes:
    T = operands[function.operands.index(Per.FRAME)].shape[time_axis]
    V = operands[function.operands.index(Per.CLASS)].shape[-1]
    return Sizes(lengths.shape, T, V)


def uncut(x: HasShape, per: Per, batch_rank: int) -> tuple[int, ...]:
    """Returns the axes of an operand that no tile cuts."""
    if per is Per.CLASS:
        return x.shape[:-1]
    return x.shape[batch_rank + (per is Per.FRAME) :]


def shape_of(
    per: Per, frames: tuple[int, ...], columns: int, uncut: tuple[int, ...]
) -> tuple[int, ...]:
    """Returns the shape of an operand in a tile."""
    return (*uncut, columns) if per is Per.CLASS else (*frames, *uncut)


def widest_cost_dtype(operands: Sequence[HasShape]) -> np.dtype:
    return np.dtype(np.float64 if any(x.dtype == np.float64 for x in operands) else np.float32)


def wide(x: Array, dtype: np.dtype) -> Array:
    """Returns an array of floats in that dtype, and an array of integers as it is."""
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def results_of(
    function: Function, sizes: Sizes, operands: Sequence[HasShape], time_axis: int
) -> list[jax.ShapeDtypeStruct]:
    """Returns the types of the results: those of one tile that has all frames and classes."""
    frames, dtype = sizes.frames(time_axis), widest_cost_dtype(operands)

    def whole(x: HasShape, per: Per) -> jax.ShapeDtypeStruct:
        shape = shape_of(per, frames, sizes.V, uncut(x, per, len(sizes.batch)))
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(shape, dtype if is_float else x.dtype)

    def call(*operands: Array) -> Sequence[Array]:
        tile = Tile(frames, sizes.V, jnp.ones(frames, jnp.int32), 0, 0)
        return function.call(tile, *operands)

    return list(jax.eval_shape(call, *map(whole, operands, function.operands)))

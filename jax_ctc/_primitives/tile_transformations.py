# SPDX-License-Identifier: Apache-2.0
"""Functions of a tile that are made from others: derivatives, transposes, vectorised functions.

Each class is hashable, and equal to another that is made from the same function in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax import Array

from .tile_function import (
    Function,
    HasShape,
    Per,
    Sizes,
    Tile,
    results_of,
    shape_of,
    widest_cost_dtype,
)


@dataclass(frozen=True)
class Jvp:
    """From the operands of a function and the tangents of those at `active`, to the tangents of
    the results."""

    function: Function
    active: tuple[int, ...]

    def __call__(self, tile: Tile, *operands: Array) -> Sequence[Array]:
        count = len(self.function.operands)
        primals, tangents = operands[:count], operands[count:]

        def f(*moving: Array) -> tuple[Array, ...]:
            full = list(primals)
            for i, x in zip(self.active, moving, strict=True):
                full[i] = x
            return tuple(self.function.call(tile, *full))

        return jax.jvp(f, tuple(primals[i] for i in self.active), tangents)[1]


def jvp(function: Function, active: tuple[int, ...]) -> Function:
    moving = tuple(function.operands[i] for i in active)
    return Function(Jvp(function, active), (*function.operands, *moving), function.results)


@dataclass(frozen=True)
class Transposed:
    """From the operands of a function that are not at `linear`, and cotangents of the results at
    `given`, to cotangents of those at `linear`."""

    function: Function
    linear: tuple[int, ...]
    uncut: tuple[tuple[int, ...], ...]  # axes of the linear operands
    given: tuple[int, ...]

    def __call__(self, tile: Tile, *operands: Array) -> Sequence[Array]:
        kinds = self.function.operands
        count = len(kinds) - len(self.linear)
        others, cotangents = operands[:count], operands[count:]

        def f(*linear: Array) -> tuple[Array, ...]:
            moving, fixed = iter(linear), iter(others)
            full = [next(moving if i in self.linear else fixed) for i in range(len(kinds))]
            out = self.function.call(tile, *full)
            return tuple(out[i] for i in self.given)

        types = [
            jax.ShapeDtypeStruct(
                shape_of(kinds[i], tile.rows, tile.columns, uncut), widest_cost_dtype(operands)
            )
            for i, uncut in zip(self.linear, self.uncut, strict=True)
        ]
        return jax.linear_transpose(f, *types)(cotangents)


def transposed(
    function: Function,
    linear: tuple[int, ...],
    uncut: tuple[tuple[int, ...], ...],
    given: tuple[int, ...],
) -> Function:
    others = [per for i, per in enumerate(function.operands) if i not in linear]
    return Function(
        Transposed(function, linear, uncut, given),
        (*others, *(function.results[i] for i in given)),
        tuple(function.operands[i] for i in linear),
    )


@dataclass(frozen=True)
class Vmapped:
    """The function with one more axis in the mapped operands and results: the first of those that
    no tile cuts."""

    function: Function
    operands: tuple[bool, ...]  # which are mapped
    results: tuple[bool, ...]

    def __call__(self, tile: Tile, *operands: Array) -> Sequence[Array]:
        def axes(kinds: Sequence[Per], mapped: Sequence[bool]) -> tuple[int | None, ...]:
            return tuple(
                (0 if per is Per.CLASS else len(tile.rows)) if is_mapped else None
                for per, is_mapped in zip(kinds, mapped, strict=True)
            )

        def call(*operands: Array) -> tuple[Array, ...]:
            return tuple(self.function.call(tile, *operands))

        in_axes = axes(self.function.operands, self.operands)
        return jax.vmap(call, in_axes, axes(self.function.results, self.results))(*operands)


def vmapped(
    function: Function,
    mapped: tuple[bool, ...],
    sizes: Sizes,
    operands: Sequence[HasShape],
    time_axis: int,
) -> tuple[Function, tuple[bool, ...]]:
    """Returns the function, and which results are mapped. vmap alone knows: it raises an error for
    a result that is mapped and was not expected to be."""

    def is_mapped(r: int) -> bool:
        one = Function(Nth(function, r), function.operands, (function.results[r],))
        trial = Function(Vmapped(one, mapped, (False,)), one.operands, one.results)
        try:
            results_of(trial, sizes, operands, time_axis)
        except ValueError:
            return True
        return False

    results = tuple(map(is_mapped, range(len(function.results))))
    call = Vmapped(function, mapped, results)
    return Function(call, function.operands, function.results), results


@dataclass(frozen=True)
class Nth:
    """The function with one of its results."""

    function: Function
    result: int

    def __call__(self, tile: Tile, *operands: Array) -> Sequence[Array]:
        return (self.function.call(tile, *operands)[self.result],)

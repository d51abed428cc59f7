# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that must be known when a program is traced: switches, counts, sizes."""

import operator
from collections.abc import Callable
from typing import cast

import jax
import numpy as np
from jax.core import Tracer

INT32 = np.iinfo(np.int32)


def kind(x: object) -> str:
    if isinstance(x, jax.Array):
        return "a JAX array"
    name = type(x).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def known(name: str, value: object, wanted: str) -> None:
    if isinstance(value, Tracer):
        raise TypeError(
            f"`{name}`: expected {wanted}, got a traced value. It must be known when the program "
            "is traced: name it in static_argnames of jax.jit. Under jax.vmap make one call for "
            "each value."
        )


def switch(name: str, value: bool) -> bool:
    known(name, value, "a Python bool")
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}`: expected a Python bool, got {value!r}.")
    return bool(value)


def threads_of(num_threads: int | None) -> int:
    """Returns the parameter `threads` of the primitives, where 0 means no limit."""
    return 0 if num_threads is None else at_least_one("num_threads", num_threads, "None or ")


def at_least_one(name: str, value: int, otherwise: str = "", most: int = INT32.max) -> int:
    """Returns a static count as an int, `most` for a larger one. `otherwise` is what else it may
    be."""
    count = static_int(name, value, otherwise=otherwise, shown=repr)
    if count < 1:
        raise ValueError(f"`{name}`: expected {otherwise}at least 1, got {count}.")
    return min(count, most)


def static_int(
    name: str,
    value: int,
    *,
    otherwise: str = "",
    way_out: str = "",
    shown: Callable[[object], str] = kind,
) -> int:
    expected = f"{otherwise}a Python int"
    known(name, value, expected)
    error = None
    if not isinstance(value, bool):  # which Python takes for 0 or 1
        try:
            return operator.index(value)
        except TypeError as raised:
            error = raised
    raise TypeError(f"`{name}`: expected {expected}, got {shown(value)}.{way_out}") from error


def size(name: str, value: int) -> int:
    """Returns the size of an axis, which may be a symbol (jax.export)."""
    if jax.export.is_symbolic_dim(value):
        return cast(int, value)
    is_array = getattr(value, "ndim", 0) > 0
    of_array = " Give the size of its last axis, x.shape[-1]." if is_array else ""
    count = static_int(name, value, way_out=of_array)
    if count < 0:
        raise ValueError(f"`{name}`: expected at least 0, got {count}.")
    return count

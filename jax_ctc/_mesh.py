# SPDX-License-Identifier: Apache-2.0
"""Over which mesh axes a value is sharded by its type, and over which it varies in shard_map."""

from typing import Any

import jax
from jax import Array, lax


def spread_over(x: Any, axis: int) -> tuple[str, ...]:
    """The mesh axes that an axis of x is spread over by its type (explicit sharding)."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or axis >= len(sharding.spec) or sharding.spec[axis] is None:
        return ()
    entry = sharding.spec[axis]
    return entry if isinstance(entry, tuple) else (entry,)


def varying_axes(x: Any) -> frozenset[str]:
    """Manual mesh axes over which a value differs from device to device."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)  # jax >= 0.10; `vma` before
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """shard_map asks that a primitive's operands vary over the same mesh axes."""
    axes = frozenset().union(*map(varying_axes, arrays))

    def cast(x: Array) -> Array:
        missing = tuple(sorted(axes - varying_axes(x)))
        if not missing:
            return x
        if hasattr(lax, "pcast"):  # jax >= 0.8; pvary before
            return lax.pcast(x, missing, to="varying")
        return getattr(lax, "pvary")(x, missing)  # noqa: B009

    return tuple(map(cast, arrays))

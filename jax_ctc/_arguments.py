# SPDX-License-Identifier: Apache-2.0
"""What callers hand over, as the primitives take it.

`Arguments` is what the primitives take: int32 labels and lengths, in which whatever is wrong with a
sequence has become a value that the kernels know to be wrong.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _shapes, _values


class Arguments(NamedTuple):
    acts: Array  # (..., T, ..., V)
    labels: Array  # (..., L) int32, negative where padded
    lengths: Array  # (...) int32; -1 for a sequence with a bad label length
    time_axis: int
    blank: int  # in [0, V)


def prepare(
    acts: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike | None,
    label_lengths: ArrayLike | None,
    *,
    blank: int,
    time_major: bool,
    slices: int | None = None,
) -> Arguments:
    """Checks and normalises what the public functions were called with. Raises TypeError (dtypes)
    and ValueError (shapes; values where they are known). `acts` may be one of so many `slices` of
    the classes, over devices on which all else is the same."""
    given = _shapes.checked(
        acts, labels, lengths, label_lengths, blank=blank, time_major=time_major, slices=slices or 1
    )
    _values.raise_on_known(given)
    arguments = _normalised(given)
    if slices is not None:
        return arguments
    alike = vary_alike(arguments.acts, arguments.labels, arguments.lengths)
    return arguments._replace(acts=alike[0], labels=alike[1], lengths=alike[2])


def _normalised(given: _shapes.Given) -> Arguments:
    def array(x: Any) -> Array:
        return jnp.asarray(_values.saturated(x))

    acts, labels, lengths = given.acts, array(given.labels), array(given.lengths)
    if given.label_lengths is not None:
        count = array(given.label_lengths)
        inside = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1) < count[..., None]
        labels = jnp.where(inside, labels, -1)
        lengths = jnp.where((count < 0) | (count > given.L), -1, lengths)
    return Arguments(acts, labels, lengths, given.time_axis, given.blank)


# ---- inside shard_map --------------------------------------------------------------------------


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

# SPDX-License-Identifier: Apache-2.0
"""What callers hand over: shapes and dtypes are checked at trace time, values where they are known.

`Arguments` is what the primitives take: int32 labels and lengths, in which whatever is wrong with a
sequence has become a value that the kernels know to be wrong.
"""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

_FLOATS = (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16)
_INT32 = np.iinfo(np.int32)


class Arguments(NamedTuple):
    acts: Array  # (..., T, ..., V)
    labels: Array  # (..., L) int32, negative where padded
    lengths: Array  # (...) int32; -1 for a sequence with a bad label length
    time_axis: int
    blank: int


def prepare(
    acts: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike,
    label_lengths: ArrayLike | None,
    *,
    blank: int,
    time_major: bool,
    slices: int | None = None,
) -> Arguments:
    """Checks and normalises what the public functions were called with. Raises TypeError (dtypes)
    and ValueError (shapes; values where nothing is traced). `acts` may be one of so many `slices`
    of the classes, over devices on which all else is the same."""
    given = shapes_checked(acts, labels, lengths, label_lengths, blank, time_major, slices or 1)
    if _nothing_is_staged(given.labels, given.lengths, given.label_lengths):
        _raise_on_bad_values(given)
    arguments = _normalised(given)
    if slices is not None:
        return arguments
    alike = vary_alike(arguments.acts, arguments.labels, arguments.lengths)
    return arguments._replace(acts=alike[0], labels=alike[1], lengths=alike[2])


# ---- shapes and dtypes -------------------------------------------------------------------------


class Given(NamedTuple):
    acts: Array
    labels: Any  # arrays of the caller's own integer dtype: values are judged as they came
    lengths: Any
    label_lengths: Any | None
    time_axis: int
    blank: int
    V: int  # of all slices

    @property
    def T(self) -> int:
        return self.acts.shape[self.time_axis]

    @property
    def L(self) -> int:
        return self.labels.shape[-1]


def shapes_checked(
    acts: Any,
    labels: Any,
    lengths: Any,
    label_lengths: Any,
    blank: Any,
    time_major: Any,
    slices: int = 1,
) -> Given:
    acts = acts if isinstance(acts, jax.Array) else jnp.asarray(acts)  # which would copy a tracer
    if acts.dtype not in _FLOATS:
        raise TypeError(
            "`acts` (unnormalised activations): expected float32, float64, bfloat16 or float16, "
            f"got {acts.dtype}. Convert it first, for instance with acts.astype('float32')."
        )
    if acts.ndim not in (2, 3):
        raise ValueError(
            "`acts`: expected shape (T, B, V), (B, T, V) with time_major=False, or (T, V) for one "
            f"sequence, got shape {acts.shape}. Use jax.vmap for more batch axes."
        )
    if not isinstance(time_major, bool | np.bool_):
        raise TypeError(f"`time_major`: expected a Python bool, got {time_major!r}.")
    batched = acts.ndim == 3
    time_axis = int(batched and not time_major)
    batch = (acts.shape[1 - time_axis],) if batched else ()
    T, V = acts.shape[time_axis], slices * acts.shape[-1]
    order = "(B, T, V)" if time_axis else "(T, B, V)" if batched else "(T, V)"
    from_acts = f"because `acts` has shape {acts.shape} as {order}"

    labels = _integers("labels", labels)
    if labels.ndim != len(batch) + 1 or labels.shape[:-1] != batch:
        wanted = f"({batch[0]}, L)" if batch else "(L,)"
        raise ValueError(
            f"`labels`: expected shape {wanted} {from_acts}, got shape {labels.shape}."
        )
    lengths = _integers("lengths", lengths)
    if lengths.shape != batch:
        raise ValueError(
            f"`lengths`: expected shape {batch} {from_acts}, got shape {lengths.shape}."
        )
    if label_lengths is not None:
        label_lengths = _integers("label_lengths", label_lengths)
        if label_lengths.shape != batch:
            raise ValueError(
                f"`label_lengths`: expected shape {batch} {from_acts}, got shape "
                f"{label_lengths.shape}."
            )
    try:
        blank = operator.index(blank)
    except TypeError as error:
        raise TypeError(f"`blank`: expected a Python int, got {type(blank).__name__}.") from error
    if not 0 <= blank < V:
        raise ValueError(
            f"`blank`: expected a class in [0, V) with V = {V} {from_acts}, got {blank}."
        )
    for name, size in (("T", T), ("V", V), ("L", labels.shape[-1])):
        if isinstance(size, int) and size > _INT32.max:
            raise ValueError(f"`acts`, `labels`: expected {name} to fit an int32, got {size}.")
    return Given(acts, labels, lengths, label_lengths, time_axis, blank, V)


def _integers(name: str, x: Any) -> Any:
    """A JAX array as it is, anything else as NumPy: jnp.asarray would wrap 64-bit values."""
    if isinstance(x, jax.Array):
        array = x
    else:
        array = np.asarray(x)
        if array.size == 0 and not hasattr(x, "dtype"):  # an empty list has no dtype to speak of
            array = array.astype(np.int32)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"`{name}`: expected integers, got {array.dtype}. Convert it first, for instance with "
            f"{name}.astype('int32')."
        )
    return array


# ---- values ------------------------------------------------------------------------------------


def _nothing_is_staged(*arrays: Any) -> bool:
    """True outside jit, scan and the like, where these arrays' values can be looked at and an
    error can be raised. Eager grad and vmap of something else stage nothing."""
    if any(isinstance(x, Tracer) for x in arrays):
        return False
    return not isinstance(lax.add(np.int32(0), np.int32(0)), Tracer)


def bad_values(given: Given, xp: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Argument, its values, which of them are bad, and in what way. `xp`: numpy or jax.numpy."""
    labels, lengths = (_saturated(x, xp) for x in (given.labels, given.lengths))
    T, V, L = given.T, given.V, given.L
    yield (
        "lengths",
        given.lengths,
        (lengths < 0) | (lengths > T),
        f"is outside [0, {T}]: acts have T = {T} frames",
    )
    real = labels >= 0
    if given.label_lengths is not None:
        label_lengths = _saturated(given.label_lengths, xp)
        yield (
            "label_lengths",
            given.label_lengths,
            (label_lengths < 0) | (label_lengths > L),
            f"is outside [0, {L}]: labels have room for L = {L}",
        )
        position = np.arange(L, dtype=np.int32).reshape((1,) * label_lengths.ndim + (L,))
        real = real & (position < label_lengths[..., None])
    yield "labels", given.labels, real & (labels >= V), f"is not a class of acts with V = {V}"
    yield (
        "labels",
        given.labels,
        real & (labels == given.blank),
        "is the blank, which is no label; padding is negative",
    )


def _raise_on_bad_values(given: Given) -> None:
    concrete = given._replace(
        labels=np.asarray(given.labels),
        lengths=np.asarray(given.lengths),
        label_lengths=None if given.label_lengths is None else np.asarray(given.label_lengths),
    )
    for name, values, bad, what in bad_values(concrete, np):
        if np.any(bad):
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            where = "[" + ", ".join(map(str, place)) + "]" if place else ""
            raise ValueError(f"{name}{where} = {values[place]} {what}")


def _saturated(x: Any, xp: Any) -> Any:
    """As int32; a value that does not fit becomes the nearest that does, which is as bad."""
    info = np.iinfo(x.dtype)
    if info.min < _INT32.min or info.max > _INT32.max:
        low, high = max(info.min, _INT32.min), min(info.max, _INT32.max)
        x = xp.clip(x, xp.asarray(low, x.dtype), xp.asarray(high, x.dtype))
    return x.astype(np.int32)


def _normalised(given: Given) -> Arguments:
    def array(x: Any) -> Array:
        return jnp.asarray(_saturated(x, jnp if isinstance(x, jax.Array) else np))

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

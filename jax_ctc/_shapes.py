# SPDX-License-Identifier: Apache-2.0
"""Checks of the caller's arguments at trace time: shapes that agree, and classes in [0, V).

Every error names the argument, the expected value, the value given, and a remedy.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from . import _arrays, _mesh, _static
from ._arrays import AnyArray, Integers
from ._static import INT32

OF_ACTS = "(T, B, V), (B, T, V) with time_major=False, or (T, V) for one sequence"
_MOST_STEPS = INT32.max - 1024  # kernels count frames and labels in an int32, and a little further


class Given(NamedTuple):
    """The caller's arguments after all checks that need no values.

    Labels and lengths keep the caller's integer dtype, because their values are checked later."""

    acts: Array  # or hidden
    labels: AnyArray
    lengths: AnyArray
    label_lengths: AnyArray | None
    time_axis: int
    blank: int  # in [0, V)
    T: int
    V: int  # classes of all slices
    L: int
    kernel: Array | None
    star: bool  # whether V is a label too

    @property
    def of_frames(self) -> str:
        """What says how many frames there are, as the subject of a sentence."""
        return "acts have" if self.kernel is None else "hidden has"

    @property
    def of_classes(self) -> str:
        return "acts" if self.kernel is None else "kernel"


def checked(
    acts: ArrayLike,
    labels: Integers,
    lengths: Integers | None,
    label_lengths: Integers | None,
    *,
    blank: int,
    time_major: bool,
    slices: int,
    kernel: Array | None,
    star: int | None,
) -> Given:
    """Returns the arguments as arrays whose shapes and dtypes agree. Raises TypeError (dtypes) and
    ValueError (shapes). `acts` hold the classes of one of `slices` equal slices of V. If `kernel`
    (D, V) is given, then it holds them, and `acts` are the hidden states (T, B, D)."""
    name, last = ("acts", "V") if kernel is None else ("hidden", "D")
    acts = _arrays.floats(name, acts, labels)
    if acts.ndim not in (2, 3):
        raise ValueError(
            f"`{name}`: expected shape {OF_ACTS.replace('V', last)}, got shape {acts.shape}. Use "
            "jax.vmap for more batch axes."
        )
    time_major = _static.switch("time_major", time_major)
    batched = acts.ndim == 3
    time_axis = int(batched and not time_major)
    batch_axes = (1 - time_axis,) if batched else ()
    batch = tuple(acts.shape[axis] for axis in batch_axes)
    T, V = acts.shape[time_axis], slices * (acts if kernel is None else kernel).shape[-1]
    order = "(B, T, {})" if time_axis else "(T, B, {})" if batched else "(T, {})"
    from_acts = f"because `{name}` has shape {acts.shape} as {order.format(last)}"
    if batched:
        from_acts += f" with time_major={time_major}"

    def fits(of: str, shape: tuple[int, ...], wanted: tuple[int, ...] | str) -> None:
        if shape != wanted:
            way_out = _other_layout(shape, name, acts.shape, time_axis, last) if batched else ""
            raise ValueError(
                f"`{of}`: expected shape {wanted} {from_acts}, got shape {shape}.{way_out}"
            )

    if kernel is not None and _arrays.are_floats(labels):
        raise TypeError(
            f"`labels`: expected integers (B, L), got {_arrays.as_array(labels).dtype}. The order "
            "is ctc_linear(hidden, kernel, labels, lengths, bias=bias)."
        )
    labels = _arrays.integers("labels", labels)
    if labels.ndim != len(batch) + 1 or labels.shape[:-1] != batch:
        fits("labels", labels.shape, f"({batch[0]}, L)" if batch else "(L,)")
    lengths = _all_frames(T, batch) if lengths is None else _arrays.integers("lengths", lengths)
    fits("lengths", lengths.shape, batch)
    if label_lengths is not None:
        label_lengths = _arrays.integers("label_lengths", label_lengths)
        fits("label_lengths", label_lengths.shape, batch)
    L = labels.shape[-1]
    for letter, size, most in (("T", T, _MOST_STEPS), ("V", V, INT32.max), ("L", L, _MOST_STEPS)):
        if isinstance(size, int) and size > most:
            raise ValueError(
                f"`{name}`, `labels`: expected {letter} to be at most {most}, got {size}."
            )
    if kernel is not None:
        from_acts = f"because `kernel` has shape {kernel.shape} as (D, V)"
    blank = _class_in(V, blank, from_acts)
    has_star = _is_star(V, star, from_acts)

    def sharded(x: AnyArray) -> AnyArray:
        """If the type of acts shards the batch, that of x does it over the same axes."""
        if not isinstance(x, Array) or not any(_mesh.sharded_over(acts, i) for i in batch_axes):
            return x
        return _mesh.sharded_with(x, acts, [*batch_axes, None][: x.ndim])

    labels, lengths = sharded(labels), sharded(lengths)
    if label_lengths is not None:
        label_lengths = sharded(label_lengths)
    return Given(acts, labels, lengths, label_lengths, time_axis, blank, T, V, L, kernel, has_star)


def _other_layout(
    found: tuple[int, ...], name: str, acts: tuple[int, ...], time_axis: int, last: str
) -> str:
    """Returns the way out if labels or lengths have as many rows as acts have frames."""
    if not found or found[0] != acts[time_axis]:
        return ""
    order = f"(T, B, {last})" if time_axis else f"(B, T, {last})"
    return f" If `{name}` is {order}, pass time_major={bool(time_axis)}."


def _all_frames(T: int, batch: tuple[int, ...]) -> AnyArray:
    if all(isinstance(size, int) for size in (T, *batch)):
        return np.full(batch, T, np.int32)
    return jnp.broadcast_to(jnp.asarray(T, jnp.int32), batch)  # symbolic (jax.export)


# ---- classes ---------------------------------------------------------------------------------


def _class_in(V: int, blank: int, from_acts: str) -> int:
    """Returns `blank` as a class in [0, V)."""
    blank = _static.static_int("blank", blank)
    if blank < 0 and not isinstance(V, int):
        raise ValueError(
            f"`blank`: expected a class counted from 0, because V is symbolic ({V}), got {blank}."
        )
    if not (blank < V if blank >= 0 else -V <= blank):
        raise ValueError(
            f"`blank`: expected a class in [-V, V) with V = {V} {from_acts}, got {blank}."
        )
    return blank if blank >= 0 else V + blank


def _is_star(V: int, star: int | None, from_acts: str) -> bool:
    """Says whether there is a star. If so, it is V."""
    if star is None:
        return False
    if not isinstance(V, int):
        raise ValueError(f"`star`: expected None, because V is the symbolic size {V}, {from_acts}.")
    label = _static.static_int("star", star, otherwise="None or ")
    if label != V:
        raise ValueError(
            f"`star`: expected None or V = {V}, one past the classes, {from_acts}, got {star}."
        )
    return True

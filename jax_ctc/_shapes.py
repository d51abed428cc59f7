# SPDX-License-Identifier: Apache-2.0
"""Checks of the caller's arrays at trace time: shapes, dtypes, and classes that depend on them.

Every error names the argument, the expected value, the value given, and a remedy.
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from . import _static
from ._static import INT32

AnyArray = Array | np.ndarray
Integers = ArrayLike | Sequence[int] | Sequence[Sequence[int]]
_FLOATS = (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16)
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
    star: bool = False  # whether V is a label too

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
    slices: int = 1,
    kernel: Array | None = None,
    star: int | None = None,
) -> Given:
    """Returns the arguments as arrays whose shapes and dtypes agree. Raises TypeError (dtypes) and
    ValueError (shapes). `acts` hold the classes of one of `slices` equal slices of V. If `kernel`
    (D, V) is given, then it holds them, and `acts` are the hidden states (T, B, D)."""
    name, last = ("acts", "V") if kernel is None else ("hidden", "D")
    acts = floats(name, acts, labels)
    if acts.ndim not in (2, 3):
        raise ValueError(
            f"`{name}`: expected shape {OF_ACTS.replace('V', last)}, got shape {acts.shape}. Use "
            "jax.vmap for more batch axes."
        )
    time_major = _static.switch("time_major", time_major)
    batched = acts.ndim == 3
    time_axis = int(batched and not time_major)
    batch = (acts.shape[1 - time_axis],) if batched else ()
    T, V = acts.shape[time_axis], slices * (acts if kernel is None else kernel).shape[-1]
    order = "(B, T, {})" if time_axis else "(T, B, {})" if batched else "(T, {})"
    from_acts = f"because `{name}` has shape {acts.shape} as {order.format(last)}"
    if batched:
        from_acts += f" with time_major={time_major}"

    def fits(name: str, shape: tuple[int, ...], wanted: tuple[int, ...] | str) -> None:
        if shape != wanted:
            way_out = _other_layout(shape, acts.shape, time_axis, last) if batched else ""
            raise ValueError(
                f"`{name}`: expected shape {wanted} {from_acts}, got shape {shape}.{way_out}"
            )

    if kernel is not None and are_floats(labels):
        raise TypeError(
            f"`labels`: expected integers (B, L), got {_array(labels).dtype}. The order is "
            "ctc_linear(hidden, kernel, labels, lengths, bias=bias)."
        )
    labels = integers("labels", labels)
    if labels.ndim != len(batch) + 1 or labels.shape[:-1] != batch:
        fits("labels", labels.shape, f"({batch[0]}, L)" if batch else "(L,)")
    lengths = _all_frames(T, batch) if lengths is None else integers("lengths", lengths)
    fits("lengths", lengths.shape, batch)
    if label_lengths is not None:
        label_lengths = integers("label_lengths", label_lengths)
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
    return Given(acts, labels, lengths, label_lengths, time_axis, blank, T, V, L, kernel, has_star)


def _other_layout(found: tuple[int, ...], acts: tuple[int, ...], time_axis: int, last: str) -> str:
    """Returns the way out if labels or lengths have as many rows as acts have frames."""
    if not found or found[0] != acts[time_axis]:
        return ""
    order, time_major = ("(T, B, {})", True) if time_axis else ("(B, T, {})", False)
    return f" If it is {order.format(last)}, pass time_major={time_major}."


# ---- arrays ------------------------------------------------------------------------------------


_FLOATING = {  # arguments of floats: what they are, and their shape
    "acts": ("unnormalised activations", "(T, B, V)"),
    "hidden": ("hidden states", "(T, B, D)"),
    "kernel": ("weights of the output layer", "(D, V)"),
    "bias": ("bias of the output layer", "(V,)"),
}


_OF_A_LAYER = (
    "Give the arrays of a layer: of flax.nnx layer.kernel[...] and bias=layer.bias[...], of Linen "
    'params["kernel"] and params["bias"], of equinox layer.weight.T and layer.bias.'
)


def floats(name: str, x: ArrayLike, labels: Integers | None = None) -> Array:
    """Returns x as a JAX array of floats. `labels` are looked at if x is not one, because the two
    may be swapped."""
    what, shape = _FLOATING[name]
    if not isinstance(x, jax.Array):  # jnp.asarray would copy a tracer
        try:
            x = jnp.asarray(x)
        except (TypeError, ValueError) as error:
            way_out = _OF_A_LAYER if name == "kernel" else str(error)
            raise type(error)(
                f"`{name}`: expected an array of floats {shape}, got {_static.kind(x)}. {way_out}"
            ) from error
    if x.dtype in _FLOATS:
        return x
    way_out = f"Convert it first, for instance with {name}.astype('float32')."
    if labels is not None and jnp.issubdtype(x.dtype, jnp.integer) and are_floats(labels):
        order = "ctc(acts, " if name == "acts" else "ctc_linear(hidden, kernel, "
        way_out = f"`labels` holds floats: are the two swapped? The order is {order}labels, ...)."
    raise TypeError(
        f"`{name}` ({what}): expected float32, float64, bfloat16 or float16, got {x.dtype}. "
        f"{way_out}"
    )


def are_floats(x: Integers) -> bool:
    try:
        return jnp.issubdtype(_array(x).dtype, jnp.floating)
    except (TypeError, ValueError):
        return False


def integers(name: str, x: Integers) -> AnyArray:
    """Returns an array of integers. It is a JAX array if x is one or if only JAX can convert x, and
    NumPy otherwise, because JAX without x64 would not keep 64-bit values."""
    try:
        array = _array(x)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}`: expected one array of integers, got {_static.kind(x)} that makes none. "
            f"{_ADVICE[name]['objects']}"
        ) from error
    if np.ma.is_masked(x):
        raise TypeError(
            f"`{name}`: expected an array without a mask, because JAX has none, got a masked one. "
            "Give its padding as negative numbers: x.filled(-1)."
        )
    if array.size == 0 and not hasattr(x, "dtype"):  # an empty list: its dtype says nothing
        array = array.astype(np.int32)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array
    advice, came = _ADVICE[name], str(array.dtype)
    if array.dtype == bool:
        way_out = advice["mask"]
    elif jnp.issubdtype(array.dtype, np.character):
        came, way_out = f"strings ({came})", advice["strings"]
    elif array.dtype == object:
        came, way_out = _objects(x, np.asarray(array)), advice["objects"]
    elif name == "labels" and array.ndim == 3:
        way_out = "Give classes: of one-hot labels labels.argmax(-1)."
    else:
        way_out = advice["floats"]
    raise TypeError(f"`{name}`: expected integers, got {came}. {way_out}")


def _objects(x: Integers, array: np.ndarray) -> str:
    """Returns what x is, and what it holds that is no integer."""
    others = (y for y in array.flat if not isinstance(y, int | np.integer))
    other = next(others, None)
    if array.ndim == 0:
        return _static.kind(x)
    return f"{_static.kind(x)} that holds {'None' if other is None else _static.kind(other)}"


_CONVERT = "Convert it first, for instance with {}.astype('int32')."
_COUNT = {
    "objects": "Give one integer for each sequence.",
    "strings": "Give one integer for each sequence.",
    "mask": "Count what a mask marks: mask.sum(-1) of (B, L).",
}
_ADVICE = {
    "labels": {
        "objects": "Give one array (B, L), its rows padded with -1 to one length.",
        "strings": "Give each character its class first, for instance alphabet.index(character).",
        "mask": "Where a mask marks the labels in use, jnp.where(mask, labels, -1) pads the rest.",
        "floats": _CONVERT.format("labels"),
    },
    "decoded": {
        "objects": "Give one array (B, N), its rows padded with -1 to one length.",
        "strings": "Give each character its class first, for instance alphabet.index(character).",
        "mask": "Where a mask marks the labels in use, jnp.where(mask, labels, -1) pads the rest.",
        "floats": _CONVERT.format("decoded"),
    },
    "decoded_lengths": _COUNT | {"floats": _CONVERT.format("decoded_lengths")},
    "lengths": _COUNT
    | {
        "mask": "Count what a mask marks: mask.sum(-1) of (B, T), mask.sum(0) of (T, B).",
        "floats": "It counts frames. Convert counts by lengths.astype('int32'), ratios of T by "
        "jnp.round(ratio * T).astype(int).",
    },
    "label_lengths": _COUNT
    | {
        "floats": "It counts labels. Convert counts by label_lengths.astype('int32'), ratios of L "
        "by jnp.round(ratio * L).astype(int).",
    },
}


def _array(x: Integers) -> AnyArray:
    if isinstance(x, jax.Array):
        return x
    convert = getattr(x, "__jax_array__", None)  # of nnx.Variable and the like
    if convert is not None:
        return _array(convert())
    try:
        array = np.asarray(x)
    except jax.errors.TracerArrayConversionError:  # x is a list that contains tracers
        return jnp.asarray(x)
    if array.dtype == object and any(hasattr(y, "__jax_array__") for y in jax.tree.leaves(x)):
        return jnp.asarray(x)
    return array


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
    _static.known("star", star, "None or a Python int")
    try:
        label = operator.index(star)
    except TypeError as error:
        raise TypeError(
            f"`star`: expected None or a Python int, got {_static.kind(star)}."
        ) from error
    if label != V or isinstance(star, bool):
        raise ValueError(
            f"`star`: expected None or V = {V}, one past the classes, {from_acts}, got {star}."
        )
    return True

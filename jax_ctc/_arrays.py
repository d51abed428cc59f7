# SPDX-License-Identifier: Apache-2.0
"""The caller's arrays at trace time: floats and integers, of every kind that NumPy and JAX take.

Every error names the argument, the expected value, the value given, and a remedy.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from . import _static

AnyArray = Array | np.ndarray
Integers = ArrayLike | Sequence[int] | Sequence[Sequence[int]]
_FLOATS = (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16)
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
    convert = f"Convert it first, for instance with {name}.astype('float32')."
    if not isinstance(x, jax.Array):  # jnp.asarray would copy a tracer
        try:
            x = jnp.asarray(x)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of PyTorch
            dtype = getattr(x, "dtype", None)
            came = f"{_static.kind(x)} of {dtype}" if dtype is not None else _static.kind(x)
            way_out = convert if isinstance(x, np.ndarray) else str(error)
            if isinstance(x, np.ma.MaskedArray):
                way_out = "JAX has no masks. Give its data: x.filled(0)."
            raise (ValueError if isinstance(error, ValueError) else TypeError)(
                f"`{name}`: expected an array of floats {shape}, got {came}. "
                f"{_OF_A_LAYER if name == 'kernel' else way_out}"
            ) from error
    if x.dtype in _FLOATS:
        return x
    way_out = convert
    if labels is not None and jnp.issubdtype(x.dtype, jnp.integer) and are_floats(labels):
        order = "ctc(acts, " if name == "acts" else "ctc_linear(hidden, kernel, "
        way_out = f"`labels` holds floats: are the two swapped? The order is {order}labels, ...)."
    raise TypeError(
        f"`{name}` ({what}): expected float32, float64, bfloat16 or float16, got {x.dtype}. "
        f"{way_out}"
    )


def are_floats(x: Integers) -> bool:
    try:
        return jnp.issubdtype(as_array(x).dtype, jnp.floating)
    except (TypeError, ValueError):
        return False


def integers(name: str, x: Integers) -> AnyArray:
    """Returns an array of integers. It is a JAX array if x is one or if only JAX can convert x, and
    NumPy otherwise, because JAX without x64 would not keep 64-bit values."""
    try:
        array = as_array(x)
    except (TypeError, ValueError) as error:
        decoded = name == "labels" and isinstance(x, tuple) and hasattr(x, "labels")
        way_out = "Give its labels: x.labels." if decoded else _ADVICE[name]["objects"]
        raise ValueError(
            f"`{name}`: expected one array of integers, got {_static.kind(x)} that makes none. "
            f"{way_out}"
        ) from error
    if np.ma.is_masked(x):
        raise TypeError(
            f"`{name}`: expected an array without a mask, because JAX has none, got a masked one. "
            "Give its padding as negative numbers: x.filled(-1)."
        )
    if array.dtype == object and all(map(_is_integer, np.asarray(array).flat)):
        return _of_python(name, np.asarray(array))
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


def _is_integer(y: object) -> bool:
    return isinstance(y, int | np.integer) and not isinstance(y, bool)


def _of_python(name: str, array: np.ndarray) -> np.ndarray:
    """Returns Python's integers, which have any number of bits, as an array of 64."""
    try:
        return array.astype(np.int64)
    except OverflowError as error:
        largest = max(array.flat, key=abs)
        raise TypeError(f"`{name}`: expected integers that fit 64 bits, got {largest}.") from error


def _objects(x: Integers, array: np.ndarray) -> str:
    """Returns what x is, and what it holds that is no integer."""
    if array.ndim == 0:
        return _static.kind(x)
    other = next(y for y in array.flat if not _is_integer(y))
    return f"{_static.kind(x)} that holds {'None' if other is None else _static.kind(other)}"


_CONVERT = "Convert it first, for instance with {}.astype('int32')."
_COUNT = {
    "objects": "Give one integer for each sequence.",
    "strings": "Give one integer for each sequence.",
    "mask": "Count what a mask marks: mask.sum(-1) of (B, L).",
}
_LABELS = {
    "strings": "Give each character its class first, for instance alphabet.index(character).",
    "mask": "Where a mask marks the labels in use, jnp.where(mask, labels, -1) pads the rest.",
}
_ADVICE = {
    "labels": _LABELS
    | {
        "objects": "Give one array (B, L), its rows padded with -1 to one length.",
        "floats": _CONVERT.format("labels"),
    },
    "decoded": _LABELS
    | {
        "objects": "Give one array (B, N), its rows padded with -1 to one length.",
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


def as_array(x: Integers) -> AnyArray:
    if isinstance(x, jax.Array):
        return x
    convert = getattr(x, "__jax_array__", None)  # of nnx.Variable and the like
    if convert is not None:
        return as_array(convert())
    try:
        array = np.asarray(x)
    except jax.errors.TracerArrayConversionError:  # x is a list that contains tracers
        return jnp.asarray(x)
    if array.dtype == object and any(hasattr(y, "__jax_array__") for y in jax.tree.leaves(x)):
        return jnp.asarray(x)
    return array

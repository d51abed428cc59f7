# SPDX-License-Identifier: Apache-2.0
"""Which labels and lengths are invalid, and an error if their values are known."""

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from . import _arrays
from ._arrays import AnyArray, Integers
from ._shapes import Given
from ._static import INT32


class Verdict(NamedTuple):
    name: str  # of the argument
    values: AnyArray
    bad: AnyArray  # bools of the same shape: which values are invalid
    what: str  # is wrong with them: the end of a sentence


def verdicts(
    given: Given,
    labels: AnyArray | None,
    lengths: AnyArray | None,
    label_lengths: AnyArray | None,
    xp: ModuleType,
) -> Iterator[Verdict]:
    """Yields verdicts on those of these arguments that are not None. `xp` is numpy or jax.numpy."""
    T, V, L = given.T, given.V, given.L
    if lengths is not None:
        x = xp.asarray(saturated(lengths))
        what = f"is outside [0, {T}]: {given.of_frames} T = {T} frames"
        what += ". If the model downsamples, divide lengths too."
        yield Verdict("lengths", lengths, (x < 0) | (x > T), what)
    count = None
    if label_lengths is not None:
        count = xp.asarray(saturated(label_lengths))
        what = f"is outside [0, {L}]: a row of labels has room for L = {L}"
        yield Verdict("label_lengths", label_lengths, (count < 0) | (count > L), what)
    if labels is not None:
        x = xp.asarray(saturated(labels))
        real = x >= 0
        if count is not None:
            position = np.arange(L, dtype=np.int32).reshape((1,) * count.ndim + (L,))
            real = real & (position < count[..., None])
        what = f"is not a class of {given.of_classes} with V = {V}" + ", nor the star" * given.star
        if jnp.issubdtype(labels.dtype, jnp.unsignedinteger):
            convert = "convert labels with astype('int32') before they are padded."
            what += f". {labels.dtype} has no -1 for padding: {convert}"
        yield Verdict("labels", labels, real & (x >= V + given.star), what)
        what = (
            "is the blank, which is no label. Padding is negative: "
            f"jnp.where(labels == {given.blank}, -1, labels.astype(int)), or give label_lengths. "
            "If it is a label, another class must be the blank."
        )
        yield Verdict("labels", labels, real & (x == given.blank), what)


def raise_on_known(given: Given) -> bool:
    """Raises ValueError for the first known value that is invalid. Returns True if all values are
    known."""
    if not all(isinstance(size, int) for size in (given.T, given.V)):  # symbolic (jax.export)
        return False
    labels, lengths, label_lengths = map(_known, (given.labels, given.lengths, given.label_lengths))
    if given.label_lengths is not None and label_lengths is None:
        labels = None  # it is not known which entries are padding
    for verdict in verdicts(given, labels, lengths, label_lengths, np):
        if np.any(verdict.bad):
            place = tuple(int(i) for i in np.argwhere(verdict.bad)[0])
            raise ValueError(message(verdict.name, place, verdict.values[place], verdict.what))
    return labels is not None and lengths is not None


def _known(x: AnyArray | None) -> np.ndarray | None:
    """Returns the values of x as NumPy, or None if they are not known.

    A jitted function that closes over an array knows its values. This function waits for a JAX
    array that is still being computed: otherwise the error would depend on timing. It does not read
    an array that other processes hold a part of. Each process would see other rows, one would raise
    alone, and the others would wait for it in their next collective.
    """
    if x is None or isinstance(x, Tracer):
        return None
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return None
    return np.asarray(x)


def message(name: str, place: Sequence[object], value: object, what: str) -> str:
    where = "[" + ", ".join(map(str, place)) + "]" if place else ""
    return f"{name}{where} = {value} {what}"


def int32s(name: str, x: Integers) -> Array:
    """Returns the caller's integers as a JAX array of int32 (`saturated`)."""
    return jnp.asarray(saturated(_arrays.integers(name, x)))


def saturated(x: AnyArray) -> AnyArray:
    """Returns x as int32. A value that does not fit becomes the nearest that does, which is invalid
    too. NumPy stays NumPy, because JAX without x64 would wrap 64-bit values."""
    info = jnp.iinfo(x.dtype)
    if info.max > INT32.max:
        xp = jnp if isinstance(x, jax.Array) else np
        low, high = max(info.min, INT32.min), min(info.max, INT32.max)
        x = xp.clip(x, xp.asarray(low, x.dtype), xp.asarray(high, x.dtype))
    return x.astype(np.int32)

# SPDX-License-Identifier: Apache-2.0
"""The operands of the primitives, from the arguments of the caller.

`Arguments` has int32 labels and lengths. An invalid sequence is encoded in the values themselves:
a label out of range is kept, and a bad label length sets the sequence's length to -1. The kernels
turn either into a cost of NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _arrays, _mesh, _shapes, _values
from ._arrays import Integers


class Arguments(NamedTuple):
    acts: Array  # (..., T, ..., V), or hidden (..., T, ..., D)
    labels: Array  # (..., L) int32; padding is negative
    lengths: Array  # (...) int32; -1 for a sequence with a bad label length
    time_axis: int
    blank: int  # in [0, V)
    V: int  # classes of all slices


def prepare(
    acts: ArrayLike,
    labels: Integers,
    lengths: Integers | None,
    label_lengths: Integers | None,
    *,
    blank: int,
    time_major: bool,
    slices: int | None = None,
    kernel: Array | None = None,
    star: int | None = None,
) -> Arguments:
    """Checks the arguments of a public function and makes them operands. Raises TypeError (dtypes)
    and ValueError (shapes, and values if they are known). If `slices` is given, `acts` hold one of
    that many slices of V, and all other arguments are the same on every device. If `kernel` is
    given, then it holds the classes, and `acts` are hidden states. If `star` is given, it is a
    label too."""
    given = _shapes.checked(
        acts,
        labels,
        lengths,
        label_lengths,
        blank=blank,
        time_major=time_major,
        slices=slices or 1,
        kernel=kernel,
        star=star,
    )
    _values.raise_on_known(given)
    arguments = _normalised(given)
    if slices is not None:
        return arguments
    alike = _mesh.vary_alike(arguments.acts, arguments.labels, arguments.lengths)
    return arguments._replace(acts=alike[0], labels=alike[1], lengths=alike[2])


def _normalised(given: _shapes.Given) -> Arguments:
    def array(x: _arrays.AnyArray) -> Array:
        return jnp.asarray(_values.saturated(x))

    acts, labels, lengths = given.acts, array(given.labels), array(given.lengths)
    if given.label_lengths is not None:
        count = array(given.label_lengths)
        inside = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1) < count[..., None]
        labels = jnp.where(inside, labels, -1)
        lengths = jnp.where((count < 0) | (count > given.L), -1, lengths)
    return Arguments(acts, labels, lengths, given.time_axis, given.blank, given.V)

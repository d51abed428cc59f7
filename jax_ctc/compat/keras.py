# SPDX-License-Identifier: Apache-2.0
"""CTC with the name and signature of Keras: `keras.ops.ctc_loss`, on JAX arrays.

Like Keras, it takes targets and lengths that are floats, and cuts them to integers. It differs from
Keras in six ways. A target that is no class is an error (under `jit` a cost of NaN), and a negative
one is padding; Keras computes a cost as if their probability were 1. A target equal to `mask_index`
is padding wherever it stands, not only after its length. A sequence without an alignment costs +inf
and has a gradient of 0; in Keras on JAX it costs about 1e5. Frames after the length have no
influence, even if they are NaN. A length above T, or above S, is an error (under `jit` a cost of
NaN); Keras takes T, or S.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .. import _arrays, _loss, _static, _values
from .._arrays import Integers
from ._names import names

_CALL = "ctc_loss(target, output, ...)"
_THEIRS = {
    "acts": "output",
    "labels": "target",
    "lengths": "output_length",
    "label_lengths": "target_length",
    "blank": "mask_index",
    "L": "S",
}


def ctc_loss(
    target: Integers,
    output: ArrayLike,
    target_length: Integers,
    output_length: Integers,
    mask_index: int = 0,
) -> Array:
    """Returns the costs of a batch, in nats.

    Args:
      target: (B, S) classes; `mask_index` is padding.
      output: (B, T, C) unnormalised.
      target_length: (B,) targets in use.
      output_length: (B,) frames in use.
      mask_index: the class of the blank.

    Returns:
      (B,) costs. `jax_ctc.ctc` says which inputs raise, and which costs are NaN or inf.
    """
    with names(_CALL, "(B, T, C)", **_THEIRS):
        output = _arrays.floats("acts", output, target)
        target, frames, counts = map(_whole, (target, output_length, target_length))
        labels = _values.int32s("labels", target)
        blank = _static.static_int("blank", mask_index)
        if abs(blank) <= _static.INT32.max:  # else `ctc` says what is wrong
            padding = blank if blank >= 0 else blank + output.shape[-1]
            labels = jnp.where(labels == padding, -1, labels)
        return _loss.ctc(output, labels, frames, counts, blank=blank, time_major=False)


def _whole(x: Integers) -> Integers:
    """Keras casts targets to floats before a loss of the user's own has them, and back in
    `keras.ops.ctc_loss`. What no int32 holds, and NaN, becomes a number that is no class."""
    if not _arrays.are_floats(x):
        return x
    x = _arrays.as_array(x)
    xp = jnp if isinstance(x, jax.Array) else np
    x = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
    no_class = xp.asarray(2**31 - 128, x.dtype)  # a float32 has no larger int32
    return xp.where(x <= no_class, xp.maximum(x, -no_class), no_class).astype(np.int32)

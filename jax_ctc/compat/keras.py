# SPDX-License-Identifier: Apache-2.0
"""CTC with the name and signature of Keras: `keras.ops.ctc_loss`, on JAX arrays.

It differs from Keras in three ways. A target equal to `mask_index` is padding wherever it stands,
not only after its length. A sequence without an alignment costs +inf and has a gradient of 0; in
Keras on JAX it costs about 1e5. Frames after the length have no influence, even if they are NaN.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from .. import _loss, _shapes, _values
from ._names import names

_THEIRS = {
    "acts": "output",
    "labels": "target",
    "lengths": "output_length",
    "label_lengths": "target_length",
    "blank": "mask_index",
}


def ctc_loss(
    target: ArrayLike,
    output: ArrayLike,
    target_length: ArrayLike,
    output_length: ArrayLike,
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
    with names(**_THEIRS):
        output = _shapes.floats("acts", output, target)
        labels = jnp.asarray(_values.saturated(_shapes.integers("labels", target)))
        blank = _shapes.static_int("blank", mask_index)
        if abs(blank) <= _shapes.INT32.max:  # else `ctc` says what is wrong
            labels = jnp.where(labels == blank, -1, labels)
        return _loss.ctc(
            output, labels, output_length, target_length, blank=blank, time_major=False
        )

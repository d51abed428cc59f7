# SPDX-License-Identifier: Apache-2.0
"""Errors for invalid labels and lengths inside jit, by checkify."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from . import _arrays, _linear, _shapes, _split_classes, _values, _verdict
from ._arrays import Integers


def check(
    acts: ArrayLike,
    labels: Integers,
    lengths: Integers | None,
    label_lengths: Integers | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
    vocab_axis: str | tuple[str, ...] | None = None,
    kernel: ArrayLike | None = None,
    star: int | None = None,
) -> None:
    """Checks labels and lengths inside `jax.jit`, for `jax.experimental.checkify`.

    Under `jit` an invalid value cannot raise, so `ctc` makes the cost of its sequence NaN. This
    function reports the same values as errors of `checkify`. An error names the argument, the index
    and the value. The arguments are those of `ctc`. For `ctc_linear` give the hidden states in the
    place of `acts`, and `kernel`; for `ctc_align` with a star, `star`. Wrong shapes and dtypes
    raise as they do there, and so do invalid values that are known.

    Under `vmap` the index in the error counts all mapped axes, outermost first. Inside `shard_map`
    it is the index within the shard of the device. `scan` and `lax.map` run one step at a time, so
    there it is the index within a step. To have the sequence named, check all steps before the
    loop, or under `vmap`.

    Example:
      >>> def loss(acts, labels, lengths):
      ...     jax_ctc.check(acts, labels, lengths)
      ...     return jax_ctc.ctc(acts, labels, lengths).mean()
      >>> error, value = jax.jit(checkify.checkify(loss))(acts, labels, lengths)
      >>> error.throw()  # JaxRuntimeError: labels[1, 3] = 0 is the blank, ...
    """
    if kernel is None:
        acts = _arrays.floats("acts", acts, labels)
        names = _split_classes.axes_of(acts, vocab_axis)
    else:
        acts = _arrays.floats("hidden", acts, labels)
        kernel = _arrays.floats("kernel", kernel, labels)
        _linear.check_layer(acts, kernel, None)
        names = _split_classes.axes_of(kernel, vocab_axis, "kernel")
    given = _shapes.checked(
        acts,
        labels,
        lengths,
        label_lengths,
        blank=blank,
        time_major=time_major,
        slices=_split_classes.local_slices(names) or 1,
        kernel=kernel,
        star=star,
    )
    if _values.raise_on_known(given):
        return
    for verdict in _values.verdicts(given, given.labels, given.lengths, given.label_lengths, jnp):
        _verdict.expect_none(verdict)

# SPDX-License-Identifier: Apache-2.0
"""Bad labels and lengths as errors, where nothing can be raised."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _vocabulary


def check(
    acts: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike,
    label_lengths: ArrayLike | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
    vocab_axis: str | tuple[str, ...] | None = None,
) -> None:
    """Checks labels and lengths from inside `jax.jit`, for `jax.experimental.checkify`.

    Under `jit` a bad value cannot raise: `ctc` makes the cost of its sequence NaN. This function
    gives the same verdict as an error of `checkify`, which names the argument, where and the value.
    Arguments as in `ctc`; shapes and dtypes raise as they do there.
    """
    from jax.experimental import checkify

    acts = acts if isinstance(acts, Array) else jnp.asarray(acts)
    slices = _vocabulary.slices_at_hand(_vocabulary.axes_of(acts, vocab_axis))
    given = _arguments.shapes_checked(
        acts, labels, lengths, label_lengths, blank, time_major, slices or 1
    )
    for name, values, bad, what in _arguments.bad_values(given, jnp):
        bad = jnp.asarray(bad)
        if bad.size == 0:
            continue
        place = jnp.unravel_index(jnp.argmax(bad.reshape(-1)), bad.shape) if bad.ndim else ()
        index: dict[str, Any] = {f"i{k}": i for k, i in enumerate(place)}
        where = "[" + ", ".join(f"{{{k}}}" for k in index) + "]" if index else ""
        checkify.check(
            ~bad.any(),
            f"{name}{where} = {{value}} {what}",
            value=jnp.asarray(values)[place],
            **index,
        )

# SPDX-License-Identifier: Apache-2.0
"""The loss of an output layer, whose logits are never stored."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from . import _arguments, _arrays, _mesh, _split_classes, _static
from ._arrays import Integers
from ._loss import with_zeros
from ._primitives import few_classes, linear_sums
from ._primitives.tile_function import widest_cost_dtype


def ctc_linear(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: Integers,
    lengths: Integers | None,
    label_lengths: Integers | None = None,
    *,
    bias: ArrayLike | None = None,
    blank: int = 0,
    time_major: bool = True,
    zero_infinity: bool = False,
    num_threads: int | None = None,
    vocab_axis: str | tuple[str, ...] | None = None,
    tile_bytes: int | None = None,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Returns ``ctc(hidden @ kernel + bias, ...)`` without storing the logits.

    The logits (T, B, V) of an output layer are the largest array of a CTC model, and their gradient
    is as large. This function makes a tile of them at a time, and makes it again for the
    derivatives. So memory does not grow with V beyond `kernel` and its gradient. Frames at and
    after the length of their sequence are not multiplied, except in a program that a partitioner
    splits (docs/output_layer.md). A cost may differ by rounding (1e-7 of it) from that of the
    sequence alone, because a product of matrices is not rounded alike in every batch.

    Use it where V is large: word pieces, characters of Chinese or Japanese, CTC at several layers.
    For a small V, where the logits are small too, `ctc` is faster.

    Args:
      hidden: (T, B, D) output of the last hidden layer. (B, T, D) with ``time_major=False``, (T, D)
        for one sequence. float32, float64, bfloat16 or float16.
      kernel: (D, V) weights of the output layer, as `kernel` of ``flax.nnx.Linear`` has them;
        Equinox and PyTorch have the transposed array.
      labels, lengths, label_lengths, blank, time_major, zero_infinity, num_threads: as in `ctc`.
      bias: (V,), optional. A class with a bias of -inf has probability 0.
      vocab_axis: the mesh axis (or axes) over which V is sharded, as in `ctc`. Inside
        ``shard_map``, `kernel` is the slice (D, V / M) of this device, `bias` the slice (V / M,),
        and all other arguments are replicated over the axis.
      tile_bytes: the size of a tile of logits. None means 4 MiB on a CPU and 32 MiB elsewhere. One
        tile exists at a time in the forward pass, two in the backward pass. Results depend on the
        size by rounding.
      precision: of the products, as in `jax.numpy.matmul`. JAX's default on an NVIDIA GPU is TF32:
        costs and gradients of float32 then have errors near 1e-4, relative to the largest entry.
        With ``precision="highest"`` they have those of `ctc`.

    Returns:
      (B,) or () costs in nats, never below 0. float64 if one of hidden, kernel and bias is, else
      float32.

    Raises: as `ctc`; also ValueError if hidden, kernel and bias disagree on D or V, and TypeError
    if D is sharded in explicit mode.

    Products are summed in float32, or in float64 for float64. Their factors are bfloat16 if both
    hidden and kernel are, and float32 (float64) otherwise. Logits and sums are not rounded to a
    half. Gradients of bfloat16 and float16 arguments are rounded once. If hidden and kernel are
    both bfloat16, the gradient of each logit is rounded too, before it is multiplied.

    The edges are those of `ctc`. A NaN in `hidden` reaches the cost of its own sequence alone.
    Frames at and after the length have no influence and a gradient of exactly 0, whatever they
    hold. Every transformation of JAX applies. Under `vmap` over labels alone, a tile is made once
    for all label sequences.

    Example:
      >>> hidden, kernel = jnp.zeros((4, 1, 8)), jnp.zeros((8, 3))
      >>> jax_ctc.ctc_linear(hidden, kernel, jnp.array([[1, 2]]), jnp.array([4]))
      Array([1.686399], dtype=float32)
    """
    threads = _static.threads_of(num_threads)
    zero_infinity = _static.switch("zero_infinity", zero_infinity)
    if tile_bytes is not None:
        tile_bytes = _static.at_least_one("tile_bytes", tile_bytes, "None or ", sys.maxsize)
    precision = _precision(precision)
    hidden = _arrays.floats("hidden", hidden, labels)
    kernel = _arrays.floats("kernel", kernel, labels)
    bias = None if bias is None else _arrays.floats("bias", bias)
    check_layer(hidden, kernel, bias)
    if bias is None and label_lengths is not None and _arrays.are_floats(label_lengths):
        shape = _arrays.as_array(label_lengths).shape
        # That of a bias. Other floats are counts or ratios, and are told how to become integers.
        if shape == kernel.shape[1:] != hidden.shape[-2:-1]:
            raise TypeError(
                "`label_lengths`: expected integers, got floats. A bias is given by name: "
                "bias=bias."
            )
    vocab_axes = _split_classes.axes_of(kernel, vocab_axis, "kernel")
    a = _arguments.prepare(
        hidden,
        labels,
        lengths,
        label_lengths,
        blank=blank,
        time_major=time_major,
        slices=_split_classes.local_slices(vocab_axes),
        kernel=kernel,
    )
    if bias is None:
        bias = jnp.zeros(kernel.shape[1:], widest_cost_dtype((hidden, kernel)))
    return _cost(
        a.acts,
        kernel,
        bias,
        a.labels,
        a.lengths,
        time_axis=a.time_axis,
        blank=a.blank,
        V=a.V,
        threads=threads,
        names=vocab_axes,
        zero_infinity=zero_infinity,
        tile_bytes=tile_bytes,
        precision=precision,
    )


@functools.partial(
    jax.jit,
    inline=True,
    static_argnames=(
        "time_axis", "blank", "V", "threads", "names", "zero_infinity", "tile_bytes", "precision",
    ),
)  # fmt: skip
def _cost(
    hidden: Array,
    kernel: Array,
    bias: Array,
    labels: Array,
    lengths: Array,
    *,
    time_axis: int,
    blank: int,
    V: int,
    threads: int,
    names: tuple[str, ...],
    zero_infinity: bool,
    tile_bytes: int | None,
    precision: lax.PrecisionLike,
) -> Array:
    product = _product_dtype(hidden, kernel)
    layer = linear_sums.Layer(product.name, precision, threads)

    def sums(arrays: tuple[Array, ...], symbols: Array, lengths: Array) -> few_classes.Sums:
        return linear_sums.sums_of(layer, arrays, symbols, lengths, time_axis, tile_bytes)

    arrays = (hidden, kernel, bias[None])
    source = _split_classes.Source(arrays, (False, True, True), "kernel", sums)
    a = _arguments.Arguments(hidden, labels, lengths, time_axis, blank, V)
    return with_zeros(_split_classes.cost(a, source, names, threads), zero_infinity)


def _product_dtype(hidden: Array, kernel: Array) -> np.dtype:
    """Returns the dtype of the factors of products. float16 is none, because the gradient of a
    logit may be too small for it."""
    if hidden.dtype == kernel.dtype == jnp.bfloat16:
        return np.dtype(jnp.bfloat16)
    return widest_cost_dtype((hidden, kernel))


def check_layer(hidden: Array, kernel: Array, bias: Array | None) -> None:
    """Raises ValueError if hidden, kernel and bias do not fit each other, TypeError if a type
    shards D."""
    if kernel.ndim != 2:
        raise ValueError(
            f"`kernel`: expected shape (D, V), got shape {kernel.shape}. Use jax.vmap for many."
        )
    D, V = kernel.shape
    if hidden.ndim and hidden.shape[-1] != D:
        hint = ""
        if hidden.shape[-1] == V:
            hint = " Is it (V, D)? Give kernel.T (the `weight` of Equinox and PyTorch is (V, D))."
        raise ValueError(
            f"`kernel`: expected shape ({hidden.shape[-1]}, V) because `hidden` has shape "
            f"{hidden.shape} with D = {hidden.shape[-1]} last, got shape {kernel.shape}.{hint}"
        )
    if bias is not None and bias.shape != (V,):
        raise ValueError(
            f"`bias`: expected shape ({V},) because `kernel` has shape {kernel.shape} as (D, V), "
            f"got shape {bias.shape}."
        )
    for name, x, axis in (("hidden", hidden, hidden.ndim - 1), ("kernel", kernel, 0)):
        axes = _mesh.sharded_over(x, axis) if x.ndim else ()
        if axes:
            raise TypeError(
                f"`{name}`: expected its axis {axis} (D) replicated, but its type has it sharded "
                f"over {', '.join(map(repr, axes))}: {jax.typeof(x)}. Shard the batch or V, or "
                "reshard it first (jax.sharding.reshard)."
            )


def _precision(precision: lax.PrecisionLike) -> lax.PrecisionLike:
    """Returns the precision that jnp.matmul would have here: JAX's setting where it is None. The
    products are lowered later, maybe under another setting. Raises what JAX says of a precision
    that it does not know."""
    if precision is None:
        return getattr(jax.config, "jax_default_matmul_precision", None)
    x = jax.ShapeDtypeStruct((1, 1), np.float32)
    try:
        jax.eval_shape(lambda x: jnp.matmul(x, x, precision=precision), x)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`precision`: {error}") from error
    return precision

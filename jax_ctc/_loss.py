# SPDX-License-Identifier: Apache-2.0
"""The loss, as users call it."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _primitives, _shapes, _split_classes


def ctc(
    acts: ArrayLike,
    labels: ArrayLike,
    lengths: ArrayLike | None,
    label_lengths: ArrayLike | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
    zero_infinity: bool = False,
    num_threads: int | None = None,
    vocab_axis: str | tuple[str, ...] | None = None,
) -> Array:
    """Negative log-probability of each label sequence, summed over all its alignments.

    Padding in `labels` is negative. A label equal to `blank`, which is 0 unless given, is an error,
    so padding with 0 is one: ``labels = jnp.where(padding, -1, labels)``. Under ``jit`` it cannot
    raise: the cost of that sequence is NaN and its gradient 0, and the others train on. Then
    ``jax.config.update("jax_debug_nans", True)`` or `jax_ctc.check` names the label.

    Time comes first, (T, B, V). The layout of optax and Flax, (B, T, V), is ``time_major=False``;
    where B == T nothing can notice a mistake.

    Args:
      acts: (T, B, V) unnormalised activations (logits); the softmax over V is taken inside.
        (B, T, V) with ``time_major=False``, (T, V) for one sequence. float32, float64, bfloat16 or
        float16.
      labels: (B, L) classes, or (L,); any integer dtype. Negative entries are padding and are
        ignored wherever they stand in the row.
      lengths: (B,) or () frames in use, 0 to T; any integer dtype; None for all T. Later frames are
        never read.
      label_lengths: (B,) or (), optional: entries of `labels` at and after it are padding too,
        whatever they hold.
      blank: the class that emits nothing, in [-V, V): -1 is the last class.
      time_major: whether T comes before B. Neither order is copied or transposed.
      zero_infinity: a sequence that has no alignment costs 0 instead of +inf.
      num_threads: at most this many threads for a CPU kernel; None for all that JAX has. The result
        is the same to the last bit.
      vocab_axis: the mesh axis (or axes) over which V is sharded: inside ``jax.shard_map`` over it,
        where `acts` is this device's slice (T, B, V / M) and all else the same on every device of
        the axis, or under ``jit`` with a mesh set by ``jax.set_mesh``. Labels and `blank` are
        classes of the whole. Not needed where the type of `acts` says so (explicit sharding).
        Devices communicate sums of (T, B, L) numbers, never acts (docs/scaling.md).

    Returns:
      (B,) or () costs in nats, never below 0: float64 for float64 acts, else float32.

    Raises:
      TypeError: `acts` is not floating, labels or lengths are not integers, or a switch is traced
        (name it in static_argnames).
      ValueError: ranks or sizes disagree, `blank` is not a class, `vocab_axis` is not an axis of
        the mesh in use or does not divide V; and, where values are known, a label or length out of
        range: the message names the sequence, the position and the value. They are known outside
        ``jit``, and in a jitted function that closes over them.

    Behaviour where nothing can be raised, for each sequence on its own:
      no alignment fits (fewer frames than labels and repeats, or logits of -inf)
        cost +inf, gradient exactly 0
      a NaN, a +inf, or nothing but -inf in a row in use
        cost NaN, gradient NaN in the frames in use
      a label >= V or equal to `blank`, a length outside [0, T] or [0, L]
        cost NaN, gradient exactly 0 (`jax_ctc.check` makes it an error of checkify)
      frames at and after the length, and sequences with a zero cotangent
        gradient exactly 0

    The gradient has the dtype of `acts`. Every transformation of JAX applies, in any order and
    nesting. Same inputs give the same bits, on any number of threads, alone or in a batch, with a
    derivative or without. Under `vmap` over labels alone, and with `vocab_axis`, a cost may differ
    by rounding (1e-7 of it) from that of the call without.

    Example:
      >>> acts = jnp.zeros((4, 1, 3))  # 4 frames, 1 sequence, 3 classes, all equally likely
      >>> jax_ctc.ctc(acts, labels=jnp.array([[1, 2]]), lengths=jnp.array([4]))  # 15 of 81 paths
      Array([1.686399], dtype=float32)

    Reference: Graves, Fernández, Gomez and Schmidhuber, "Connectionist temporal classification:
    labelling unsegmented sequence data with recurrent neural networks", ICML 2006.
    """
    threads = _shapes.threads_of(num_threads)
    zero_infinity = _shapes.switch("zero_infinity", zero_infinity)
    acts = _shapes.activations(acts, labels)
    vocab_axes = _split_classes.axes_of(acts, vocab_axis)
    a = _arguments.prepare(
        acts,
        labels,
        lengths,
        label_lengths,
        blank=blank,
        time_major=time_major,
        slices=_split_classes.local_slices(vocab_axes),
    )
    if vocab_axes:
        return _with_zeros(_split_classes.cost(a, vocab_axes, threads), zero_infinity)
    return _cost(
        a.acts,
        a.labels,
        a.lengths,
        time_axis=a.time_axis,
        blank=a.blank,
        threads=threads,
        zero_infinity=zero_infinity,
    )


@functools.partial(
    jax.jit, inline=True, static_argnames=("time_axis", "blank", "threads", "zero_infinity")
)
def _cost(
    acts: Array, labels: Array, lengths: Array, *, zero_infinity: bool, **parameters: int
) -> Array:
    """One program in an eager call too, so that jax.debug_infs sees the result alone."""
    return _with_zeros(_primitives.loss_p.bind(acts, labels, lengths, **parameters), zero_infinity)


def _with_zeros(cost: Array, zero_infinity: bool) -> Array:
    return jnp.where(jnp.isposinf(cost), 0, cost) if zero_infinity else cost

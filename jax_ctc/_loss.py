# SPDX-License-Identifier: Apache-2.0
"""The public loss."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _arguments, _arrays, _primitives, _split_classes, _static
from ._arrays import Integers


def ctc(
    acts: ArrayLike,
    labels: Integers,
    lengths: Integers | None,
    label_lengths: Integers | None = None,
    *,
    blank: int = 0,
    time_major: bool = True,
    zero_infinity: bool = False,
    softmax: bool = True,
    num_threads: int | None = None,
    vocab_axis: str | tuple[str, ...] | None = None,
) -> Array:
    """Returns the negative log-probability of each label sequence, summed over all its alignments.

    Padding in `labels` is negative. A label equal to `blank` (by default 0) is invalid, so padding
    with 0 is an error. Write ``labels = jnp.where(labels == 0, -1, labels.astype(int))``. Under
    ``jit`` an invalid label cannot raise: the cost of its sequence is NaN and the gradient 0, and
    training goes on with the other sequences. `jax_ctc.check` then names the label. So does
    ``JAX_DEBUG_NANS=True`` in the environment, if the cost leaves a plain jitted function.

    Time comes first, (T, B, V). Pass ``time_major=False`` for (B, T, V), the layout of optax and
    Flax. If B == T, a wrong layout raises no error.

    Args:
      acts: (T, B, V) unnormalised activations (logits); `ctc` takes the softmax over V itself.
        (B, T, V) with ``time_major=False``, (T, V) for one sequence. float32, float64, bfloat16 or
        float16.
      labels: (B, L) classes, or (L,); any integer dtype. Negative entries are padding. They are
        ignored at any position. Unsigned integers have no negative numbers: convert them before
        they are padded, or give `label_lengths`.
      lengths: (B,) or (), the number of frames in use, 0 to T; any integer dtype. None means all T
        frames. Later frames are never read.
      label_lengths: (B,) or (), optional. Entries of `labels` at and after this position are
        padding too, whatever they hold.
      blank: the class that emits nothing, in [-V, V). -1 is the last class.
      time_major: whether T comes before B. Neither order is copied or transposed.
      zero_infinity: if True, a sequence without an alignment costs 0 instead of +inf.
      softmax: if False, `acts` are log-scores as they stand: log-probabilities, scaled or with a
        prior taken off, of any sum. Of a frame, only the entries of the blank and the labels are
        read. The cost is -log of the sum over all alignments of exp(sum of scores), which may be
        below 0, and the gradient of an entry is minus its occupancy. If such an entry in a frame in
        use is NaN or +inf, the cost is NaN, and so are the gradients of all such entries in the
        frames in use. Frames whose entries are all -inf leave no alignment. A sequence whose best
        paths lie 4e7 nats below the largest of those entries may count as one without an alignment.
      num_threads: the largest number of threads for a CPU kernel; None means all threads of JAX.
        The result has the same bits for every number.
      vocab_axis: the mesh axis (or axes) over which V is sharded (docs/scaling.md). Call `ctc`
        inside ``jax.shard_map`` over this axis, or under ``jit`` with a mesh set by
        ``jax.set_mesh``. Inside ``shard_map``, `acts` is the slice (T, B, V / M) of this device,
        and all other arguments are replicated over the axis. Labels and `blank` are classes in
        [0, V). In explicit mode `vocab_axis` is not needed, because the type of `acts` names the
        axis. Devices communicate sums of (T, B, L) numbers, never acts.

    Returns:
      (B,) or () costs in nats; with the softmax never below 0. A cost above 4e7 may be +inf.
      float64 for float64 acts, else float32.

    Raises:
      TypeError: `acts` is not floating, labels or lengths are not integers, or a static argument is
        traced (name it in static_argnames).
      ValueError: ranks or sizes disagree; `blank` is not a class; `vocab_axis` is not an axis of
        the mesh in use, or does not divide V; a label or a length is out of range and its value is
        known. The message then names the sequence, the position and the value. Values are known
        where JAX does not trace labels and lengths. ``jit``, ``vmap``, ``scan``, ``cond``,
        ``checkpoint`` and ``shard_map`` trace their arguments. NumPy arrays, and arrays that come
        from outside of these, stay known inside.

    If nothing can be raised, each sequence on its own behaves as follows:
      no alignment fits (fewer frames than labels and repeats, or logits of -inf)
        cost +inf, gradient exactly 0
      a row in use has a NaN, a +inf, or only -inf
        cost NaN, gradient NaN in the frames in use
      a label is >= V or equal to `blank`, or a length is outside [0, T] or [0, L]
        cost NaN, gradient exactly 0 (`jax_ctc.check` makes it an error of checkify)
      there are no labels, or no frames
        cost and gradient as the formula says
      a class that no path needs has a logit of -inf
        its probability is 0, and so is its gradient
      a frame is at or after the length, or the cotangent of the sequence is zero
        gradient exactly 0
      the cotangent of the sequence is inf or NaN
        what is exactly 0 here stays 0

    The gradient has the dtype of `acts`. Every transformation of JAX applies, in any order and
    nesting. The same inputs give the same bits: with any number of threads, alone or in a batch,
    and with or without a derivative. Under `vmap` over labels alone, and with `vocab_axis`, a cost
    may differ from that of a plain call by rounding (1e-7 of the cost).

    Example:
      >>> acts = jnp.zeros((4, 1, 3))  # 4 frames, 1 sequence, 3 classes, all equally likely
      >>> jax_ctc.ctc(acts, labels=jnp.array([[1, 2]]), lengths=jnp.array([4]))  # 15 of 81 paths
      Array([1.686399], dtype=float32)

    Reference: Graves, Fernández, Gomez and Schmidhuber, "Connectionist temporal classification:
    labelling unsegmented sequence data with recurrent neural networks", ICML 2006.
    """
    threads = _static.threads_of(num_threads)
    zero_infinity = _static.switch("zero_infinity", zero_infinity)
    softmax = _static.switch("softmax", softmax)
    acts = _arrays.floats("acts", acts, labels)
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
    return _cost(
        a.acts,
        a.labels,
        a.lengths,
        time_axis=a.time_axis,
        blank=a.blank,
        V=a.V,
        threads=threads,
        names=vocab_axes,
        softmax=softmax,
        zero_infinity=zero_infinity,
    )


@functools.partial(
    jax.jit,
    inline=True,
    static_argnames=(
        "time_axis", "blank", "V", "threads", "names", "softmax", "zero_infinity",
    ),
)  # fmt: skip
def _cost(
    acts: Array,
    labels: Array,
    lengths: Array,
    *,
    time_axis: int,
    blank: int,
    V: int,
    threads: int,
    names: tuple[str, ...],
    softmax: bool,
    zero_infinity: bool,
) -> Array:
    """An eager call is one program too, because of this jit. So jax.debug_infs and debug_nans check
    its result only. `names` are the mesh axes over which V is sharded."""
    if not names:
        cost = _primitives.loss_p.bind(
            acts, labels, lengths, time_axis=time_axis, blank=blank, threads=threads,
            softmax=softmax,
        )  # fmt: skip
        return with_zeros(cost, zero_infinity)
    if softmax:
        source = _split_classes.source_of_acts(acts, time_axis, threads)
    else:
        source = _split_classes.source_of_scores(acts, time_axis)
    a = _arguments.Arguments(acts, labels, lengths, time_axis, blank, V)
    return with_zeros(_split_classes.cost(a, source, names, threads), zero_infinity)


def with_zeros(cost: Array, zero_infinity: bool) -> Array:
    """Returns cost, with 0 for +inf if `zero_infinity`."""
    return jnp.where(jnp.isposinf(cost), 0, cost) if zero_infinity else cost

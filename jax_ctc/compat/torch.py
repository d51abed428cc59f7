# SPDX-License-Identifier: Apache-2.0
"""CTC with the name and signature of PyTorch: `torch.nn.functional.ctc_loss`, on JAX arrays.

It differs from PyTorch in seven ways. The gradient is the true one of `log_probs`, minus the
occupancies; PyTorch returns that of the logits under a softmax, which differs unless a log_softmax
stands before it. A target equal to `blank`, or that is no class, is an error (under `jit` a cost of
NaN). A negative target is padding, but "mean" counts it. Targets that are floats are an error;
PyTorch converts them. One sequence (T, C) may have targets beyond its length. A sequence without an
alignment has a gradient of 0, whether `zero_infinity` is set or not; in PyTorch it has NaN.
bfloat16, float16, forward mode and second derivatives work; in PyTorch they do not.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from .. import _arrays, _loss, _mesh, _static, _values
from .._arrays import Integers
from ._names import names

_CALL = "ctc_loss(log_probs, targets, ...)"
_THEIRS = {
    "acts": "log_probs",
    "labels": "targets",
    "lengths": "input_lengths",
    "label_lengths": "target_lengths",
    "L": "S",
    "unnormalised activations": "log-probabilities",
}


def ctc_loss(
    log_probs: ArrayLike,
    targets: Integers,
    input_lengths: Integers,
    target_lengths: Integers,
    blank: int = 0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    zero_infinity: bool = False,
) -> Array:
    """Returns the costs of a batch, in nats, or their mean or sum.

    Args:
      log_probs: (T, N, C) or (T, C) log-probabilities, the output of ``jax.nn.log_softmax``. They
        are taken as they stand.
      targets: (N, S) classes, or (sum of target_lengths,), one sequence after another. Under `jit`
        the sum is not known: targets beyond it are ignored, and one that is missing is invalid.
        Each row then has room for all of them, which takes N times the memory, and in pure JAX the
        time: (N, S) is better there.
      input_lengths: (N,) frames in use; () or (1,) for one sequence.
      target_lengths: (N,) targets in use; () or (1,) for one sequence.
      blank: the class of the blank.
      reduction: "none" returns (N,) costs, "sum" their sum, and "mean" the mean over the batch of
        each cost divided by its target_length (by 1 if that is 0).
      zero_infinity: if True, a sequence without an alignment costs 0 instead of +inf.

    Returns:
      (N,) or () costs. `jax_ctc.ctc` says which inputs raise, and which costs are NaN or inf.
    """
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"`reduction`: expected 'none', 'mean' or 'sum', got {reduction!r}.")
    with names(_CALL, "(T, N, C) or (T, C)", **_THEIRS):
        acts = _arrays.floats("acts", log_probs, targets)
        counts = _values.saturated(_arrays.integers("label_lengths", target_lengths))
        labels = _values.saturated(_arrays.integers("labels", targets))
        lengths = _arrays.integers("lengths", input_lengths)
        if acts.ndim == 2:
            labels, lengths, counts = _alone(labels, 1), _alone(lengths, 0), _alone(counts, 0)
        elif acts.shape[1:2] == (1,):
            lengths, counts = (x[None] if x.ndim == 0 else x for x in (lengths, counts))
        flat = acts.ndim == 3 and labels.ndim == 1
        if flat:
            _check_counts(counts, acts.shape[1], labels.shape[0])
            labels = _padded(jnp.asarray(labels), counts)
        with _places_in_flat_targets(counts) if flat else contextlib.nullcontext():
            cost = _loss.ctc(
                acts,
                labels,
                lengths,
                counts,
                blank=blank,
                zero_infinity=zero_infinity,
                softmax=False,
            )
    if reduction == "none":
        return cost
    if reduction == "sum":
        return cost.sum()
    return (cost / jnp.maximum(jnp.asarray(counts), 1).astype(cost.dtype)).mean()


def _alone(x: _arrays.AnyArray, ndim: int) -> _arrays.AnyArray:
    """Returns x without its batch axis. PyTorch takes one sequence with or without it."""
    return x[0] if x.ndim == ndim + 1 and x.shape[0] == 1 else x


@contextlib.contextmanager
def _places_in_flat_targets(counts: _arrays.AnyArray) -> Iterator[None]:
    """An error names a target by its place in the array that the caller has."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError or isinstance(counts, Tracer):
            raise
        starts = np.cumsum(counts) - counts

        def flat(place: re.Match[str]) -> str:
            return f"labels[{starts[int(place[1])] + int(place[2])}]"

        raise ValueError(re.sub(r"labels\[(\d+), (\d+)\]", flat, str(error))) from error


def _check_counts(counts: _arrays.AnyArray, N: int, size: int) -> None:
    """Raises ValueError if concatenated targets have not one count for each of N sequences, or if
    the counts are known and do not add up."""
    if counts.shape != (N,):
        raise ValueError(
            f"`label_lengths`: expected shape (N,) with N = {N} sequences of `log_probs`, because "
            f"`targets` are concatenated, got shape {counts.shape}. If `log_probs` are (N, T, C), "
            "transpose them."
        )
    if isinstance(counts, Tracer):
        return
    total = int(np.maximum(np.asarray(counts), 0).sum(dtype=np.int64))
    if total != size:
        raise ValueError(
            f"`labels`: expected sum(target_lengths) = {total} concatenated targets, got {size}."
        )


def _padded(targets: Array, counts: _arrays.AnyArray) -> Array:
    """Returns concatenated targets as (N, S). S is the largest count, or the number of all targets
    if counts are not known when the program is traced: then a target that is missing is an invalid
    one."""
    size = targets.shape[0]
    if not isinstance(counts, Tracer):
        size = int(np.asarray(counts).max(initial=0))
    counts = jnp.asarray(counts)
    counts = _mesh.sharded_with(counts, counts, [None])  # a sum over all sequences before each
    used = jnp.clip(counts, 0, targets.shape[0] + 1)  # the sum stays an int32
    starts = jnp.cumsum(used, dtype=jnp.int32) - used
    positions = starts[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
    return targets.at[positions].get(mode="fill", fill_value=_static.INT32.max)

# SPDX-License-Identifier: Apache-2.0
"""How far label sequences are from each other."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _mesh, _values
from ._arrays import Integers
from ._greedy import Decoded
from ._results import serialised


@serialised
class LabelErrors(NamedTuple):
    """The errors of each decoded sequence.

    Attributes:
      rate: (...) float32, distance / max(label_count, 1).
      distance: (...) int32, insertions, deletions and substitutions.
      label_count: (...) int32, labels of the reference.
    """

    rate: Array
    distance: Array
    label_count: Array


def label_error_rate(
    decoded: Decoded | ArrayLike,
    labels: Integers,
    decoded_lengths: Integers | None = None,
    label_lengths: Integers | None = None,
) -> LabelErrors:
    """Returns the edit distance between decoded labels and true ones, and its ratio to the number
    of true labels.

    The distance counts insertions, deletions and substitutions (Levenshtein). The rate of a corpus
    is the ratio of sums, not the mean of rates::

        errors = label_error_rate(ctc_greedy_decode(acts, lengths), labels)
        corpus_rate = errors.distance.sum() / errors.label_count.sum()

    Args:
      decoded: a `Decoded`, or its labels: (B, N), (N,), or with more axes before N, such as
        (B, top_paths, N) of `ctc_beam_search_decode`. Any integer dtype. Negative entries are
        padding and are ignored at any position. 0 is a label like any other. Labels above
        2**31 - 1 count as equal.
      labels: (B, L) or (L,), the true labels, padded likewise. The axes before L are the first of
        those before N. The labels of a sequence are compared with all of its decoded paths.
      decoded_lengths: optional; (B,) or (B, K) if `decoded` is (B, K, N). Entries of `decoded` at
        and after this position are padding too.
      label_lengths: the same for `labels`.

    Returns:
      A `LabelErrors` tuple. Each array has the axes of `decoded` before N:
        ``rate``         float32, distance / label_count. It may be above 1.
        ``distance``     int32
        ``label_count``  int32, the number of true labels
      An empty reference counts as one label in `rate`: 0 if nothing was decoded, else the number of
      decoded labels. So no rate is inf or NaN. A length below 0 counts as 0, and one above the size
      as the size. Nothing here has a gradient.

    Raises:
      TypeError: an argument is not integers.
      ValueError: axes before N and L disagree.

    Example:
      >>> jax_ctc.label_error_rate(jnp.array([1, 2, 2, -1]), jnp.array([1, 3, 2, 4])).distance
      Array(2, dtype=int32)
    """
    if isinstance(labels, Decoded):
        raise TypeError(
            "`labels`: expected the true labels (B, L), got a Decoded: are the two swapped? The "
            "order is label_error_rate(decoded, labels)."
        )
    if isinstance(decoded, Decoded):
        decoded = decoded.labels  # padded with -1
    decoded = _values.int32s("decoded", decoded)
    labels = _values.int32s("labels", labels)
    for name, x in (("decoded", decoded), ("labels", labels)):
        if x.ndim == 0:
            raise ValueError(f"`{name}`: expected labels along the last axis, got a scalar.")
    _require_first("labels", labels.shape[:-1], "decoded", decoded.shape, ("L",))
    decoded = _without(decoded, "decoded", "decoded_lengths", decoded_lengths)
    labels = _without(labels, "labels", "label_lengths", label_lengths)
    decoded = _mesh.sharded_with(decoded, decoded, [*range(decoded.ndim - 1), None])
    labels = _mesh.sharded_with(labels, decoded, [*range(labels.ndim - 1), None])
    batch = decoded.shape[:-1]
    ones = [1] * (len(batch) - labels.ndim + 1)
    labels = labels.reshape(*labels.shape[:-1], *ones, labels.shape[-1])
    return _errors(decoded, jnp.broadcast_to(labels, (*batch, labels.shape[-1])))


def _require_first(
    name: str, found: tuple[int, ...], of: str, whole: tuple[int, ...], last: tuple[str, ...] = ()
) -> None:
    """Raises ValueError if the axes `found` of argument `name` are not the first of those before
    the last of argument `of`. `last` is the letter of one more axis."""
    batch = whole[:-1]
    if found == batch[: len(found)]:
        return

    def written(axes: tuple[int, ...]) -> str:
        sizes = [*map(str, axes), *last]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"

    expected = " or ".join(written(batch[:n]) for n in range(len(batch), -1, -1))
    raise ValueError(
        f"`{name}`: expected shape {expected}, because `{of}` has shape {whole}, got "
        f"{written(found)}."
    )


def _without(labels: Array, of: str, name: str, lengths: Integers | None) -> Array:
    """Returns labels with -1 at and after the length. The two arguments are `of` and `name`."""
    if lengths is None:
        return labels
    count = _values.int32s(name, lengths)
    _require_first(name, count.shape, of, labels.shape)
    count = count.reshape(*count.shape, *[1] * (labels.ndim - count.ndim))
    position = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1)
    return jnp.where(position < count, labels, -1)


@functools.partial(jax.jit, inline=True)
def _errors(decoded: Array, labels: Array) -> LabelErrors:
    count = (labels >= 0).sum(-1, dtype=jnp.int32)
    # The distance is symmetric, and the vectors are as long as the first argument.
    N, L = decoded.shape[-1], labels.shape[-1]
    shorter = isinstance(N, int) and isinstance(L, int) and N < L
    distance = _distance(decoded, labels) if shorter else _distance(labels, decoded)
    # Behind a barrier, because XLA would multiply by the inverse of what it broadcasts: 0.99999994.
    whole = jax.lax.optimization_barrier(jnp.maximum(count, 1).astype(jnp.float32))
    rate = distance.astype(jnp.float32) / whole
    return LabelErrors(rate, distance, count)


_FAR = 1 << 30  # more than any distance


def _surrounded(labels: Array, before: int, after: int) -> Array:
    """Returns labels with padding before and after them."""
    widths = [(0, 0, 0)] * (labels.ndim - 1) + [(before, after, 0)]
    return lax.pad(labels, jnp.asarray(-1, labels.dtype), widths)


def _distance(rows: Array, columns: Array) -> Array:
    """Returns the edit distance. Both are (batch, size) with negative padding anywhere.

    Entry (i, j) of the table is the distance of the first i entries of `rows` and the first j of
    `columns`. It is the least of (i - 1, j) + 1, (i, j - 1) + 1, and (i - 1, j - 1), plus 1 if the
    two entries differ. No entry of a diagonal i + j = d depends on another one, so each step
    computes a diagonal, as a vector over i. Padding is left out at no cost, and a label replaces it
    at the cost of the label alone, which is 1: the two differ.
    """
    rows, columns = _mesh.vary_alike(rows, columns)
    N, L = rows.shape[-1], columns.shape[-1]
    rows = _surrounded(rows, 1, 0)
    taken = (rows >= 0).astype(jnp.int32)
    # The columns j = d - i for all i, from a slice: entry k is that of column L + N - k.
    columns = _surrounded(jnp.flip(columns, -1), N, N + 1)

    def above(diagonal: Array) -> Array:
        return jnp.concatenate([jnp.full_like(diagonal[..., :1], _FAR), diagonal[..., :-1]], -1)

    def step(diagonals, d):
        last, before = diagonals
        column = lax.dynamic_slice_in_dim(columns, L + N - d, N + 1, axis=-1)
        differ = (rows != column).astype(jnp.int32)
        beside = jnp.minimum(above(last) + taken, last + (column >= 0).astype(jnp.int32))
        return (jnp.minimum(beside, above(before) + differ), last), None

    far = jnp.full_like(rows, _FAR) + jnp.zeros_like(columns[..., :1])  # sharded as both
    first = far.at[..., 0].set(0)
    steps = jnp.arange(1, N + L + 1, dtype=jnp.int32)
    return lax.scan(step, (first, far), steps)[0][0][..., -1]

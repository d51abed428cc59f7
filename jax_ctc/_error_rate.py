# SPDX-License-Identifier: Apache-2.0
"""How far label sequences are from each other."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _mesh, _shapes, _values
from ._greedy import Decoded
from ._results import serialised
from ._shapes import Integers


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
        padding and are ignored at any position. Labels above 2**31 - 1 count as equal.
      labels: (B, L) or (L,), the true labels, padded likewise. The axes before L are the first of
        those before N. The labels of a sequence are compared with all of its decoded paths.
      decoded_lengths: (B,) or the like, optional. Entries of `decoded` at and after this position
        are padding too. Its axes are the first of those before N.
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
    decoded = jnp.asarray(_values.saturated(_shapes.integers("decoded", decoded)))
    labels = jnp.asarray(_values.saturated(_shapes.integers("labels", labels)))
    for name, x in (("decoded", decoded), ("labels", labels)):
        if x.ndim == 0:
            raise ValueError(f"`{name}`: expected labels along the last axis, got a scalar.")
    batch = decoded.shape[:-1]
    _require_first("labels", labels.shape[:-1], batch, decoded.shape)
    decoded = _without(decoded, "decoded_lengths", decoded_lengths)
    labels = _without(labels, "label_lengths", label_lengths)
    ones = [1] * (len(batch) - labels.ndim + 1)
    labels = labels.reshape(*labels.shape[:-1], *ones, labels.shape[-1])
    return _errors(decoded, jnp.broadcast_to(labels, (*batch, labels.shape[-1])))


def _require_first(
    name: str, found: tuple[int, ...], batch: tuple[int, ...], whole: tuple[int, ...]
) -> None:
    if found != batch[: len(found)]:
        raise ValueError(
            f"`{name}`: expected the axes {batch} before the last, or the first of them, because "
            f"it goes with an array of shape {whole}, got {found}."
        )


def _without(labels: Array, name: str, lengths: Integers | None) -> Array:
    """Returns labels with -1 at and after the length."""
    if lengths is None:
        return labels
    count = jnp.asarray(_values.saturated(_shapes.integers(name, lengths)))
    _require_first(name, count.shape, labels.shape[:-1], labels.shape)
    count = count.reshape(*count.shape, *[1] * (labels.ndim - count.ndim))
    position = lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1)
    return jnp.where(position < count, labels, -1)


@functools.partial(jax.jit, inline=True)
def _errors(decoded: Array, labels: Array) -> LabelErrors:
    count = (labels >= 0).sum(-1, dtype=jnp.int32)
    # The distance is symmetric, and the loop goes along the first argument.
    N, L = decoded.shape[-1], labels.shape[-1]
    shorter = isinstance(N, int) and isinstance(L, int) and N < L
    distance = _distance(decoded, labels) if shorter else _distance(labels, decoded)
    rate = distance.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    return LabelErrors(rate, distance, count)


def _distance(rows: Array, columns: Array) -> Array:
    """Goes through the table of Levenshtein distances between prefixes, a row for each label of
    `rows`.

    An entry is the least of three: from above, from above left, and from the left, plus the cost of
    that step. A step from the left costs 1, so the running minimum of (entry - column) solves a
    whole row at once.
    """
    columns, rows = _mesh.vary_alike(columns, rows)
    padded = (columns < 0).astype(jnp.int32)
    columns = lax.sort((padded, columns), num_keys=1, is_stable=True)[1]  # padding comes last
    used = (columns >= 0).sum(-1, dtype=jnp.int32)[..., None]
    column = jnp.arange(columns.shape[-1] + 1, dtype=jnp.int32)
    column = column.reshape(*[1] * (columns.ndim - 1), -1)

    def step(above, label):
        differ = (columns != label[..., None]).astype(jnp.int32)
        best = above + 1
        diagonal = jnp.minimum(best[..., 1:], above[..., :-1] + differ)
        best = jnp.concatenate([best[..., :1], diagonal], axis=-1)
        row = lax.cummin(best - column, axis=best.ndim - 1) + column
        return jnp.where((label >= 0)[..., None], row, above), None

    first = jnp.zeros_like(used) + column
    table = lax.scan(step, first, jnp.moveaxis(rows, -1, 0))[0]
    return jnp.where(column == used, table, 0).sum(-1, dtype=jnp.int32)

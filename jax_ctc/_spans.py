# SPDX-License-Identifier: Apache-2.0
"""What an alignment says of each label: its frames, and how sure the model is of it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _arrays, _mesh, _operands, _static
from ._align import Alignment
from ._primitives import zero_product
from ._primitives.top_class import tangents, top_class_p
from ._results import serialised


@serialised
class Spans(NamedTuple):
    """The frames of each label (`label_spans`).

    Attributes:
      start: (B, L) or (L,) int32, the first frame; -1 where there is none.
      end: of the same shape, the frame after the last; -1 where there is none.
    """

    start: Array
    end: Array


def label_spans(alignment: Alignment, L: int, *, time_major: bool = True) -> Spans:
    """Returns the frames of each label, from the alignment of (B, L) labels.

    Args:
      alignment: what `ctc_align` returned.
      L: the size of a row of labels. Labels from L on are left out.
      time_major: as it was for `ctc_align`.

    Returns:
      `Spans` with start and end, (B, L) or (L,) int32. Label i of a sequence has the frames
      start[i] <= t < end[i], at least one. Both are -1 at padding, and in a sequence that has no
      alignment.

    Raises: TypeError and ValueError if an argument is not of that kind or shape.
    """
    L, time_major = _static.size("L", L), _static.switch("time_major", time_major)
    return _label_spans(_an_alignment(alignment), L, time_major)


def _an_alignment(x: Alignment) -> Alignment:
    if not isinstance(x, Alignment):
        raise TypeError(f"`alignment`: expected what ctc_align returned, got {_static.kind(x)}.")
    return x


def _require_layout(alignment: Alignment, frames: Array, time_major: bool) -> None:
    """Raises ValueError if frames are (B, T) where (T, B) was said, or the other way round. Where
    both have one size nobody can tell."""
    batch = alignment.score.shape
    if frames.ndim == 2 and len(batch) == 1 and frames.shape[int(time_major)] != batch[0]:
        raise ValueError(
            f"`alignment`: expected a path of shape {'(T, B)' if time_major else '(B, T)'} with "
            f"B = {batch[0]} because time_major={time_major}, got {frames.shape}. Give time_major "
            "as it was for ctc_align."
        )


@functools.partial(jax.jit, static_argnames=("L", "time_major"))
def _label_spans(alignment: Alignment, L: int, time_major: bool) -> Spans:
    index = alignment.label_index
    if index.ndim not in (1, 2):
        raise ValueError(
            "`alignment`: expected label_index of shape (T, B), (B, T) with time_major=False, or "
            f"(T,) for one sequence, got shape {index.shape}. Use jax.vmap for more batch axes."
        )
    _require_layout(alignment, index, time_major)
    if index.ndim == 2 and time_major:
        index = index.T
    T = index.shape[-1]
    places = jnp.where(index < 0, L, index)  # dropped

    def spans(places: Array) -> tuple[Array, Array]:
        frames = lax.iota(jnp.int32, T)
        start = jnp.full_like(places, T, shape=(L,)).at[places].min(frames, mode="drop")
        end = jnp.full_like(places, -1, shape=(L,)).at[places].max(frames + 1, mode="drop")
        return jnp.where(end < 0, -1, start), end

    return Spans(*(spans if index.ndim == 1 else jax.vmap(spans))(places))


def label_confidence(
    acts: ArrayLike, alignment: Alignment, L: int, *, time_major: bool = True, softmax: bool = True
) -> Array:
    """Returns how sure the model is of each label: the mean log-probability over its frames.

    Args:
      acts, time_major, softmax: as they were for `ctc_align`.
      alignment: what `ctc_align` returned.
      L: the size of a row of labels. Labels from L on are left out.

    Returns:
      (B, L) or (L,), float64 for float64 acts, else float32, in nats, at most 0. A label has the
      mean over its frames (`label_spans`) of the log-probability of the class in `path`. Its exp is
      the geometric mean of the probabilities. With ``softmax=False`` it is the mean score. It is
      NaN at padding, and in a sequence that has no alignment, because there are no frames. So it is
      NaN even where nothing is wrong, and ``jax_debug_nans`` stops there. It is NaN too for a class
      in the path that `acts` do not have. It can be differentiated with respect to `acts`.

    Raises: TypeError if `acts` are no floats, ValueError if the shape of the path is not theirs;
      and as `label_spans`.
    """
    L, time_major = _static.size("L", L), _static.switch("time_major", time_major)
    softmax = _static.switch("softmax", softmax)
    if isinstance(acts, Alignment):
        raise TypeError(
            "`acts`: expected floats (T, B, V), got an Alignment: are the two swapped? The order "
            "is label_confidence(acts, alignment, L)."
        )
    acts, alignment = _arrays.floats("acts", acts), _an_alignment(alignment)
    return _label_confidence(acts, alignment, L, time_major, softmax)


def _sharded_alike(acts: Array, path: Array, index: Array) -> tuple[Array, Array, Array]:
    """Returns the arrays with the frames sharded as those of acts, or as those of the path if
    nothing shards acts (explicit sharding)."""
    frames = range(path.ndim)
    classes = _mesh.sharded_over(acts, acts.ndim - 1)
    for leader in (acts, path):
        spec = [_mesh.sharded_over(leader, axis) for axis in frames]
        if any(spec):
            mesh = jax.typeof(leader).sharding.mesh
            acts = _mesh.resharded(acts, [*spec, classes], mesh)
            path, index = (_mesh.resharded(x, spec, mesh) for x in (path, index))
            break
    return acts, path, index


def _path_scores(acts: Array, path: Array, time_axis: int, softmax: bool) -> Array:
    """Returns the log-probability of the class of each frame, or its score without a softmax. It is
    0 in frames that have no class."""
    acts, path = _mesh.vary_alike(acts, path)
    if not softmax or acts.shape[-1] == 0:
        return _taken(acts, path).astype(_operands.cost_dtype(acts.dtype))
    frame = jnp.cumsum(jnp.ones_like(path, dtype=jnp.int32), time_axis)
    lengths = jnp.where(path >= 0, frame, 0).max(time_axis, initial=0)
    return _log_probabilities(acts, path, lengths, time_axis)


def _taken(x: Array, path: Array) -> Array:
    taken = _mesh.taken_along(x, jnp.maximum(path, 0)[..., None])[..., 0]
    return jnp.where(path >= 0, taken, 0)


# With a rule of its own, so that the gradient of halves is added in float32 and rounded once.
@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_probabilities(acts: Array, path: Array, lengths: Array, time_axis: int) -> Array:
    operands, parameters = _problem(acts, lengths, time_axis)
    best, top, others = top_class_p.bind(*operands, **parameters)
    used, taken = path >= 0, _taken(acts, path).astype(top.dtype)
    relative = jnp.where(path == best, 0, taken - top)
    return jnp.where(used, relative - jnp.log1p(jnp.where(used, others, 0)), 0)


@_log_probabilities.defjvp
def _log_probabilities_jvp(time_axis, primals, d_primals):
    (acts, path, lengths), direction = primals, d_primals[0]
    operands, parameters = _problem(acts, lengths, time_axis)
    found = best, _, others = top_class_p.bind(*operands, **parameters)
    direction = direction.astype(others.dtype)
    d_top, d_others = tangents(operands, found, direction, **parameters)
    relative = jnp.where(path == best, 0, _taken(direction, path) - d_top)
    total = 1 + jnp.where(jnp.isnan(others), 0, others)  # d_others is NaN there, if it counts
    change = relative - zero_product.multiply(d_others, 1 / total)
    return _log_probabilities(*primals, time_axis), jnp.where(path >= 0, change, 0)


def _problem(acts: Array, lengths: Array, time_axis: int) -> tuple[list[Array], dict[str, int]]:
    """Returns the operands and the parameters of `top_class`."""
    nothing = jnp.zeros_like(lengths, shape=(*lengths.shape, 0))
    return [acts, nothing, lengths], {"time_axis": time_axis, "blank": 0, "threads": 0}


@functools.partial(jax.jit, static_argnames=("L", "time_major", "softmax"))
def _label_confidence(
    acts: Array, alignment: Alignment, L: int, time_major: bool, softmax: bool
) -> Array:
    path = alignment.path
    if path.ndim not in (1, 2) or path.shape != acts.shape[:-1]:
        raise ValueError(
            f"`alignment`: expected a path of shape {acts.shape[:-1]}, because `acts` has shape "
            f"{acts.shape}, got {path.shape}. Use jax.vmap for more batch axes."
        )
    _require_layout(alignment, path, time_major)
    time_axis = 0 if path.ndim == 1 or time_major else 1
    acts, path, index = _sharded_alike(acts, path.astype(jnp.int32), alignment.label_index)
    _operands.batch_spec(jax.typeof(acts), time_axis)  # raises where types shard T or V
    score = _path_scores(acts, path, time_axis, softmax)
    places = jnp.where(index < 0, L, index)  # dropped
    if path.ndim == 2 and time_major:
        places, score = places.T, score.T
    if isinstance(L, int) and L == 0:  # there is nothing to gather from
        return jnp.zeros_like(score, shape=(*score.shape[:-1], 0))

    def means(places: Array, score: Array) -> Array:
        def total(x: Array) -> Array:
            return jnp.zeros_like(x, shape=(L,)).at[places].add(x, mode="drop")

        frames = total(jnp.ones_like(score))
        rough = total(score) / jnp.maximum(frames, 1)
        # A float32 sum of 10,000 frames has an error of 3e-5 of itself. That of what the first mean
        # leaves is as much smaller as the sum is.
        left = score - rough.at[places].get(mode="fill", fill_value=0)
        return jnp.where(frames > 0, rough + total(left) / jnp.maximum(frames, 1), jnp.nan)

    return (means if path.ndim == 1 else jax.vmap(means))(places, score)

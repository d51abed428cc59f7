# SPDX-License-Identifier: Apache-2.0
"""The primitive of forced alignment.

    align  acts, labels, lengths  -> path, label_index, score

The static parameter `softmax` says that acts are logits, and not log-scores; `star` that label V
stands for any class but the blank. The score is differentiable: the best path stays the best in a
neighbourhood of acts, so the derivative is that of the score of this path. Where two paths are
equally good it is a subgradient.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from .. import _mesh, _operands, _reference
from . import few_classes
from .family import define, one_by_one
from .zero_product import multiply

_ACTS = 0


# ---- batching ----------------------------------------------------------------------------------


def _batch_shared_acts(op, args, dims, *, time_axis, **params):
    """Batches many label sequences (hypotheses) for the same `acts`, without copies of them. Reads
    them once, and then runs on few classes for each label sequence. With a star, which needs all
    classes, it runs once per label sequence. Returns None if the general rule is better."""
    if dims[_ACTS] is not None or _mesh.mapped_over(args, dims):
        return None  # if the mapped axis is sharded, each device copies acts for its own part of it
    acts, labels, _ = args
    if not few_classes.is_more_than(acts.shape[-1], 2 * (labels.shape[-1] + 2)):
        return None  # copies of acts are about as small as the few classes
    params["time_axis"] = time_axis
    if params["star"]:
        return one_by_one(align_p, args, dims, **params), [0, 0, 0]
    one = functools.partial(_on_few_classes, acts, **params)
    return few_classes.each_hypothesis(op, one, acts, args[1:], dims[1:])


def _on_few_classes(acts, labels, lengths, *, time_axis, blank, threads, softmax, star):
    """Aligns as `align_p` does, without a star. The emissions are the same numbers."""
    symbols, few_labels = few_classes.symbols_of(labels, blank, acts.shape[-1])
    sums = None
    if softmax:
        sums = few_classes.sums_of(acts, symbols, lengths, time_axis, threads)
        few_acts = few_classes.acts_of(sums, symbols, time_axis)
    else:
        scores = few_classes.scores_of(acts, symbols, lengths, time_axis)
        few_acts = few_classes.acts_of_scores(scores, symbols, time_axis)
    few_acts, few_labels, lengths = _mesh.vary_alike(few_acts, few_labels, lengths)
    params = {"time_axis": time_axis, "blank": 0, "threads": threads}
    path, label_index, score = align_p.bind(
        few_acts, few_labels, lengths, softmax=softmax, star=star, **params
    )
    if sums is not None:
        cost = few_classes.cost_of(-score, few_acts, sums, symbols, lengths, time_axis)
        score = -jnp.maximum(cost, 0)
    shape = (*few_acts.shape[:-1], symbols.shape[-1])
    classes = jnp.broadcast_to(jnp.expand_dims(symbols, time_axis), shape)
    taken = _mesh.taken_along(classes, jnp.maximum(path, 0)[..., None])[..., 0]
    return [jnp.where(path < 0, -1, taken), label_index, score]


# ---- derivative --------------------------------------------------------------------------------


def _gradient(acts, labels, lengths, path, score, *, time_axis, blank, softmax, star) -> Array:
    """Returns the derivative of the score in the dtype of scores: the one-hot path, less the
    softmax if there is one, at the frames of an alignment; NaN at the frames in use if a row is
    undefined; else 0."""
    V, dtype = acts.shape[-1], _operands.cost_dtype(acts.dtype)

    acts = _operands.rounded(acts)
    aligned = (path >= 0)[..., None]
    one_hot = path[..., None] == lax.broadcasted_iota(jnp.int32, acts.shape, acts.ndim - 1)
    gradient = one_hot.astype(dtype)
    if softmax:
        taken = jax.nn.softmax(jnp.where(aligned, acts.astype(dtype), 0), axis=-1)
        gradient = jnp.where(aligned, gradient - taken, 0)
    T = acts.shape[time_axis]
    invalid = _operands.invalid(labels, lengths, T=T, V=V + star, blank=blank)
    used = _operands.used(path.shape, lengths, time_axis)
    undefined = (used & jnp.expand_dims(jnp.isnan(score) & ~invalid, time_axis))[..., None]
    if not softmax:
        shape = (*labels.shape[:-1], V)
        v = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        is_read = (labels[..., None] == v[..., None, :]).any(-2) | (v == blank)
        if star:
            is_read |= (labels == V).any(-1, keepdims=True)
        undefined = undefined & jnp.expand_dims(is_read, time_axis)
    return jnp.where(undefined, jnp.nan, gradient)


def _jvp(primals, tangents, *, threads, **params):
    path, label_index, score = align_p.bind(*primals, threads=threads, **params)
    acts, labels, lengths = primals
    gradient = _gradient(acts, labels, lengths, path, score, **params)
    direction = tangents[_ACTS].astype(gradient.dtype)
    d_score = multiply(gradient, direction).sum((params["time_axis"], -1))
    nothing = [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in (path, label_index)]
    return [path, label_index, score], [*nothing, d_score]


# ---- registrations -----------------------------------------------------------------------------

align_p = define("align", _reference.align, _batch_shared_acts)
ad.primitive_jvps[align_p] = _jvp

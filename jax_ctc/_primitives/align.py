# SPDX-License-Identifier: Apache-2.0
"""The primitive of forced alignment.

    align  acts, labels, lengths  -> path, label_index, score

The static parameter `softmax` says that acts are logits; otherwise they are log-scores, of which
only the entries of the blank and of the labels are read. The score is differentiable: the best path
stays the best in a neighbourhood of acts, so the derivative is that of the score of this path.
Where two paths are equally good it is a subgradient.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from .. import _operands, _reference
from .family import define, is_zero, zero_like
from .zero_product import multiply

_ACTS = 0


def _gradient(acts, labels, lengths, path, score, *, time_axis, blank, softmax) -> Array:
    """Returns the derivative of the score in the dtype of scores: the one-hot path less the softmax
    at the frames of an alignment, NaN at the frames in use if a row has no softmax, else 0. Without
    `softmax` it is the one-hot path, and only entries that are read may be NaN."""
    V, dtype = acts.shape[-1], _operands.cost_dtype(acts.dtype)

    def per_frame(x: Array) -> Array:  # (batch) as (batch with T, 1)
        return jnp.expand_dims(x, (time_axis, x.ndim + 1))

    aligned = (path >= 0)[..., None]
    one_hot = path[..., None] == lax.broadcasted_iota(jnp.int32, acts.shape, acts.ndim - 1)
    gradient = one_hot.astype(dtype)
    if softmax:
        gradient -= jax.nn.softmax(jnp.where(aligned, acts.astype(dtype), 0), axis=-1)
    gradient = jnp.where(aligned, gradient, 0)
    T = acts.shape[time_axis]
    invalid = ((labels >= V) | (labels == blank)).any(-1) | (lengths < 0) | (lengths > T)
    frame = lax.broadcasted_iota(jnp.int32, acts.shape, time_axis)
    undefined = per_frame(jnp.isnan(score) & ~invalid) & (frame < per_frame(lengths))
    if not softmax:
        shape = (*labels.shape[:-1], V)
        v = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        is_read = (labels[..., None] == v[..., None, :]).any(-2) | (v == blank)
        undefined &= jnp.expand_dims(is_read, time_axis)
    return jnp.where(undefined, jnp.nan, gradient)


def _jvp(primals, tangents, *, threads, **params):
    path, label_index, score = align_p.bind(*primals, threads=threads, **params)
    d_acts = tangents[_ACTS]
    if is_zero(d_acts):
        d_score = zero_like(score)
    else:
        acts, labels, lengths = primals
        gradient = _gradient(acts, labels, lengths, path, score, **params)
        d_score = multiply(gradient, d_acts.astype(gradient.dtype)).sum((params["time_axis"], -1))
    nothing = [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in (path, label_index)]
    return [path, label_index, score], [*nothing, d_score]


# ---- registrations -----------------------------------------------------------------------------

align_p = define("align", _reference.align)
ad.primitive_jvps[align_p] = _jvp

# SPDX-License-Identifier: Apache-2.0
"""The primitive of forced alignment.

    align  acts, labels, lengths  -> path, label_index, score

The static parameter `softmax` says that acts are logits; it is True. The score is differentiable:
the best path stays the best in a neighbourhood of acts, so the derivative is that of the score of
this path. Where two paths are equally good it is a subgradient.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import ad

from .. import _operands, _reference
from .family import define, is_zero, zero_like
from .zero_product import multiply

_ACTS = 0


def _gradient(acts, labels, lengths, path, score, *, time_axis, blank) -> Array:
    """Returns the derivative of the score in the dtype of scores: the one-hot path less the softmax
    at the frames of an alignment, NaN at the frames in use if a row has no softmax, else 0."""
    V, dtype = acts.shape[-1], _operands.cost_dtype(acts.dtype)

    def per_frame(x: Array) -> Array:  # (batch) as (batch with T, 1)
        return jnp.expand_dims(x, (time_axis, x.ndim + 1))

    aligned = (path >= 0)[..., None]
    softmax = jax.nn.softmax(jnp.where(aligned, acts.astype(dtype), 0), axis=-1)
    one_hot = path[..., None] == lax.broadcasted_iota(jnp.int32, acts.shape, acts.ndim - 1)
    gradient = jnp.where(aligned, one_hot.astype(dtype) - softmax, 0)
    T = acts.shape[time_axis]
    invalid = ((labels >= V) | (labels == blank)).any(-1) | (lengths < 0) | (lengths > T)
    frame = lax.broadcasted_iota(jnp.int32, acts.shape, time_axis)
    undefined = per_frame(jnp.isnan(score) & ~invalid) & (frame < per_frame(lengths))
    return jnp.where(undefined, jnp.nan, gradient)


def _jvp(primals, tangents, *, time_axis, blank, **params):
    path, label_index, score = align_p.bind(*primals, time_axis=time_axis, blank=blank, **params)
    d_acts = tangents[_ACTS]
    if is_zero(d_acts):
        d_score = zero_like(score)
    else:
        acts, labels, lengths = primals
        gradient = _gradient(acts, labels, lengths, path, score, time_axis=time_axis, blank=blank)
        d_score = multiply(gradient, d_acts.astype(gradient.dtype)).sum((time_axis, -1))
    nothing = [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in (path, label_index)]
    return [path, label_index, score], [*nothing, d_score]


# ---- registrations -----------------------------------------------------------------------------

align_p = define("align", _reference.align)
ad.primitive_jvps[align_p] = _jvp

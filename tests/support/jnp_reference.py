# SPDX-License-Identifier: Apache-2.0
"""The loss as a log-space scan that JAX itself differentiates, to any order; float64, small shapes.

Far below any path of a test, and far above what would overflow: a finite stand-in for -inf keeps
every derivative of the scan finite.
"""

import jax
import jax.numpy as jnp
from jax import lax

NO_PATH = -1e30


def _log_sum_exp(*terms):
    top = lax.stop_gradient(jnp.max(jnp.stack(terms), axis=0))
    return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


def _sequence(acts, labels, length, label_length, blank):
    (T, _), (L,) = acts.shape, labels.shape
    is_label = (labels >= 0) & (jnp.arange(L) < label_length)
    used = jnp.sum(is_label)
    labels = jnp.where(is_label, labels, blank)[jnp.argsort(~is_label, stable=True)]
    classes = jnp.full(2 * L + 1, blank).at[1::2].set(labels)
    may_skip = jnp.zeros(2 * L + 1, bool).at[3::2].set(labels[1:] != labels[:-1])
    in_use = jnp.arange(T) < length
    log_p = jax.nn.log_softmax(jnp.where(in_use[:, None], acts, 0.0))[:, classes]

    def step(padded, frame):
        log_p, in_use = frame
        skip = jnp.where(may_skip, padded[:-2], NO_PATH)
        row = _log_sum_exp(padded[2:], padded[1:-1], skip) + log_p
        return padded.at[2:].set(jnp.where(in_use, row, padded[2:])), None

    start = jnp.full(2 * L + 3, NO_PATH).at[2].set(0.0)
    padded, _ = lax.scan(step, start, (log_p, in_use))
    # The last blank is state 2 * used, two places further on in `padded`.
    log_likelihood = _log_sum_exp(
        padded[2 * used + 2], jnp.where(used > 0, padded[2 * used + 1], NO_PATH)
    )
    return jnp.where(log_likelihood < NO_PATH / 2, jnp.inf, -log_likelihood)


def ctc(acts, labels, lengths, label_lengths=None, *, blank=0):
    """(B,) costs of (T, B, V) acts, (B, L) labels and (B,) lengths."""
    if label_lengths is None:
        label_lengths = jnp.full(labels.shape[:1], labels.shape[1])
    integers = (jnp.asarray(x).astype(int) for x in (labels, lengths, label_lengths))

    def sequence(*arguments):
        return _sequence(*arguments, blank)

    return jax.vmap(sequence, (1, 0, 0, 0))(acts, *integers)

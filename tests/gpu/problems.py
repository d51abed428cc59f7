# SPDX-License-Identifier: Apache-2.0
"""Random batches, and the comparison of a device's results with the CPU kernels' in float64."""

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc
from support.results import assert_costs

DEVICE, CPU = jax.devices()[0], jax.devices("cpu")[0]
# A result is rounded once to the dtype of acts: its relative precision.
ROUNDING = {"float32": 0, "float64": 0, "bfloat16": 2**-8, "float16": 2**-11}


def problem(T, B, V, L, dtype="float32", scale=3, seed=0):
    """acts, labels, lengths: ragged, with repeats, and padding anywhere in the labels."""
    rng = np.random.default_rng(seed)
    acts = (scale * rng.normal(size=(T, B, V))).astype(np.float32).astype(jnp.dtype(dtype))
    labels = rng.integers(1, max(V, 2), (B, L))
    again = rng.random((B, L)) < 0.2
    labels[:, 1:] = np.where(again[:, 1:], labels[:, :-1], labels[:, 1:])
    labels[rng.random((B, L)) < (0.1 if V > 1 else 2)] = -1
    lengths = rng.integers(T // 2, T + 1, B)
    lengths[0] = T
    return acts, labels.astype(np.int32), lengths.astype(np.int32)


def solve(device, acts, labels, lengths, cotangents, direction, **options):
    """Costs, their vector-Jacobian product, and the derivative along a direction."""

    @jax.jit  # where a bad value cannot raise
    def run(x, labels, lengths, cotangents, direction):
        def costs(x):
            return jax_ctc.ctc(x, labels, lengths, **options)

        value, pull = jax.vjp(costs, x)
        return costs(x), value, pull(cotangents)[0], jax.jvp(costs, (x,), (direction,))[1]

    given = jax.device_put((acts, labels, lengths, cotangents, direction), device)
    return [np.asarray(x) for x in run(*given)]


def compare(acts, labels, lengths, **options):
    """A device's costs, gradient and derivative against the CPU's in float64, as promised."""
    dtype, T = jnp.dtype(acts.dtype), acts.shape[0 if options.get("time_major", True) else 1]
    computed = np.dtype("float64" if dtype == np.float64 else "float32")
    tolerance = 1e-11 if computed == np.float64 else 1e-6
    cotangents = np.linspace(-1, 1, len(lengths))
    direction = np.random.default_rng(9).normal(size=acts.shape).astype(np.float32).astype(dtype)
    loss, cost, gradient, derivative = solve(
        DEVICE, acts, labels, lengths, cotangents.astype(computed), direction, **options
    )
    wide = (acts.astype(np.float64), labels, lengths, cotangents, direction.astype(np.float64))
    _, exact, slope, change = solve(CPU, *wide, **options)

    assert (loss.dtype, gradient.dtype) == (computed, dtype)
    np.testing.assert_array_equal(loss, cost)  # alone or with a gradient: the same bits
    assert_costs(cost, exact, T)
    np.testing.assert_allclose(
        gradient.astype(np.float64), slope, rtol=ROUNDING[dtype.name], atol=tolerance
    )
    # A sum of errors like the gradient's; nothing is known of their signs.
    size = np.sqrt(max(acts.size // len(lengths), 1)) * np.abs(direction.astype(float)).max()
    np.testing.assert_allclose(derivative, change, rtol=10 * tolerance, atol=10 * tolerance * size)

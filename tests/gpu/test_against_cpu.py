# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU against those on the CPU, which other tests hold against an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_costs, needs_gpu

import jax_ctc

pytestmark = needs_gpu

LABELS = (0, 1, 2, 31, 32, 33, 63, 64, 65, 130, 255, 256, 300, 700, 1100)
CLASSES = (2, 5, 32, 33, 1000, 5001)


def problem(T, B, V, L, dtype=jnp.float32, scale=3.0, seed=0):
    """Ragged, with repeats, padding inside, and one sequence of each kind of wrong."""
    rng = np.random.default_rng(seed)
    acts = jnp.asarray(rng.normal(scale=scale, size=(T, B, V)), dtype)
    labels = rng.integers(1, V, (B, L)).astype(np.int32)
    labels[rng.random((B, L)) < 0.2] = -1
    lengths = rng.integers(T // 2, T + 1, B).astype(np.int32)
    lengths[0] = T
    return acts, labels, lengths


def solve(device, acts, labels, lengths, cotangents, time_major=True):
    @jax.jit  # where a bad value cannot raise
    def run(x, labels, lengths, ct):
        def cost(x):
            return jax_ctc.ctc(x, labels, lengths, time_major=time_major)

        value, pull = jax.vjp(cost, x)
        return value, pull(ct)[0], jax.jvp(cost, (x,), (x,))[1]

    given = jax.device_put((acts, labels, lengths, cotangents), device)
    return jax.tree.map(np.asarray, run(*given))


def compare(acts, labels, lengths, time_major=True, atol=None):
    computed = jnp.float64 if acts.dtype == jnp.float64 else jnp.float32
    cotangents = jnp.linspace(-1, 1, len(lengths)).astype(computed)
    args = (acts, labels, lengths, cotangents, time_major)
    on_gpu, on_cpu = (solve(jax.devices(name)[0], *args) for name in ("gpu", "cpu"))
    assert_costs(on_gpu[0], on_cpu[0], acts.shape[0])
    if atol is None:
        atol = {"float32": 1e-6, "float64": 1e-11, "bfloat16": 8e-3, "float16": 1e-3}[
            acts.dtype.name
        ]
    as_float = [x.astype(np.float64) for x in (on_gpu[1], on_cpu[1])]
    np.testing.assert_allclose(*as_float, rtol=0, atol=atol)
    np.testing.assert_allclose(on_gpu[2], on_cpu[2], rtol=1e-2 if atol > 1e-5 else 1e-4, atol=1e-3)


@pytest.mark.parametrize("L", LABELS)
@pytest.mark.parametrize("V", [5, 1000])
def test_any_number_of_labels(L, V):
    compare(*problem(2 * L + 20, 5, V, L))


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("time_major", [True, False], ids=["TBV", "BTV"])
def test_any_number_of_classes(V, dtype, time_major):
    acts, labels, lengths = problem(70, 7, V, 20, dtype)
    compare(acts if time_major else jnp.swapaxes(acts, 0, 1), labels, lengths, time_major)


def test_everything_that_can_be_wrong():
    acts, labels, lengths = problem(40, 9, 12, 10)
    acts = np.array(acts)
    acts[3, 0, 2], acts[4, 1, 3], acts[5, 2] = np.nan, np.inf, -np.inf
    acts[:, 3, 5] = -np.inf
    labels[4, 2], labels[5, 3] = 12, np.iinfo(np.int32).max
    lengths[6], lengths[7], lengths[8] = -1, 41, 3
    compare(jnp.asarray(acts), jnp.asarray(labels), jnp.asarray(lengths))


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_long_and_wide(scale):
    compare(*problem(5000, 3, 64, 100, scale=scale))


def test_more_elements_than_an_int32_counts():
    """2^31 logits in bfloat16: 4.3 GB, and the gradient in their place."""
    T, B, V = 512, 128, 1 << 15
    labels = np.tile(np.arange(1, 9, dtype=np.int32), (B, 1))
    lengths = np.full(B, T, np.int32)
    labels[-1] = V - 1 - np.arange(8)

    @jax.jit
    def last(key):
        acts = jax.random.normal(key, (T, B, V), jnp.bfloat16)
        cost, gradient = jax.value_and_grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())(acts)
        return cost, acts[:, -1:], gradient[:, -1:]

    cost, acts, gradient = last(jax.random.key(0))
    assert np.isfinite(float(cost))
    with jax.default_device(jax.devices("cpu")[0]):
        acts = jnp.asarray(np.asarray(acts))
        wanted = jax.grad(lambda x: jax_ctc.ctc(x, labels[-1:], lengths[-1:]).sum())(acts)
    np.testing.assert_allclose(
        np.asarray(gradient, np.float32), np.asarray(wanted, np.float32), rtol=0, atol=8e-3
    )

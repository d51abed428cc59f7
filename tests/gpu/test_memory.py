# SPDX-License-Identifier: Apache-2.0
"""Memory: what a program takes besides its arguments and results, and arrays past 2^32 elements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.results import assert_same_bits

from .problems import CPU, DEVICE, problem

T, B, L = 400, 16, 60


def total(acts, labels, lengths):
    return jax_ctc.ctc(acts, labels, lengths).sum()


def temporaries(function, V, **options):
    args = jax.device_put(problem(T, B, V, L), DEVICE)
    analysis = jax.jit(function, **options).lower(*args).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_the_loss_alone_takes_nothing_that_grows_with_classes():
    few, many = temporaries(total, 100), temporaries(total, 4000)
    assert many <= few + 4096
    assert many <= B * (T * (L + 1) * 8 + T * 32 + 8192)


def test_training_takes_as_much_as_there_are_labels():
    """States of both directions in scratch, 16 bytes a state pair and chunk of 8 frames, with room
    for chunks that are not full; the residuals."""
    few, many = (temporaries(jax.value_and_grad(total), V) for V in (100, 4000))
    assert many <= few + 4096
    assert many <= B * T * (L + 1) * (8 + 2 * 2 + 4) + B * T * 64 + B * 65536


@pytest.mark.parametrize("V", [30, 1000], ids=["dense", "compact"])
def test_the_gradient_takes_the_place_of_donated_acts(V):
    acts, labels, lengths = jax.device_put(problem(T, B, V, L), DEVICE)
    both = jax.value_and_grad(total)
    expected = jax.tree.map(np.asarray, jax.jit(both)(acts, labels, lengths))
    donating = jax.jit(both, donate_argnums=0)
    analysis = donating.lower(acts, labels, lengths).compile().memory_analysis()
    assert analysis.alias_size_in_bytes >= acts.nbytes
    jax.tree.map(assert_same_bits, donating(acts, labels, lengths), expected)
    assert acts.is_deleted()


def test_more_elements_than_32_bits_count():
    """2^32 and more logits in bfloat16: 9 GB, and as much again for the gradient."""
    limit = (DEVICE.memory_stats() or {}).get("bytes_limit", 0)
    if jax.default_backend() != "gpu" or limit < 45e9:
        pytest.skip(f"needs 45 GB of a GPU's memory, {limit / 1e9:.0f} GB may be taken")
    T, B, V = 512, 272, 1 << 15
    labels = np.tile(np.arange(1, 9, dtype=np.int32), (B, 1))
    labels[-1] = V - 1 - np.arange(8)
    lengths = np.full(B, T, np.int32)

    def row(key, b):
        return 2 * jax.random.normal(jax.random.fold_in(key, b), (T, V), jnp.bfloat16)

    @jax.jit
    def ends(key):
        def put(b, acts):  # a sequence at a time, in place
            return jax.lax.dynamic_update_index_in_dim(acts, row(key, b), b, 1)

        acts = jax.lax.fori_loop(0, B, put, jnp.zeros((T, B, V), jnp.bfloat16))
        kept = jnp.stack([acts[:, b] for b in (0, B // 2, B - 1)], 1)
        cost, pull = jax.vjp(lambda x: jax_ctc.ctc(x, labels, lengths), acts)
        gradient = pull(jnp.ones_like(cost))[0]
        return cost, kept, jnp.stack([gradient[:, b] for b in (0, B // 2, B - 1)], 1)

    cost, acts, gradient = jax.tree.map(np.asarray, ends(jax.random.key(0)))
    assert np.isfinite(cost).all()
    some = np.array([0, B // 2, B - 1])
    acts = jax.device_put(acts.astype(np.float32), CPU)
    expected, slope = jax.vjp(lambda x: jax_ctc.ctc(x, labels[some], lengths[some]), acts)
    np.testing.assert_allclose(cost[some], expected, rtol=1e-6)
    slope = np.asarray(slope(jnp.ones_like(expected))[0])
    np.testing.assert_allclose(gradient.astype(np.float32), slope, rtol=2**-8, atol=1e-6)

# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of edges that are about size: empty axes, huge costs, huge arrays."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.programs import assert_solved, cost_and_gradient
from support.results import COMPILED, assert_costs, assert_gradient
from support.runs import only_all, sampled, sweep


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("V", [1, 2, 9])
@pytest.mark.parametrize("L", [0, 1, 3])
@pytest.mark.parametrize("B", [0, 2])
@pytest.mark.parametrize("T", [0, 4])
@sampled(8)
def test_every_axis_may_be_empty(T, B, L, V, dtype):
    acts = np.random.default_rng(0).normal(size=(T, B, V)).astype(dtype)
    labels = np.full((B, L), min(1, V - 1) or -1)
    lengths = np.full(B, T)
    cost, gradient = cost_and_gradient(acts, labels, lengths)
    truth = oracle.solve(acts, labels, lengths)
    assert_costs(jax_ctc.ctc(acts, labels, lengths), truth.cost, T)
    assert cost.shape == (B,)
    assert cost.dtype == gradient.dtype == dtype
    assert_costs(cost, truth.cost, T)
    assert_gradient(gradient, truth.gradient)


@pytest.mark.parametrize("T", [0, 4])
@pytest.mark.parametrize("L", [0, 2])
def test_one_sequence_may_have_empty_axes(T, L):
    acts, labels = np.zeros((T, 3), np.float32), np.arange(1, L + 1)
    cost, gradient = jax.value_and_grad(lambda acts: jax_ctc.ctc(acts, labels, T))(acts)
    truth = oracle.solve(acts[:, None], labels[None], [T])
    assert_costs(cost, truth.cost[0], T)
    assert_gradient(gradient, truth.gradient[:, 0])


def test_a_batch_of_nothing_maps():
    costs = jax.vmap(jax_ctc.ctc)(
        np.zeros((0, 5, 2, 3)), np.ones((0, 2, 2), int), np.ones((0, 2), int)
    )
    assert costs.shape == (0, 2)


@pytest.mark.parametrize("V", [3, 40])
@pytest.mark.parametrize("nats", [1e3, 3e4, 3e5, 3e6])
def test_one_frame_may_cost_a_lot(V, nats):
    acts = np.random.default_rng(0).normal(size=(9, 1, V)).astype(np.float32)
    acts[3, 0, -1] += nats
    assert_solved(acts, np.ones((1, 4), int), np.array([9]))


@pytest.mark.parametrize("V", [3, 40])
@pytest.mark.parametrize("most", [-3e38, -2e7, 99_999, 100_001, 3e7, 3e38])
def test_all_logits_of_a_frame_may_be_of_any_size(most, V):
    """Frame 2 has logits that differ by a few nats, or by nothing where an ulp is more."""
    acts = np.random.default_rng(0).normal(size=(9, 1, V)).astype(np.float32)
    steps = np.random.default_rng(1).integers(0, 3, V) if abs(most) < 1e8 else np.zeros(V)
    acts[2, 0] = most - steps * np.spacing(np.float32(abs(most)))
    assert_solved(acts, np.ones((1, 4), int), np.array([9]))


@pytest.mark.parametrize("V", [3, 40])
@pytest.mark.parametrize("nats", [600, 3_900, 20_000, 90_000])
@sampled(2)
def test_ten_thousand_frames_may_cost_forty_million_nats(V, nats):
    acts = np.random.default_rng(0).normal(size=(10_000, 1, V)).astype(np.float32)
    acts[:, 0, -1] += nats
    given = acts, np.ones((1, 4), int), np.array([10_000])
    cost, gradient = cost_and_gradient(*given)
    truth = oracle.solve(*given)
    assert truth.cost > 600 * 9_990
    if truth.cost > 4e7 and np.isinf(cost):  # as the contract allows, up there
        assert not np.asarray(gradient).any()
    else:
        assert_costs(cost, truth.cost, 10_000)
        if COMPILED:
            assert_gradient(gradient, truth.gradient)


def untouched_zeros(shape, dtype):
    """Zeros on memory that the system gives out page by page, as each is written."""
    size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64  # XLA copies what does not lie on a boundary of 64 bytes
    return memory[start : start + size].view(dtype).reshape(shape)


def free_memory():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="the fallback may hold several arrays as large as acts")
@pytest.mark.skipif(
    not hasattr(os, "sysconf") or free_memory() < 8, reason="needs 8 GiB of free memory"
)
@pytest.mark.parametrize("time_major", sweep([True, False], [True]))
@only_all
def test_acts_may_have_more_than_two_to_the_31_elements(time_major):
    """The last frame of the last sequence lies beyond any 32-bit offset."""
    T, B, V = (64, 33, 2**20) if time_major else (33, 64, 2**20)
    acts = untouched_zeros((64, 33, V), jnp.bfloat16)
    acts[-1, -1, -1] = 100
    acts = jax.device_put(acts, may_alias=True)
    labels = jnp.full((B, 1), V - 1).at[:-1].set(-1)
    lengths = jnp.zeros(B, int).at[-1].set(T)

    def total(acts):
        return jax_ctc.ctc(acts, labels, lengths, time_major=time_major).sum()

    # Only the last sequence has frames. They are uniform but for the last, a certain label; before
    # it stand blanks, then labels.
    cost, gradient = jax.value_and_grad(total)(acts)
    np.testing.assert_allclose(cost, (T - 1) * np.log(V) - np.log(T), rtol=1e-6)
    row = gradient[(T - 2, -1) if time_major else (-1, T - 2)]
    np.testing.assert_allclose(row[jnp.array([0, -1])].astype(float), [-1 / T, 1 / T - 1], 1e-2)
    np.testing.assert_allclose(gradient[-1, -1, -3:].astype(float), 0, atol=1e-6)

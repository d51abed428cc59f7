# SPDX-License-Identifier: Apache-2.0
"""Costs on few classes (hypotheses, V over devices): what is no number, products, and bits."""

import itertools
from functools import cache, partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.results import TOLERANCE, assert_costs, assert_gradient, assert_same_bits
from support.runs import sampled, sweep

T, B, V, L, K = 6, 3, 24, 3, 2


def over_labels(acts, labels, lengths, **options):
    return jax.vmap(partial(jax_ctc.ctc, **options), (None, 0, None))(acts, labels, lengths)


def over_devices(acts, labels, lengths, time_major=True, **options):
    mapped = jax.shard_map(
        partial(jax_ctc.ctc, vocab_axis="model", time_major=time_major, **options),
        mesh=Mesh(np.array(jax.devices()[:8]), ("model",)),
        in_specs=(P(None, None, "model"), P(), P()),
        out_specs=P(),
    )
    return jax.vmap(mapped, (None, 0, None))(acts, labels, lengths)


needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
WAYS = [over_labels, pytest.param(over_devices, marks=needs_devices)]
every_way = pytest.mark.parametrize("f", WAYS)


@cache
def programs(f, time_major, zero_infinity):
    """Cost, and the gradient of the sum over hypotheses; of each alone."""
    ctc = partial(f, time_major=time_major, zero_infinity=zero_infinity)

    @jax.jit
    def evaluated(acts, labels, lengths):
        cost, back = jax.vjp(lambda acts: ctc(acts, labels, lengths), acts)
        squares = jax.vjp(lambda acts: ctc(acts, labels, lengths) ** 2, acts)[1]
        return cost, back(jnp.ones_like(cost))[0], squares(jnp.ones_like(cost))[0]

    return evaluated


@every_way
@pytest.mark.parametrize(
    ("zero_infinity", "time_major"),
    sweep(list(itertools.product([False, True], repeat=2)), [(False, True), (True, False)]),
)
@sampled(2)
def test_a_frame_without_a_class_of_the_sequence_costs_infinity(f, zero_infinity, time_major):
    acts = np.zeros((T, B, V), np.float32)
    acts[1, 0, [0, 1, 3]] = -np.inf
    labels = np.array([[[1, 3, -1], [1, 2, 2], [4, -1, -1]]] * K, np.int32)
    labels[1, 0] = 5  # needs a frame more than are left, and has one class in frame 1
    lengths = np.array([3, T, T], np.int32)
    given = acts if time_major else acts.swapaxes(0, 1)
    cost, gradient, squares = programs(f, time_major, zero_infinity)(given, labels, lengths)
    truth = [oracle.solve(acts, row, lengths) for row in labels]
    expected = np.stack([x.cost for x in truth])
    assert np.isinf(expected[:, 0]).all()
    assert_costs(cost, np.where(np.isinf(expected) & zero_infinity, 0, expected), T)
    gradient, squares = (x if time_major else x.swapaxes(0, 1) for x in (gradient, squares))
    assert not gradient[:, 0].any()
    assert not squares[:, 0].any()
    assert_gradient(gradient, sum(x.gradient for x in truth), K)


def test_an_infinite_cost_has_no_derivative_of_any_order():
    acts = np.zeros((3, 1, 40), np.float32)
    acts[1, 0, [0, 1]] = -np.inf
    labels, lengths = np.array([[[1]]]), np.array([3])
    u = np.random.default_rng(0).normal(size=acts.shape).astype(np.float32)

    def slope(f):
        return lambda acts: jax.jvp(f, (acts,), (u,))[1]

    @jax.jit
    def derivatives(acts):
        gradient = jax.grad(lambda acts: over_labels(acts, labels, lengths).sum())
        return gradient(acts), slope(gradient)(acts), slope(slope(gradient))(acts)

    for derivative in derivatives(acts):
        assert not np.asarray(derivative).any()


@st.composite
def batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    acts = rng.choice([0, 1, -2, 3.5, -40, 200], (T, B, V)).astype(np.float32)
    labels = rng.integers(1, V, (K, B, L), dtype=np.int32)
    labels[rng.random(labels.shape) < 0.2] = -1
    labels[rng.random(labels.shape) < draw(st.sampled_from([0, 0.1]))] = V + 1
    lengths = rng.integers(0, T + 1, B, dtype=np.int32)
    for b in range(B):  # few of its own classes alive in some frames
        own = np.unique([0, *labels[:, b].ravel()])
        own = own[(own >= 0) & (own < V)]
        for t in range(T):
            if rng.random() < 0.3:
                acts[t, b, own[rng.random(own.size) < 0.8]] = -np.inf
    if draw(st.booleans()):
        acts[rng.integers(T), rng.integers(B)] = draw(st.sampled_from([-np.inf, np.nan, np.inf]))
    return acts, labels, lengths


@every_way
@hypothesis.settings(max_examples=25)
@hypothesis.given(batch=batches())
def test_any_batch_costs_what_the_oracle_says(f, batch):
    acts, labels, lengths = batch
    cost, gradient, _ = programs(f, True, False)(acts, labels, lengths)
    truth = [oracle.solve(acts, row, lengths) for row in labels]
    assert_costs(cost, np.stack([x.cost for x in truth]), T)
    assert_gradient(gradient, sum(x.gradient for x in truth), K)


@every_way
@pytest.mark.parametrize("dtype", sweep(["float32", "bfloat16", "float16"], ["float32"]))
@sampled(1)
def test_products_keep_the_digits_of_a_direction_with_an_offset(f, dtype):
    rng = np.random.default_rng(0)
    acts = jnp.asarray(2 * rng.normal(size=(30, B, V)), dtype)
    u = jnp.asarray(rng.normal(size=acts.shape) + 1000, dtype)
    labels = rng.integers(1, V, (K, B, L), dtype=np.int32)
    lengths = np.array([30, 30, 25], np.int32)
    exact, along = (np.asarray(x, np.float64) for x in (acts, u))
    along -= 1000  # which changes no product
    expected = sum(oracle.hessian_vector(exact, row, lengths, along) for row in labels)

    @jax.jit
    def product(acts, u):
        gradient = jax.grad(lambda acts: f(acts, labels, lengths).sum())
        return jax.jvp(gradient, (acts,), (u,))[1]

    actual = np.asarray(product(acts, u), np.float64)
    scale = max(np.abs(expected).max(), np.abs(along).max())
    eps = float(jnp.finfo(dtype).eps)
    # Two roundings of halves: sums over hypotheses are of halves.
    tolerance = 2 * TOLERANCE[np.dtype("float32")] * scale + (
        0 if dtype == "float32" else 2 * eps * np.abs(expected)
    )
    assert (np.abs(actual - expected) <= tolerance).all()


@every_way
@sampled(1)
def test_the_cost_has_the_bits_that_it_has_with_a_derivative(f):
    @jax.jit
    def alone(acts, labels, lengths):
        return f(acts, labels, lengths)

    @jax.jit
    def with_gradient(acts, labels, lengths):
        cost, back = jax.vjp(lambda acts: f(acts, labels, lengths), acts)
        return cost, back(jnp.ones_like(cost))[0]

    @jax.jit
    def with_slope(acts, labels, lengths):
        return jax.jvp(lambda acts: f(acts, labels, lengths), (acts,), (acts,))[0]

    for seed in range(6):
        rng = np.random.default_rng(seed)
        acts = (3 * rng.normal(size=(20, B, 48))).astype(np.float32)
        given = acts, rng.integers(1, 48, (3, B, 4), dtype=np.int32), np.array([20, 20, 17])
        cost = alone(*given)
        assert_same_bits(with_gradient(*given)[0], cost)
        assert_same_bits(with_slope(*given), cost)

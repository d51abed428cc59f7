# SPDX-License-Identifier: Apache-2.0
"""Hessian-vector products in float32 where logits, directions or cotangents are large or small."""

import jax
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.results import TOLERANCE


def product(acts, direction, labels, lengths, cotangent=1.0):
    gradient = jax.grad(lambda acts: cotangent * jax_ctc.ctc(acts, labels, lengths).sum())
    return np.asarray(jax.jvp(gradient, (acts,), (direction,))[1], float)


def assert_product(acts, direction, labels, cotangent=1.0):
    """Relative to the largest product, or to the largest change of the direction in a frame."""
    acts, direction = np.float32(acts), np.float32(direction)
    lengths = np.full(acts.shape[1], len(acts))
    size = np.abs(direction).max()  # the oracle takes differences
    expected = oracle.hessian_vector(acts, labels, lengths, direction.astype(float) / size)
    actual = product(acts, direction, labels, lengths, np.float32(cotangent)) / size / cotangent
    changes = np.abs(direction - direction.mean(-1, keepdims=True)).max() / size
    allowed = 5 * TOLERANCE[np.dtype("float32")] * max(np.abs(expected).max(), changes)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("V", [3, 8, 300])
@pytest.mark.parametrize("size", [1, 1e5, 1e30])
@pytest.mark.parametrize("nats", [50, 79, 90])
def test_a_label_far_above_all_others(V, size, nats):
    acts, direction = np.zeros((4, 1, V)), np.zeros((4, 1, V))
    acts[..., 1], direction[..., 1] = nats, size
    acts[2, 0, 1] = 0
    assert_product(acts, direction, np.array([[1]]))


@pytest.mark.parametrize("V", [3, 8, 300])
@pytest.mark.parametrize("size", [1, 1e-3, 1e-6, 1e-20])
@pytest.mark.parametrize("nats", [50, 85, 90])
def test_a_label_far_below_all_others(V, size, nats):
    acts = np.zeros((4, 1, V))
    acts[..., 1], acts[..., 2] = -nats, -1
    direction = size * np.random.default_rng(0).normal(size=acts.shape)
    assert_product(acts, direction, np.array([[1]]))


@pytest.mark.parametrize("V", [3, 8, 300])
@pytest.mark.parametrize("cotangent", [1, 1e-5, 1e-8, 1e8])
def test_a_small_cotangent_and_the_blank_far_below(V, cotangent):
    acts = np.zeros((4, 1, V))
    acts[..., 1], acts[..., 2] = 79, 78
    direction = np.random.default_rng(0).normal(size=acts.shape)
    assert_product(acts, direction, np.array([[1]]), cotangent)


@pytest.mark.parametrize("V", [28, 100, 300])  # dense; compact, through a table; row by row
@pytest.mark.parametrize("spread", [1, 8, 20])
@pytest.mark.parametrize("v", [0, 3])
def test_a_direction_that_moves_one_class_by_much(V, spread, v):
    rng = np.random.default_rng(1)
    acts, direction = spread * rng.normal(size=(250, 1, V)), rng.normal(size=(250, 1, V))
    direction[..., v] += 1000
    assert_product(acts, direction, rng.integers(1, V, (1, 80)))


@pytest.mark.parametrize("V", [5, 8, 9, 11, 13, 16, 17, 19])
def test_every_class_counts_in_a_tangent_of_few_classes(V):
    """The last vector of a row begins before the end of the one before it."""
    T = 2 * V + 4
    acts = np.random.default_rng(V).normal(size=(T, 1, V)).astype(np.float32)
    labels = (np.arange(V + 1)[None] % (V - 1)) + 1
    cost = lambda acts: jax_ctc.ctc(acts, labels, [T]).sum()  # noqa: E731
    of_classes = oracle.solve(acts, labels, [T]).gradient.sum((0, 1))
    for v in range(V):
        direction = np.zeros_like(acts)
        direction[..., v] = 1
        np.testing.assert_allclose(
            jax.jvp(cost, (acts,), (direction,))[1], of_classes[v], rtol=1e-5, atol=1e-5
        )

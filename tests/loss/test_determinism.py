# SPDX-License-Identifier: Apache-2.0
"""Same inputs, same bits: on every run, on any number of threads, in any batch."""

from functools import partial

import jax
import numpy as np
import pytest

import jax_ctc
from support.results import assert_same_bits

pytestmark = pytest.mark.slow

T, B, L = 120, 12, 40


@pytest.fixture(params=[30, 300], ids=["dense", "compact"])
def batch(request):
    rng = np.random.default_rng(0)
    acts = (3 * rng.normal(size=(T, B, request.param))).astype(np.float32)
    labels = rng.integers(-5, request.param, (B, L))
    lengths = rng.integers(T // 2, T + 1, B)
    weights, direction = rng.normal(size=B), rng.normal(size=acts.shape)
    labels = np.where(labels == 0, 1, labels)
    return acts, labels, lengths, weights.astype(np.float32), direction.astype(np.float32)


@partial(jax.jit, static_argnames="num_threads")
def evaluate(acts, labels, lengths, weights, direction, **options):
    """Costs, gradient and Hessian-vector product."""
    ctc = partial(jax_ctc.ctc, labels=labels, lengths=lengths, **options)
    gradient = jax.grad(lambda acts: (ctc(acts) * weights).sum())
    return ctc(acts), *jax.jvp(gradient, (acts,), (direction,))


def assert_same(results, expected):
    for result, value in zip(results, expected, strict=True):
        assert_same_bits(result, value)


def test_every_run_gives_the_same_bits(batch):
    expected = evaluate(*batch)
    for _ in range(10):
        assert_same(evaluate(*batch), expected)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 16])
def test_threads_do_not_change_a_bit(batch, num_threads):
    assert_same(evaluate(*batch, num_threads=num_threads), evaluate(*batch))


def test_a_batch_gives_the_bits_of_batches_of_one(batch):
    acts, labels, lengths, weights, direction = batch
    costs, gradient, _ = evaluate(*batch)
    for b in range(B):
        one = slice(b, b + 1)
        results = evaluate(acts[:, one], labels[one], lengths[one], weights[one], direction[:, one])
        assert_same(results[:2], (costs[one], gradient[:, one]))

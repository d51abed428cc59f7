# SPDX-License-Identifier: Apache-2.0
"""Same inputs, same bits: on every run, on any number of threads, in any batch."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.results import assert_same_bits
from support.runs import sampled

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


NAMED = {
    "ctc": jax_ctc.ctc,
    "log-scores": partial(jax_ctc.ctc, softmax=False),
    "ctc_align": jax_ctc.ctc_align,
    "ctc_linear": lambda acts, *rest, **options: jax_ctc.ctc_linear(
        acts, np.zeros((acts.shape[-1], 9), np.float32), *rest, **options
    ),
    "greedy": lambda acts, _, lengths, **o: jax_ctc.ctc_greedy_decode(acts, lengths, **o),
    "beam": lambda acts, _, lengths, **o: jax_ctc.ctc_beam_search_decode(acts, lengths, **o),
}


@pytest.mark.parametrize("function", NAMED.values(), ids=NAMED)
def test_the_number_of_threads_is_in_the_program(function):
    """Results do not show it, because they have the same bits."""
    labels, lengths = np.array([[1, 2], [3, 1]]), np.array([6, 5])
    program = jax.make_jaxpr(lambda x: function(x, labels, lengths, num_threads=3))
    assert re.search(r"threads=3\b", str(program(np.zeros((6, 2, 8), np.float32))))


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


@pytest.fixture(params=["float32", "bfloat16", "float64"])
def few_wide(request):
    """Sequences so few, and rows so wide, that threads share the rows before the lattices. Three
    are alike but for their labels, of which one has gaps. The others have a row without a softmax,
    too few frames, a bad label, too many frames, and none."""
    T, V, L = 640, 1030, 30
    rng = np.random.default_rng(1)
    acts = 3 * rng.normal(size=(T, 8, V))
    acts[7, 3, 5] = np.nan
    labels = rng.integers(1, V, (8, L))
    labels[0, ::3] = -1
    labels[5, 4] = V + 9
    lengths = [T, T, T, T - 3, L - 1, T, T + 1, 0]
    return jnp.asarray(acts, request.param), jnp.asarray(labels), jnp.asarray(lengths)


def one_thread_gives_the_same(f, acts, labels, lengths):
    for batch in slice(0, 3), slice(3, 5), slice(5, 8):
        rows = acts[:, batch], labels[batch], lengths[batch]
        expected = jax.jit(partial(f, num_threads=1))(*rows)
        for num_threads in (2, 5):
            results = jax.jit(partial(f, num_threads=num_threads))(*rows)
            assert_same(jax.tree.leaves(results), jax.tree.leaves(expected))


def test_threads_that_share_wide_rows_do_not_change_a_bit(few_wide):
    def cost_and_derivatives(acts, labels, lengths, **options):
        ctc = partial(jax_ctc.ctc, labels=labels, lengths=lengths, **options)
        costs, pull = jax.vjp(ctc, acts)
        directions = jnp.sin(jnp.arange(acts.size)).reshape(acts.shape).astype(acts.dtype)
        along = jax.jvp(ctc, (acts,), (directions,))[1]
        return costs, pull(jnp.ones_like(costs))[0], along

    one_thread_gives_the_same(cost_and_derivatives, *few_wide)


@pytest.mark.parametrize("star", [False, True], ids=["labels", "star"])
@sampled(3)
def test_threads_that_share_wide_rows_do_not_change_an_alignment(few_wide, star):
    acts, labels, lengths = few_wide
    V = acts.shape[2]
    if star:
        labels = labels.at[:3, 4].set(V)
    align = partial(jax_ctc.ctc_align, star=V if star else None)
    one_thread_gives_the_same(align, acts, labels, lengths)

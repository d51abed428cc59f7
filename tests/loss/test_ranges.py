# SPDX-License-Identifier: Apache-2.0
"""Logits on both sides of the limits within which the lattice is computed in doubles.

docs/ctc.md, section 3: a label is at most 87 nats below the blank, no logit is more than 80 nats
above it, and neighbouring pairs differ by at most 100 powers of 2. Beyond these limits the kernels
take another way, with the same promise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.programs import assert_solved, cost_and_gradient
from support.results import assert_costs, assert_gradient, assert_same_bits

T, B, L = 61, 3, 9
LENGTHS = np.array([T, T - 2, T - 21])
# Through a table, through one of logits alone (V > 3 L), row by row. With AVX-512 V = 20 is in
# registers.
CLASSES = [5, 20, 60, 300]
NATS = [40, 79.5, 80.5, 86, 89, 130, 1000, 2e5]


def batch(V, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, min(V, 7), (B, L))
    labels[1, 3:5] = -1
    return rng, rng.normal(size=(T, B, V)), labels


def solve(acts, labels, dtype=np.float32):
    return assert_solved(np.asarray(acts, dtype), labels, LENGTHS)


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("nats", NATS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_blank_far_from_all_others_in_some_frames(V, nats, sign):
    rng, acts, labels = batch(V)
    acts[rng.random((T, B)) < 0.2, 0] += sign * nats
    solve(acts, labels)


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("nats", NATS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_label_far_from_all_others(V, nats, sign):
    _, acts, labels = batch(V)
    acts[..., 2] += sign * nats
    solve(acts, labels)


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("nats", NATS)
def test_a_class_that_is_no_label_far_above(V, nats):
    _, acts, labels = batch(V)
    acts[5:30, :, V - 1] += nats
    solve(acts, np.where(labels == V - 1, 1, labels))


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("nats", [20, 45, 80])
def test_the_best_class_of_each_frame_is_any_one(V, nats):
    """Alignments through wrong classes cost so much that pairs lie far apart."""
    rng, acts, labels = batch(V)
    np.put_along_axis(acts, rng.integers(V, size=(T, B, 1)), nats, axis=2)
    solve(acts, labels)


@pytest.mark.parametrize("nats", [-84, -50, 76])
@pytest.mark.parametrize("blocks", ["one", "several"])
def test_numbers_that_grow_or_shrink_in_every_frame(nats, blocks):
    """So that units change again and again, in one block of stored states, and in several."""
    frames, labels_count = (200, 20) if blocks == "one" else (700, 150)
    rng = np.random.default_rng(1)
    acts = rng.normal(size=(frames, 2, 30)).astype(np.float32)
    acts[..., 0] -= nats
    labels = rng.integers(1, 30, (2, labels_count))
    assert_solved(acts, labels, np.array([frames, frames - 3]))


@pytest.mark.parametrize("V", [2, 5])
def test_products_that_count_in_units_that_are_far_too_small(V):
    """A label that gains 27 to 37 powers of 2 on the blank in each frame, from both ends.

    Its alpha and its beta have grown by 2^430 each in the middle, in the units of the ends, whose
    product is then 2^-860 of the total. Such units are taken for 0 if it is safe (group_sweep.h).
    """
    nats, lengths = np.meshgrid(np.arange(19, 26, 0.5), np.arange(24, 44))
    acts = np.zeros((44, nats.size, V), np.float32)
    acts[..., 1] = nats.ravel()
    assert_solved(acts, np.ones((nats.size, 1), int), lengths.ravel())


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
@pytest.mark.parametrize("v", [0, 2])
def test_the_blank_or_a_label_is_no_number(V, value, v):
    _, acts, labels = batch(V)
    acts[7, 0, v] = acts[T - 1, 1, v] = value
    solve(acts, labels)


@pytest.mark.parametrize("V", CLASSES)
def test_a_sequence_out_of_range_changes_no_other_and_the_loss_has_the_same_bits(V):
    _, acts, labels = batch(V)
    acts[4, 1, 0] -= 95
    acts = acts.astype(np.float32)
    cost, gradient = cost_and_gradient(acts, labels, LENGTHS)
    assert_same_bits(jax.jit(jax_ctc.ctc)(acts, labels, LENGTHS), cost)
    for b in range(B):
        alone = cost_and_gradient(acts[:, b : b + 1], labels[b : b + 1], LENGTHS[b : b + 1])
        assert_same_bits(alone[0], cost[b : b + 1])
        assert_same_bits(alone[1], gradient[:, b : b + 1])


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("nats", [70, 95])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(V, nats, dtype):
    _, acts, labels = batch(V)
    acts[3:9, :, 0] -= nats
    acts = jnp.asarray(acts, dtype)
    truth = oracle.solve(np.asarray(acts, float), labels, LENGTHS)
    cost = jax_ctc.ctc(acts, labels, LENGTHS)
    assert_costs(cost, truth.cost, T)


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("nats", [70, 85, 95])
@pytest.mark.parametrize("sign", [-1, 1])
def test_log_scores(V, nats, sign):
    """Of logits less their log-normaliser the costs and occupancies are those of the logits."""
    _, acts, labels = batch(V)
    acts[3:9, :, 0] += sign * nats
    scores = acts - np.log(np.exp(acts - acts.max(-1, keepdims=True)).sum(-1, keepdims=True))
    scores = (scores - acts.max(-1, keepdims=True)).astype(np.float32)
    truth = oracle.solve(scores.astype(float), labels, LENGTHS)
    probabilities = np.exp(scores.astype(float))
    norms = probabilities.sum(-1, keepdims=True)
    in_use = np.arange(T)[:, None] < LENGTHS
    cost, gradient = jax.value_and_grad(
        lambda x: jnp.sum(jax_ctc.ctc(x, labels, LENGTHS, softmax=False))
    )(scores)
    expected = truth.cost - np.where(in_use, np.log(norms[..., 0]), 0).sum(0)
    np.testing.assert_allclose(cost, expected.sum(), rtol=1e-6)
    occupancies = np.where(in_use[..., None], probabilities / norms, 0) - truth.gradient
    assert_gradient(gradient, -occupancies)


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("offset", [-99_999, -99_950, -99_900, -99_800, 99_000, 99_999])
@pytest.mark.parametrize("value", [0, -30_000, -np.inf])
def test_all_logits_near_the_largest_that_vector_code_takes(V, offset, value):
    """Around -1e5 the vector code bounds logits, and a bound must not look like a logit."""
    acts = np.full((T, B, V), offset, float)
    acts[3:50, :, 2] += value
    solve(acts, batch(V)[2])


def states_that_differ_by_more_than_a_double_holds():
    """One label of eight is by turns far above and far below all others."""
    powers = [(8, 0, 0), (24, 65.5, 0), (4, -5, 0), (8, -110, 0), (4, -72.5, 114), (24, 45.1, 0)]
    frames = [[0, 0, second, 0, 0, 0, 0, 0, last] for n, last, second in powers for _ in range(n)]
    return np.array(frames) * np.log(2)


@pytest.mark.parametrize("softmax", [True, False])
def test_the_smaller_state_of_a_pair_is_not_lost(softmax):
    acts = states_that_differ_by_more_than_a_double_holds().astype(np.float32)[:, None]
    labels, lengths = np.arange(1, 9)[None], np.array([len(acts)])
    truth = oracle.solve(acts.astype(float), labels, lengths)
    cost = jax_ctc.ctc(acts, labels, lengths, softmax=softmax)
    top = acts.max(-1, keepdims=True).astype(float)
    norm = np.log(np.exp(acts - top).sum(-1)) + top[..., 0]
    np.testing.assert_allclose(cost, truth.cost - (0 if softmax else norm.sum()), rtol=1e-6)


def test_log_scores_that_a_label_leads_by_much_in_most_frames():
    """The same rounding error in every frame would add up."""
    frames, every = 4000, 8
    acts = np.full((frames, 1, 32), -30, np.float32)
    labels = 1 + np.arange(frames // every)[None] % 31
    for t in range(frames):
        acts[t, 0, labels[0, t // every]] = -1e-5
        acts[t, 0, 0] = -6.0404263
    acts[::every] = -30
    acts[::every, 0, 0] = -1e-5
    cost = jax_ctc.ctc(acts, labels, np.array([frames]), softmax=False)
    truth = oracle.solve(acts.astype(float), labels, np.array([frames]))
    norm = np.log(np.exp(acts.astype(float)).sum(-1)).sum()
    np.testing.assert_allclose(cost, truth.cost - norm, atol=1e-5)
    # The ratio of the largest logit to the blank has the rounding that the label's has.
    as_logits = jax_ctc.ctc(acts, labels, np.array([frames]))
    np.testing.assert_allclose(as_logits, truth.cost, atol=1e-5)


@pytest.mark.parametrize("V", [300, 1500])
@pytest.mark.parametrize("base", [-2e4, -1e8, -1e30])
def test_wide_rows_may_lie_far_below_zero(V, base):
    acts = np.full((3, 1, V), base, np.float32)
    even = jax_ctc.ctc(acts, [[5]], [3])
    np.testing.assert_allclose(even, [3 * np.log(V) - np.log(6)], rtol=1e-5)  # of six paths
    acts[..., 5] *= np.float32(0.99)
    np.testing.assert_array_equal(jax_ctc.ctc(acts, [[5]], [3]), [0])

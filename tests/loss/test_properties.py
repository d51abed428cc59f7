# SPDX-License-Identifier: Apache-2.0
"""What holds for any batch whatever: drawn ones, from a few shapes so that little is compiled."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from support import oracle
from support.programs import cost_and_gradient
from support.results import assert_costs, assert_gradient, assert_same_bits

B = 3


@st.composite
def batches(draw, garbage=True):
    """acts, labels, lengths, blank: ragged, padded anywhere, with garbage after the lengths."""
    T, L, V = draw(st.sampled_from([(1, 2, 3), (6, 3, 2), (6, 3, 9), (13, 5, 4), (13, 4, 17)]))
    blank = draw(st.sampled_from([0, V - 1]))
    entry = st.integers(-2, V - 1).filter(lambda k: k != blank)
    labels = draw(arrays.arrays(np.int32, (B, L), elements=entry))
    lengths = draw(arrays.arrays(np.int32, B, elements=st.integers(0, T)))
    spread = draw(st.sampled_from([0, 1, 10, 100, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    acts = (spread * rng.normal(size=(T, B, V))).astype(np.float32)
    if garbage:
        after = np.arange(T)[:, None] >= lengths
        acts[after] = draw(st.sampled_from([0, np.nan, np.inf, -np.inf, 1e38]))
    return acts, labels, lengths, blank


def solved(acts, labels, lengths, blank):
    return cost_and_gradient(acts, labels, lengths, blank=blank)


def assert_right(result, acts, labels, lengths, blank):
    truth = oracle.solve(acts, labels, lengths, blank=blank)
    assert_costs(result[0], truth.cost, len(acts))
    assert_gradient(result[1], truth.gradient)


@given(batches())
def test_cost_and_gradient_are_the_oracle_s(batch):
    assert_right(solved(*batch), *batch)


@given(batches(), st.permutations(range(B)))
def test_sequences_do_not_depend_on_their_place(batch, order):
    acts, labels, lengths, blank = batch
    cost, gradient = solved(*batch)
    moved = solved(acts[:, order], labels[order], lengths[order], blank)
    assert_same_bits(moved[0], cost[jnp.array(order)])
    assert_same_bits(moved[1], gradient[:, jnp.array(order)])


@given(batches(garbage=False), st.integers(-1000, 1000))
def test_a_shift_of_a_whole_frame_changes_nothing(batch, shift):
    """A multiple of 1/8 up to 1000 is added without rounding to logits rounded to 1/8."""
    acts, *rest = batch
    acts = np.round(8 * acts) / 8
    shifts = shift * np.cos(np.arange(len(acts)))[:, None, None]
    shifted = acts + (np.round(8 * shifts) / 8).astype(np.float32)
    assert_right(solved(shifted, *rest), acts, *rest)


@given(batches(), st.randoms(use_true_random=False))
def test_padding_may_stand_anywhere_in_the_row(batch, random):
    acts, labels, lengths, blank = batch
    moved = np.empty_like(labels)
    for b, row in enumerate(labels):
        kept = iter(row[row >= 0])
        places = sorted(random.sample(range(len(row)), int((row >= 0).sum())))
        moved[b] = [next(kept) if i in places else -random.randint(1, 9) for i in range(len(row))]
    np.testing.assert_array_equal(solved(acts, moved, lengths, blank)[0], solved(*batch)[0])


@given(batches())
def test_a_frame_that_is_surely_blank_costs_nothing_at_the_end(batch):
    acts, labels, lengths, blank = batch
    free = np.full_like(acts[:1], -np.inf)
    free[:, :, blank] = 0
    longer = np.concatenate([acts, free])
    longer[lengths, np.arange(B)] = free[0]
    cost = solved(longer, labels, lengths + 1, blank)[0]
    assert_costs(cost, oracle.solve(acts, labels, lengths, blank=blank).cost, len(longer))


@given(batches())
def test_the_gradient_of_a_used_frame_sums_to_zero_and_lies_within_one(batch):
    _, gradient = solved(*batch)
    assert_gradient(np.asarray(gradient).sum(axis=-1), np.zeros(gradient.shape[:2]), scale=2)
    assert (np.abs(gradient) <= 1 + 1e-6).all()

# SPDX-License-Identifier: Apache-2.0
"""The cost against the oracle, for every case, in both layouts of acts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.cases import COMPACT, DENSE, both_layouts, every_case
from support.results import assert_costs, assert_same_bits
from support.runs import sampled


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@sampled(16)
def test_cost_is_the_sum_over_all_alignments(case, dtype):
    acts, *rest = case.arguments(dtype)
    cost = jax_ctc.ctc(acts, *rest, blank=case.blank)
    assert cost.shape == (acts.shape[1],)
    assert cost.dtype == dtype
    assert_costs(cost, oracle.solve(acts, *rest, blank=case.blank).cost, case.T)


@every_case
@sampled(8)
def test_the_batch_axis_may_come_first(case):
    acts, *rest = case.arguments()
    cost = jax_ctc.ctc(acts.swapaxes(0, 1), *rest, blank=case.blank, time_major=False)
    assert_costs(cost, oracle.solve(acts, *rest, blank=case.blank).cost, case.T)


@both_layouts
def test_jit_changes_nothing(case, time_major):
    acts, labels, lengths, _ = case.arguments()
    acts = acts if time_major else acts.swapaxes(0, 1)

    def cost(*arguments):
        return jax_ctc.ctc(*arguments, time_major=time_major)

    assert_same_bits(jax.jit(cost)(acts, labels, lengths), cost(acts, labels, lengths))


@both_layouts
@pytest.mark.parametrize("b", [0, 1, 2])
def test_one_sequence_needs_no_batch_axis(case, b, time_major):
    acts, labels, lengths, _ = case.arguments()
    cost = jax_ctc.ctc(acts[:, b], labels[b], lengths[b], time_major=time_major)
    assert cost.shape == ()
    assert_costs(cost, oracle.solve(acts, labels, lengths).cost[b], case.T)


@both_layouts
def test_label_length_of_one_sequence_is_a_scalar(case):
    acts, labels, lengths, _ = case.arguments()
    cost = jax_ctc.ctc(acts[:, 0], labels[0], lengths[0], 2)
    assert_costs(cost, oracle.solve(acts[:, :1], labels[:1, :2], lengths[:1]).cost[0], case.T)


def test_a_certain_alignment_costs_nothing():
    acts = np.full((50, 1, 6), -1000, np.float32)
    path = np.arange(50) % 5 + 1
    acts[np.arange(50), 0, path] = 1000
    cost = jax_ctc.ctc(acts, path[None], [50])
    assert_same_bits(cost, np.zeros(1, np.float32))


def test_the_cost_is_never_negative():
    """A sum of rounded log-probabilities near 0 falls on either side of it."""
    acts = np.random.default_rng(0).normal(size=(300, 40, 5)).astype(np.float32)
    acts[:, :, 0] += np.linspace(10, 25, 40, dtype=np.float32)
    cost = jax_ctc.ctc(acts, np.full((40, 1), -1), np.full(40, 300))
    assert (np.asarray(cost) >= 0).all()


@both_layouts
def test_frames_after_the_length_have_no_influence(case):
    acts, labels, lengths, _ = case.arguments()
    cost = jax_ctc.ctc(acts, labels, lengths)
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        spoiled = np.where(np.arange(case.T)[:, None, None] < lengths[:, None], acts, garbage)
        assert_same_bits(jax_ctc.ctc(spoiled.astype(np.float32), labels, lengths), cost)


@pytest.mark.parametrize("garbage", [0, 3, 99, 2**31 - 1, -(2**31)])
def test_labels_after_the_label_length_are_padding(garbage):
    acts, labels, lengths, _ = COMPACT.arguments()
    labels[:, 2] = garbage
    cost = jax_ctc.ctc(acts, labels, lengths, [2, 2, 2])
    assert_same_bits(cost, jax_ctc.ctc(acts, labels, lengths, np.array([2, 2, 2], np.uint8)))
    labels[:, 2] = -1
    assert_same_bits(cost, jax_ctc.ctc(acts, labels, lengths))


def test_label_lengths_count_padding_too():
    acts = DENSE.acts()[:, :1]
    cost = jax_ctc.ctc(acts, [[-1, 1, -1, 2]], [9], [3])
    assert_costs(cost, oracle.solve(acts, [[1]], [9]).cost, DENSE.T)


def test_lists_are_accepted():
    cost = jax_ctc.ctc([[[0.0, 0.0]], [[0.0, 0.0]]], [[1]], [2])
    assert_costs(cost, [np.log(4 / 3)], 2)


def test_jax_arrays_are_accepted():
    acts, labels, lengths, _ = DENSE.arguments()
    expected = jax_ctc.ctc(acts, labels, lengths)
    arrays = map(jnp.asarray, (acts, labels, lengths))
    assert_same_bits(jax_ctc.ctc(*arrays), expected)

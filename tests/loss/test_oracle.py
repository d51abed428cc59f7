# SPDX-License-Identifier: Apache-2.0
"""The oracle against enumeration, closed forms, wider floats and its own finite differences."""

import itertools
import math

import numpy as np
import pytest

from support import oracle
from support.runs import sampled

ROWS = [[], [1], [2, 1], [1, 1], [2, 2, 1], [1, 2, 1], [1, 1, 1]]


@pytest.mark.parametrize("blank", [0, 1, 2])
@pytest.mark.parametrize("T", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("spread", [3, 1000])
def test_alpha_and_beta_agree_with_the_sum_over_all_alignments(row, T, blank, spread):
    row = [(k + blank) % 3 for k in row]  # the class 0 of ROWS is the blank
    logits = np.random.default_rng(T).normal(scale=spread, size=(T, 1, 3))
    cost, occupancy = oracle.enumerate_alignments(logits[:, 0], row, blank)
    truth = oracle.solve(logits, [row], [T], blank=blank)
    np.testing.assert_allclose(truth.cost[0], cost, rtol=1e-13)
    np.testing.assert_allclose(truth.occupancy[:, 0], occupancy, atol=1e-12)


@pytest.mark.parametrize("impossible", [0, 1, 2, 3])
def test_an_impossible_class_has_probability_zero(impossible):
    logits = np.random.default_rng(0).normal(size=(5, 1, 4))
    logits[1:4, 0, impossible] = -np.inf
    cost, occupancy = oracle.enumerate_alignments(logits[:, 0], [1, 2])
    truth = oracle.solve(logits, [[1, 2]], [5])
    np.testing.assert_allclose(truth.cost[0], cost, rtol=1e-13)
    np.testing.assert_allclose(truth.occupancy[:, 0], occupancy, atol=1e-14)
    assert np.isfinite(truth.gradient).all()


@pytest.mark.parametrize(("T", "row"), [(7, [1, 2, 3]), (50, [1, 1, 2, 2, 2]), (300, [3, 1] * 40)])
def test_uniform_logits_count_the_alignments(T, row):
    repeats = sum(a == b for a, b in itertools.pairwise(row))
    alignments = math.comb(T + len(row) - repeats, 2 * len(row))
    truth = oracle.solve(np.zeros((T, 1, 5)), [row], [T])
    np.testing.assert_allclose(truth.cost[0], T * math.log(5) - math.log(alignments), rtol=1e-13)


def test_as_many_labels_as_frames_leave_one_alignment():
    logits, row = np.random.default_rng(0).normal(size=(4, 1, 6)), [3, 1, 5, 2]
    truth = oracle.solve(logits, [row], [4])
    one_hot = np.eye(6)[row]
    cost = -(oracle.log_softmax(logits[:, 0]) * one_hot).sum()
    np.testing.assert_allclose(truth.cost[0], cost, rtol=1e-14)
    np.testing.assert_allclose(truth.occupancy[:, 0], one_hot, atol=1e-15)


def test_the_gradient_is_the_slope_of_the_cost():
    logits, labels, lengths = (
        np.random.default_rng(0).normal(size=(6, 2, 4)),
        [[1, 3], [2, 2]],
        [6, 5],
    )
    cost, gradient = oracle.cost_and_gradient(logits, labels, lengths)
    assert cost.shape == (2,)
    for index in np.ndindex(*logits.shape):
        moved = np.zeros_like(logits)
        moved[index] = 1e-5
        after, before = (
            oracle.solve(logits + d, labels, lengths).cost.sum() for d in (moved, -moved)
        )
        np.testing.assert_allclose(gradient[index], (after - before) / 2e-5, atol=1e-9)


def test_the_hessian_is_symmetric_and_blind_to_shifts_of_a_frame():
    rng = np.random.default_rng(0)
    logits, u, v = rng.normal(size=(3, 6, 2, 4))
    arguments = logits, [[1, 3], [2, 2]], [6, 5]
    product = oracle.hessian_vector(*arguments, u)
    np.testing.assert_allclose(
        (product * v).sum(), (oracle.hessian_vector(*arguments, v) * u).sum(), atol=1e-9
    )
    shifted = oracle.hessian_vector(*arguments, u + rng.normal(size=(6, 2, 1)))
    np.testing.assert_allclose(product, shifted, atol=1e-9)


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="this platform has no float wider than float64"
)
@pytest.mark.parametrize("spread", [1, 20, 1000])
@sampled(2)
def test_float64_agrees_with_wider_floats(spread):
    rng = np.random.default_rng(0)
    logits = spread * rng.normal(size=(2000, 1, 40))
    arguments = logits, rng.integers(1, 40, (1, 150)), [2000]
    double, wider = oracle.solve(*arguments), oracle.solve(*arguments, dtype=np.longdouble)
    np.testing.assert_allclose(double.cost, wider.cost.astype(float), rtol=1e-14)
    np.testing.assert_allclose(double.gradient, wider.gradient.astype(float), atol=2e-12)


def test_the_edges_of_the_contract():
    logits = np.random.default_rng(0).normal(size=(4, 12, 3))
    labels = np.full((12, 3), -1)
    lengths, label_lengths = np.full(12, 4), np.full(12, 3)
    labels[0], labels[1], labels[2] = [1, 1, 1], [1, 3, -1], [2, 0, -1]
    labels[3], label_lengths[3] = [1, 99, 0], 1
    labels[4], labels[5] = [-5, 1, 2], [1, -1, 2]
    lengths[6], lengths[7], lengths[8] = 0, -1, 5
    label_lengths[9], label_lengths[10] = 4, -1
    logits[2, 11] = -np.inf
    truth = oracle.solve(logits, labels, lengths, label_lengths)
    verdict = np.where(np.isnan(truth.cost), "nan", np.where(np.isinf(truth.cost), "inf", "ok"))
    assert verdict.tolist() == ["inf", "nan", "nan", *["ok"] * 4, *["nan"] * 5]
    assert not truth.gradient[:, [0, 1, 2, 6, 7, 8, 9, 10]].any()
    assert np.isnan(truth.gradient[:, 11]).all()
    assert truth.cost[6] == 0
    short, padded = oracle.solve(logits, [[1, 2]] * 12, np.full(12, 4)), truth
    assert padded.cost[4] == short.cost[4]
    assert padded.cost[5] == short.cost[5]

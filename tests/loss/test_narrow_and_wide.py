# SPDX-License-Identifier: Apache-2.0
"""Few classes go through a table, four frames at a time, many row by row: both against the oracle.

A table is for V <= 256 (kernels/cpu/simd/sequence_rows.h). With AVX-512 registers take its place
for 16 <= V <= 64, if V <= 3 L. Every remainder of T and V by four, every place in a group of
frames, both kinds of residuals. Rows of more than 1024 classes are read in pieces (row_pieces.h).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.programs import assert_solved, cost_and_gradient
from support.results import COMPILED, DEVICE, assert_costs, assert_gradient, assert_same_bits
from support.runs import sampled

B, L = 3, 6
CLASSES = [5, 6, 7, 8, 15, 16, 17, 18, 19, 31, 33, 48, 49, 100, 255, 256, 257, 300]  # dense to 7


def batch(T, V, dtype=np.float32, scale=3):
    rng = np.random.default_rng(100 * T + V)
    acts = (scale * rng.normal(size=(T, B, V))).astype(dtype)
    labels = rng.integers(1, min(V, 5), (B, L))  # few values: repeats, next to each other or not
    labels[1, 2] = -1
    return acts, labels, np.array([T, T, T - 1])


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("T", [13, 14, 15, 16, 17])
@sampled(8)
def test_any_number_of_frames_and_classes_agrees_with_the_oracle(T, V):
    assert_solved(*batch(T, V))


@pytest.mark.parametrize("V", CLASSES)
def test_double_precision_agrees_with_the_oracle(V):
    assert_solved(*batch(15, V, np.float64))


def batch_of_all_classes(V, T=47, dtype=np.float32):
    """So many labels that 3 L >= V, and each class is one of them in some sequence."""
    rng = np.random.default_rng(V)
    labels = 1 + np.arange(B * 23).reshape(B, 23) % (V - 1)
    labels[2, 20:] = -1
    acts = (3 * rng.normal(size=(T, B, V))).astype(dtype)
    return acts, labels, np.array([T, T - 1, T - 2])


@pytest.mark.parametrize("V", [15, 16, 17, 18, 23, 24, 25, 31, 32, 33, 34, 47, 48, 49, 63, 64, 65])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@sampled(8)
def test_every_class_of_few_is_a_label_somewhere(V, dtype):
    assert_solved(*batch_of_all_classes(V, dtype=dtype))


@pytest.mark.parametrize("V", [16, 29, 32, 50, 64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -9e4, -3e6])
def test_one_odd_class_of_few_is_as_the_oracle_says(V, value):
    """Below -1e5 the whole group of frames goes through the table."""
    for v in (0, 1, V // 2, V - 1):
        acts, labels, lengths = batch_of_all_classes(V)
        acts[21, 0, v] = value
        assert_solved(acts, labels, lengths)


@pytest.mark.parametrize("V", [16, 32, 64])
def test_classes_that_tie_keep_the_digits_of_a_confident_row(V):
    acts, labels, lengths = batch_of_all_classes(V)
    acts[10:14] = -30
    acts[10:14, :, [1, V - 1]] = 5
    assert_solved(acts, labels, lengths)


@pytest.mark.parametrize("V", [7, 16, 100, 300])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(V, dtype):
    acts, labels, lengths = batch(14, V)
    half = jnp.asarray(acts, dtype)
    cost, gradient = cost_and_gradient(half, labels, lengths)
    truth = oracle.solve(np.asarray(half, float), labels, lengths)
    assert_costs(cost, truth.cost, len(acts))
    error = np.abs(np.asarray(gradient, float) - truth.gradient)
    assert (
        error <= 1e-6 + np.abs(truth.gradient) * (2**-8 if dtype == "bfloat16" else 2**-11)
    ).all()


@pytest.mark.parametrize("V", [7, 18, 100, 300])
@pytest.mark.parametrize("frame", range(12, 17))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_logit_that_is_not_finite_is_as_the_oracle_says(V, frame, value):
    acts, labels, lengths = batch(17, V)
    for v in (0, 1, V - 1):
        odd = acts.copy()
        odd[frame, 0, v] = value
        assert_solved(odd, labels, lengths)


@pytest.mark.parametrize("V", [7, 18, 100, 300])
@pytest.mark.parametrize("far", [-3e4, -9e4, -1.1e5, -3e6, -1e8])
def test_logits_far_apart_agree_with_the_oracle(V, far):
    """Beyond 1e5 below the largest float has too few digits for the vector code."""
    acts, labels, lengths = batch(15, V)
    acts[5:7, 0, : V - 1] += np.float32(far)  # all but one that is no label
    acts[9, 1, 0] += np.float32(far)
    cost, gradient = cost_and_gradient(acts, labels, lengths)
    truth = oracle.solve(acts.astype(float), labels, lengths)
    if far < -4.2e7:  # counts as impossible
        assert np.isinf(cost[0])
        assert (gradient[:, 0] == 0).all()
    else:
        assert_costs(cost, truth.cost, len(acts))
        assert_gradient(gradient, truth.gradient)


@pytest.mark.parametrize("padding", [False, True])
def test_a_table_and_rows_give_the_same_costs(padding):
    """Classes of probability 0 make rows wide and change nothing."""
    acts, labels, lengths = batch(40, 18)
    labels[1, 2] = -1 if padding else labels[1, 2]
    wide = np.pad(acts, [(0, 0), (0, 0), (0, 250)], constant_values=-np.inf)
    cost, gradient = cost_and_gradient(acts, labels, lengths)
    wide_cost, wide_gradient = cost_and_gradient(wide, labels, lengths)
    assert_costs(wide_cost, cost, len(acts))
    np.testing.assert_allclose(wide_gradient[..., :18], gradient, rtol=0, atol=1e-6)
    assert (wide_gradient[..., 18:] == 0).all()


# One piece, two, and more, with a last piece of any size.
PIECES = [1023, 1024, 1025, 1040, 1100, 2048, 2049, 3100, 5000, 66_000]


@pytest.mark.parametrize("V", PIECES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@sampled(8)
def test_rows_in_pieces_agree_with_the_oracle(V, dtype):
    assert_solved(*batch(6, V, dtype))


@pytest.mark.parametrize("V", PIECES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@sampled(4)
def test_pieces_of_halves_have_the_bits_of_the_same_floats(V, dtype):
    acts, labels, lengths = batch(6, V)
    half = jnp.asarray(acts, dtype)
    cost, gradient = cost_and_gradient(half, labels, lengths)
    as_floats, of_floats = cost_and_gradient(half.astype(jnp.float32), labels, lengths)
    assert_same_bits(cost, as_floats)
    assert_same_bits(gradient, np.asarray(of_floats.astype(dtype)))


@pytest.mark.parametrize("V", [1100, 5000])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_odd_logit_in_any_piece_is_as_the_oracle_says(V, value):
    acts, labels, lengths = batch(5, V)
    for v in (0, V // 2, V - 1):
        odd = acts.copy()
        odd[3, 0, v] = value
        assert_solved(odd, labels, lengths)


@pytest.mark.parametrize("V", [1100, 5000])
def test_pieces_of_impossible_classes_and_ties_in_two_pieces(V):
    acts, labels, lengths = batch(7, V)
    acts[2, :, 100:], acts[3, :, 10 : V - 10] = -np.inf, -np.inf
    acts[4] -= 40
    acts[4, :, [0, V - 1]] = 9
    acts[5, :, V - 1] = 30  # the last piece has the largest
    assert_solved(acts, labels, lengths)


@pytest.mark.parametrize("V", [300, 1500, 5000])
@pytest.mark.parametrize("largest", [0, 300, -300, 16_383, -16_383, 16_385, -16_385, 2e5, -2e5])
def test_a_row_that_ends_below_the_smallest_number_keeps_its_digits(V, largest):
    """Down to there, softmax has the digits that float32 has, wherever its exponents begin."""
    row = (np.float32(largest) - np.linspace(0, 110, V)).astype(np.float32)
    row[V // 3] = -np.inf
    cost, gradient = cost_and_gradient(row[None, None], np.zeros((1, 0), np.int32), np.array([1]))
    below = row.astype(np.float64) - float(row[0])
    exact = np.exp(below) / np.exp(below).sum()
    exact[0] -= 1
    # log2(e) is rounded, and without a fused multiply-add the product with it too.
    gradient = np.asarray(gradient)[0, 0]
    error = np.abs(gradient - exact) - 2.0**-126
    assert (error <= (3e-7 - np.maximum(below, -110) * 1.25 * 2.0**-24) * np.abs(exact)).all()
    assert gradient[V // 3] == 0
    np.testing.assert_allclose(cost[0], np.log(np.exp(below).sum()), rtol=2e-7)


@pytest.mark.parametrize("V", CLASSES + PIECES)
def test_the_largest_cotangent_gives_no_inf(V):
    acts, labels, lengths = batch(8, V)
    gradient = jax.jit(jax.grad(lambda x, by: jax_ctc.ctc(x, labels, lengths) @ by))
    largest = np.full(B, np.finfo(np.float32).max, np.float32)
    exact = np.asarray(gradient(acts, np.ones_like(largest)), np.float64) * float(largest[0])
    np.testing.assert_allclose(gradient(acts, largest), exact, rtol=3e-7, atol=1e-6 * largest[0])


def test_the_sum_of_a_wide_row_is_right_to_one_rounding():
    """All entries of softmax are divided by the sum. Their own errors average to nearly nothing.
    XLA's sums of pure JAX, and exp on a GPU, are less exact."""
    largest = np.random.default_rng(1).uniform(-30, 30, (1, 200, 1)).astype(np.float32)
    acts = np.concatenate([largest, largest - np.linspace(1, 3, 9999, dtype=np.float32)], axis=2)
    nothing = np.zeros((200, 0), np.int32), np.ones(200, np.int32)
    gradient = np.asarray(cost_and_gradient(acts, *nothing)[1], np.float64)
    exact = np.exp(acts.astype(np.float64) - largest)
    exact /= exact.sum(axis=2, keepdims=True)
    most = 8e-8 if COMPILED and DEVICE == "cpu" else 4e-7
    assert abs((gradient / exact - 1)[..., 1:].mean(axis=2)).max() < most


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("labels", [[[1400]], [[]]], ids=["a label", "no label"])
def test_a_nan_counts_in_a_piece_of_a_row_that_is_minus_infinity(dtype, labels):
    acts = np.full((2, 1, 1500), -np.inf)
    acts[:, 0, 1400], acts[0, 0, 7] = 0, np.nan
    cost = jax_ctc.ctc(jnp.asarray(acts, dtype), np.array(labels, np.int32), np.array([2]))
    assert np.isnan(cost).all()

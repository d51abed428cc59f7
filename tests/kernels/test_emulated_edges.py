# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels by the emulator: what is exactly 0 stays 0, whatever it is multiplied with."""

import itertools

import numpy as np
import pytest

from support import emulated
from support.results import assert_same_bits
from support.runs import sampled, sweep

pytestmark = emulated.NEEDED
T, BLANK = 9, 3
USUAL, REPEATS, LONG, HIGH, BLANKS, NEGATIVE, BEYOND, SHORT, BROKEN, EMPTY, DEAD = range(11)
WITHOUT = [REPEATS, LONG, HIGH, BLANKS, NEGATIVE, BEYOND, EMPTY, DEAD]  # a gradient
NOT_FINITE = [np.inf, -np.inf, np.nan]

SIZES = [4, 6, 13, 600]  # dense up to 6
FLOAT, DOUBLE, BFLOAT, HALF = emulated.DTYPES
sizes_and_dtypes = pytest.mark.parametrize(
    ("V", "dtype"),
    sweep(
        list(itertools.product(SIZES, emulated.DTYPES)),
        [(4, FLOAT), (6, BFLOAT), (13, FLOAT), (13, HALF), (600, FLOAT), (600, DOUBLE)],
    ),
    ids=str,
)


def problem(V, dtype):
    """Sequences with a gradient, without one, and with NaN in the place of one."""
    rng = np.random.default_rng(V)
    acts = rng.normal(size=(T, 11, V)).astype(dtype)
    labels = np.tile(np.array([0, 1, -1, 2, 1], np.int32), (11, 1))
    lengths = np.full(11, T, np.int32)
    labels[REPEATS], lengths[REPEATS] = 1, 8
    lengths[LONG] = 3
    labels[HIGH, 3], labels[BLANKS, 3] = V, BLANK
    lengths[NEGATIVE], lengths[BEYOND] = -1, T + 1
    lengths[SHORT], acts[6:, SHORT] = 6, np.nan
    acts[4, BROKEN, 0] = np.nan
    lengths[EMPTY] = 0
    acts[:, DEAD, 2] = -np.inf
    acts[2, USUAL, V - 1] = -np.inf if V > 4 else 0.5  # a class that is not needed
    return acts, labels, lengths


def must_be_zero(acts):
    """Where the contract says exactly 0, whatever the multiplier."""
    zero = np.zeros(acts.shape, bool)
    zero[:, WITHOUT] = True
    zero[6:, SHORT] = True
    zero[2, USUAL, -1] = acts.shape[-1] > 4
    return zero


@sizes_and_dtypes
@pytest.mark.parametrize("place", [None, "acts"])
def test_a_gradient_of_zero_stays_zero_whatever_the_cotangent(kernels, V, dtype, place):
    check_gradients_of_zero(kernels, V, dtype, place)


@pytest.mark.parametrize("V", [4, 6])  # dense, where columns and acts have one dtype
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_of_zero_stays_zero_in_the_place_of_columns(kernels, V, dtype):
    check_gradients_of_zero(kernels, V, np.dtype(dtype), "columns")


def check_gradients_of_zero(kernels, V, dtype, place):
    args = problem(V, dtype)
    answer = kernels.solve(*args, blank=BLANK)
    kept, zero = (answer.rows, answer.columns), must_be_zero(args[0])
    assert (answer.gradient[zero] == 0).all()
    for factor in NOT_FINITE:
        gradient = kernels.cotangent(*args, kept, np.full(11, factor), blank=BLANK, place=place)
        gradient = gradient.astype(float)
        assert (gradient[zero] == 0).all()
        assert np.isnan(gradient[:, BROKEN]).all()
        others = np.delete(np.where(zero, np.nan, gradient), BROKEN, 1)
        assert not np.isfinite(others).any()  # all that is multiplied is infinite or NaN
    hidden = kernels.cotangent(*args, kept, np.zeros(11), blank=BLANK, place=place)
    assert (hidden == 0).all()


@sizes_and_dtypes
def test_a_cotangent_is_its_own_sequence_s(kernels, V, dtype):
    args = problem(V, dtype)
    answer = kernels.solve(*args, blank=BLANK)
    kept, factors = (answer.rows, answer.columns), np.full(11, np.inf)
    factors[[USUAL, SHORT]] = 1
    gradient = kernels.cotangent(*args, kept, factors, blank=BLANK)
    for sequence in (USUAL, SHORT):
        assert_same_bits(gradient[:, sequence], answer.gradient[:, sequence])


@sizes_and_dtypes
def test_no_direction_reaches_what_has_no_gradient(kernels, V, dtype):
    args = problem(V, dtype)
    answer = kernels.solve(*args, blank=BLANK)
    kept, zero = (answer.rows, answer.columns), must_be_zero(args[0])
    directions = np.random.default_rng(1).normal(size=args[0].shape).astype(dtype)
    usual = kernels.tangent(*args, kept, directions, blank=BLANK)
    assert (usual[WITHOUT] == 0).all()
    for value in NOT_FINITE:
        directions[zero] = value
        tangents = kernels.tangent(*args, kept, directions, blank=BLANK)
        assert_same_bits(tangents, usual)


@sizes_and_dtypes
@sampled(2)
def test_a_product_of_zero_stays_zero_whatever_it_is_multiplied_with(kernels, V, dtype):
    args = problem(V, dtype)
    answer = kernels.solve(*args, blank=BLANK)
    kept, zero = (answer.rows, answer.columns), must_be_zero(args[0])
    directions = np.random.default_rng(1).normal(size=args[0].shape).astype(dtype)
    usual = kernels.hvp(*args, directions, blank=BLANK, kept=kept)
    for value in NOT_FINITE:
        directions[zero] = value
        product = kernels.hvp(*args, directions, blank=BLANK, kept=kept)
        assert_same_bits(product.astype(float), usual.astype(float))
        product = kernels.hvp(
            *args, directions, blank=BLANK, kept=kept, cotangents=np.full(11, value)
        )
        assert (product[zero] == 0).all()
        assert np.isnan(product[:, BROKEN]).all()
    hidden = kernels.hvp(*args, directions, blank=BLANK, kept=kept, cotangents=np.zeros(11))
    assert (hidden == 0).all()

# SPDX-License-Identifier: Apache-2.0
"""Hessian-vector products by the CUDA kernels on the emulator."""

import numpy as np
import pytest

from jax_ctc import _primitives
from support import emulated
from support.cases import COMPACT, DENSE, EDGES, Case, around_a_vector, both_layouts
from support.emulated_problems import (
    FEW_WARPS,
    ORDERS,
    arguments,
    check_product,
    directions_like,
    every_case,
    wrong_problems,
)
from support.results import assert_same_bits
from support.runs import sampled, sweep

pytestmark = emulated.NEEDED


@every_case
@sampled(8)
def test_products_of_every_case_against_the_oracle(kernels, case, dtype):
    problem = arguments(case, dtype)
    directions = directions_like(problem[0])
    for seed in ORDERS:
        product = kernels.hvp(*problem, directions, blank=case.blank, seed=seed)
        check_product(product, *problem, directions, blank=case.blank)


@both_layouts
@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_products_in_any_layout_and_alignment(kernels, case, time_axis, shift):
    acts, labels, lengths = arguments(case)
    directions, cotangents = directions_like(acts), [2.0, 0.0, 0.5]
    product = kernels.hvp(
        np.moveaxis(acts, 0, time_axis), labels, lengths, np.moveaxis(directions, 0, time_axis),
        time_axis=time_axis, shift=shift, cotangents=cotangents,
    )  # fmt: skip
    product = np.moveaxis(product, time_axis, 0)
    check_product(product, acts, labels, lengths, directions, cotangents)
    assert not product[:, 1].any()


@pytest.mark.parametrize("V", [513, 1031, 5000])
def test_products_by_a_block_of_threads_to_a_row(kernels, V):
    problem = arguments(Case("wide", 7, V, [[V - 1, 1, 1], [300, -1, 2]], [7, 5]))
    directions = directions_like(problem[0])
    check_product(kernels.hvp(*problem, directions), *problem, directions)


@pytest.mark.parametrize("case", [*EDGES, DENSE, COMPACT], ids=lambda case: case.name)
def test_products_are_what_the_cpu_kernels_make_of_the_same_residuals(kernels, case):
    acts, labels, lengths = arguments(case)
    p = {"time_axis": 0, "blank": case.blank, "threads": 1, "softmax": True}
    _, *kept = _primitives.forward_p.bind(acts, labels, lengths, **p)
    directions = directions_like(acts)
    ones = np.ones(len(labels), np.float32)
    expected = _primitives.hvp_p.bind(acts, labels, lengths, *kept, ones, directions, **p)
    product = kernels.hvp(acts, labels, lengths, directions, kept=kept, blank=case.blank)
    np.testing.assert_allclose(product, expected, rtol=0, atol=5e-6)


def test_products_of_what_is_wrong_are_nan_or_exactly_zero(kernels):
    acts, labels, lengths = wrong_problems()
    directions = directions_like(acts)
    answer = kernels.solve(acts, labels, lengths)
    for seed in range(3):
        product = kernels.hvp(acts, labels, lengths, directions, seed=seed)
        np.testing.assert_array_equal(np.isnan(product), np.isnan(answer.gradient))
        assert (product[answer.gradient == 0] == 0).all()
    assert np.isnan(product).any()
    hidden = kernels.hvp(acts, labels, lengths, directions, cotangents=np.zeros(8))
    assert (hidden == 0).all()


def test_impossible_classes_may_have_any_direction(kernels):
    acts, labels, lengths = arguments(COMPACT)
    acts[3, 0, 2] = acts[5, 1, 0] = acts[4, 2, 6] = -np.inf
    directions = directions_like(acts)
    usual = kernels.hvp(acts, labels, lengths, directions)
    directions[acts == -np.inf] = np.inf
    product = kernels.hvp(acts, labels, lengths, directions)
    np.testing.assert_allclose(product, usual, rtol=0, atol=1e-6)
    check_product(usual, acts, labels, lengths, np.where(acts == -np.inf, 0, directions))


def test_a_label_that_cannot_stand_may_have_any_direction(kernels):
    acts = np.random.default_rng(0).normal(size=(12, 2, 40)).astype(np.float32)
    problem = acts, np.tile(np.int32([1, 2, 3, 2, 3]), (2, 1)), np.int32([12, 12])
    directions = directions_like(acts)
    usual = kernels.hvp(*problem, directions)
    directions[0, 0, 3] = directions[11, 1, 1] = np.inf
    product = kernels.hvp(*problem, directions)
    assert np.isnan(product[0, 0]).any()
    assert np.isnan(product[11, 1]).any()
    product[0, 0], product[11, 1] = usual[0, 0], usual[11, 1]
    np.testing.assert_allclose(product, usual, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@both_layouts
def test_products_in_half_precision_are_rounded_once(kernels, case, name):
    dtype = next(d for d in emulated.DTYPES if d.name == name)
    acts, labels, lengths = arguments(case)
    acts, directions = acts.astype(dtype), directions_like(acts).astype(dtype)
    half = kernels.hvp(acts, labels, lengths, directions)
    exact = kernels.hvp(acts.astype(np.float32), labels, lengths, directions)
    assert half.dtype == dtype
    rounding = 2.0**-8 if name == "bfloat16" else 2.0**-11
    np.testing.assert_allclose(half.astype(float), exact, rtol=rounding, atol=1e-6)


@both_layouts
def test_products_have_the_same_bits_in_any_order_of_threads_batch_and_strips(kernels, case):
    acts, labels, lengths = arguments(case)
    directions = directions_like(acts)
    first = kernels.hvp(acts, labels, lengths, directions)
    for seed in range(2, 6):
        again = kernels.hvp(acts, labels, lengths, directions, seed=seed, shared=FEW_WARPS)
        assert_same_bits(again, first)
    for b in range(len(labels)):
        one = np.s_[b : b + 1]
        alone = kernels.hvp(acts[:, one], labels[one], lengths[one], directions[:, one])
        assert_same_bits(alone, first[:, one])


@pytest.mark.parametrize("L", [31, 32, 65])
def test_products_by_strips_have_the_same_bits(kernels, L):
    problem = arguments(next(iter(around_a_vector(L))))
    directions = directions_like(problem[0])
    whole = kernels.hvp(*problem, directions)
    strips = kernels.hvp(*problem, directions, shared=FEW_WARPS, seed=5)
    assert_same_bits(strips, whole)


@pytest.mark.slow
@pytest.mark.parametrize("offset", sweep([0, 1000], [1000]))
@pytest.mark.parametrize(
    ("T", "L", "V"), sweep([(2000, 100, 20), (2000, 60, 100), (300, 40, 50)], [(300, 40, 50)])
)
def test_products_of_long_sequences_keep_their_digits(kernels, T, L, V, offset):
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, 1, V)).astype(np.float32)
    directions = (offset + rng.normal(size=acts.shape)).astype(np.float32)
    problem = acts, rng.integers(1, V, (1, L)).astype(np.int32), np.array([T], np.int32)
    product = kernels.hvp(*problem, directions)
    check_product(product, *problem, directions.astype(float) - offset)

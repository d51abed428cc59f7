# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own source, run on the CPU by the emulator: what can be known without a GPU.

Not seen here: time, and the order in which memory becomes visible (test_emulated_stores.py).
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from jax_ctc import _primitives
from support import emulated, oracle
from support.cases import COMPACT, DENSE, EDGES, Case, around_a_vector, both_layouts
from support.emulated_problems import (
    FEW_WARPS,
    ORDERS,
    arguments,
    check,
    every_case,
    wrong_problems,
)
from support.results import assert_costs, assert_same_bits
from support.runs import sampled, sweep

pytestmark = emulated.NEEDED


@every_case
@sampled(20)
def test_every_case_against_the_oracle(kernels, case, dtype):
    problem = arguments(case, dtype)
    for seed in ORDERS:
        check(kernels.solve(*problem, blank=case.blank, seed=seed), *problem, blank=case.blank)


@both_layouts
@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in place"])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_any_layout_and_alignment(kernels, case, time_axis, in_place, shift):
    acts, labels, lengths = arguments(case)
    answer = kernels.solve(
        np.moveaxis(acts, 0, time_axis), labels, lengths, time_axis=time_axis, in_place=in_place,
        shift=shift, cotangents=[2.0, -3.0, 0.5],
    )  # fmt: skip
    answer.gradient = np.moveaxis(answer.gradient, time_axis, 0)
    check(answer, acts, labels, lengths, cotangents=[2.0, -3.0, 0.5])


@pytest.mark.parametrize("V", [513, 1031, 4097, 5000])
@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in place"])
def test_a_block_of_threads_to_a_row(kernels, V, in_place):
    case = Case("wide", 7, V, [[V - 1, 1, 1], [300, -1, 2]], [7, 5])
    problem = arguments(case)
    check(kernels.solve(*problem, in_place=in_place), *problem)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("L", "T", "shared"),
    sweep([(130, 290, FEW_WARPS), (700, 1000, 227 << 10)], [(130, 290, FEW_WARPS)]),
)
def test_more_labels_than_a_block_has_lanes(kernels, L, T, shared):
    rng = np.random.default_rng(L)
    acts = rng.normal(scale=2, size=(T, 2, 9)).astype(np.float32)
    labels = rng.integers(1, 9, (2, L)).astype(np.int32)
    labels[0, rng.random(L) < 0.5] = -1  # padding in between, so that this one fits in its frames
    labels[1, L // 3 :] = -1
    lengths = np.array([T, T - 7], np.int32)
    for multiprocessors in (1, 132):  # strips one after another, or together
        answer = kernels.solve(
            acts, labels, lengths, shared=shared, multiprocessors=multiprocessors
        )
        check(answer, acts, labels, lengths)


STRIPS = list(itertools.product([65, 127, 128, 200], [FEW_WARPS, 60 << 10]))


@pytest.mark.parametrize(
    ("L", "shared"), sweep(STRIPS, [(65, FEW_WARPS), (128, 60 << 10), (200, FEW_WARPS)])
)
@sampled(2)
def test_strips_give_the_same_bits(kernels, L, shared):
    problem = arguments(next(iter(around_a_vector(L))))
    whole = kernels.solve(*problem)
    strips = kernels.solve(*problem, shared=shared, multiprocessors=1, seed=5)
    assert_same_bits(strips.cost, whole.cost)
    assert_same_bits(strips.gradient, whole.gradient)


def strips_together(launches):
    """Blocks of a direction of a sequence, in the last lattice of a training of one sequence."""
    return launches[3, 0] // 2


@pytest.mark.parametrize("L", sweep([127, 128, 130, 255, 256, 400, 600], [128]))
def test_strips_that_sweep_together_give_the_same_bits(kernels, L):
    rng = np.random.default_rng(L)
    T = L + 40
    acts = rng.normal(scale=3, size=(T, 1, 9)).astype(np.float32)
    labels = (1 + np.arange(L) % 8)[None].astype(np.int32)
    for fewer in (0, 1, L // 3):  # labels; strips may have none
        labels[0, L - fewer :] = -1
        problem = acts, labels, np.array([T - fewer], np.int32)
        alone = kernels.solve(*problem, multiprocessors=1)
        for seed in ORDERS:
            together = kernels.solve(*problem, seed=seed)
            assert strips_together(kernels.last_launches()) == -(-(L + 1) // 128)
            assert_same_bits(together.cost, alone.cost)
            assert_same_bits(together.gradient, alone.gradient)
        check(together, *problem)


@pytest.mark.parametrize("L", sweep([32, 33, 63, 64, 65, 100, 127], [33]))
def test_one_pair_a_lane_and_two_give_the_same_bits(kernels, L):
    for problem in map(arguments, around_a_vector(L)):
        one, launches = kernels.solve(*problem), kernels.last_launches()
        two = kernels.solve(*problem, multiprocessors=1, seed=5)
        assert (launches != kernels.last_launches()).any()
        assert_same_bits(two.cost, one.cost)
        assert_same_bits(two.gradient, one.gradient)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
@both_layouts
def test_half_precision_is_rounded_once(kernels, case, name):
    dtype = next(d for d in emulated.DTYPES if d.name == name)
    acts, labels, lengths = arguments(case)
    acts = acts.astype(dtype)
    half = kernels.solve(acts, labels, lengths, in_place=True)
    exact = kernels.solve(acts.astype(np.float32), labels, lengths)
    assert_costs(half.cost, oracle.solve(acts.astype(float), labels, lengths).cost, len(acts))
    assert_same_bits(half.cost, exact.cost)
    assert half.gradient.dtype == dtype
    rounding = 2.0**-8 if name == "bfloat16" else 2.0**-11  # half a unit in the last place
    np.testing.assert_allclose(
        half.gradient.astype(float), exact.gradient, rtol=rounding, atol=2e-7
    )


@pytest.mark.parametrize("V", [33, 130, 1031, 2500, 9001])
def test_a_cost_has_the_bits_of_the_same_numbers_in_single_precision(kernels, V):
    dtype = next(d for d in emulated.DTYPES if d.name == "bfloat16")
    acts, labels, lengths = arguments(Case("wide", 5, V, [[V - 1, 1], [3, -1]], [5, 4]))
    acts = acts.astype(dtype)
    half = kernels.solve(acts, labels, lengths)
    assert_same_bits(half.cost, kernels.solve(acts.astype(np.float32), labels, lengths).cost)


@pytest.mark.parametrize("case", [*EDGES, DENSE, COMPACT], ids=lambda case: case.name)
def test_what_is_kept_is_what_the_cpu_kernels_keep(kernels, case):
    acts, labels, lengths = arguments(case)
    answer = kernels.solve(acts, labels, lengths, blank=case.blank)
    cost, rows, columns = _primitives.forward_p.bind(
        acts, labels, lengths, time_axis=0, blank=case.blank, threads=1, softmax=True
    )
    np.testing.assert_allclose(answer.cost, cost, rtol=1e-6)
    np.testing.assert_allclose(answer.rows, rows, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(answer.columns, columns, rtol=0, atol=1e-6)


def test_what_is_wrong_with_one_sequence_is_its_own(kernels):
    acts, labels, lengths = wrong_problems()
    for seed in range(3):
        check(kernels.solve(acts, labels, lengths, seed=seed), acts, labels, lengths)
    for bad in (0, np.iinfo(np.int32).max):  # the blank, and far outside
        labels[7, 1] = bad
        check(kernels.solve(acts, labels, lengths), acts, labels, lengths)


def test_a_zero_cotangent_hides_whatever_there_is(kernels):
    acts, labels, lengths = wrong_problems()
    answer = kernels.solve(acts, labels, lengths, cotangents=np.zeros(8))
    assert (answer.gradient == 0).all()


def test_two_launches_for_the_loss_and_two_more_for_its_gradient(kernels):
    launches = kernels.library.launches
    before = launches()
    kernels.solve(*arguments(COMPACT))  # the loss alone, then with its gradient
    assert launches() - before == 2 + 4


def test_four_launches_for_a_product(kernels):
    acts, labels, lengths = arguments(COMPACT)
    answer, launches = kernels.solve(acts, labels, lengths), kernels.library.launches
    before = launches()
    kernels.hvp(acts, labels, lengths, acts, kept=(answer.rows, answer.columns))
    assert launches() - before == 4


@both_layouts
def test_forward_mode_is_the_product_with_the_gradient(kernels, case):
    acts, labels, lengths = arguments(case)
    directions = np.random.default_rng(1).normal(size=acts.shape).astype(np.float32)
    answer = kernels.solve(acts, labels, lengths, directions=directions)
    gradient = oracle.solve(acts.astype(float), labels, lengths).gradient
    np.testing.assert_allclose(answer.tangent, (gradient * directions).sum((0, 2)), atol=2e-5)


@both_layouts
def test_the_same_bits_in_any_order_of_threads_and_any_batch(kernels, case):
    acts, labels, lengths = arguments(case)
    first = kernels.solve(acts, labels, lengths)
    for seed in range(2, 7):
        again = kernels.solve(acts, labels, lengths, seed=seed)
        assert_same_bits(again.cost, first.cost)
        assert_same_bits(again.gradient, first.gradient)
    for b in range(len(labels)):
        one = np.s_[b : b + 1]
        alone = kernels.solve(acts[:, one], labels[one], lengths[one])
        assert_same_bits(alone.cost, first.cost[one])
        assert_same_bits(alone.gradient, first.gradient[:, one])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("T", "L", "V", "scale"),
    [
        *sweep([(10_000, 20, 30, 3)], []),
        *[(700, 31, 33, 12), (300, 40, 64, 100), (300, 20, 30, 1000)],
    ],
)
def test_long_sequences_and_wide_spreads_keep_their_digits(kernels, T, L, V, scale):
    rng = np.random.default_rng(T)
    acts = rng.normal(scale=scale, size=(T, 1, V)).astype(np.float32)
    labels = rng.integers(1, V, (1, L)).astype(np.int32)
    lengths = np.array([T], np.int32)
    check(kernels.solve(acts, labels, lengths), acts, labels, lengths)


@pytest.mark.slow
def test_a_near_certain_sequence_costs_nearly_nothing(kernels):
    """Constant rows whose rounding would add up: 1e-6 sqrt(T) is promised."""
    T = 3000
    acts = np.tile(np.array([[16.0, 0, 0, -3]], np.float32), (T, 1))[:, None]
    labels, lengths = np.zeros((1, 0), np.int32), np.array([T], np.int32)
    check(kernels.solve(acts, labels, lengths), acts, labels, lengths)


def test_no_file_of_the_kernels_asks_who_compiles_it():
    """The include path chooses between nvcc's machine.cuh and the emulator's."""
    files = filter(Path.is_file, (emulated.ROOT / "kernels" / "cuda").rglob("*"))
    asking = {
        f.name for f in files if re.search("__CUDACC__|__CUDA_ARCH__|emulator\\.", f.read_text())
    }
    assert asking == set()

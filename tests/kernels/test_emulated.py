# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own source, run on the CPU by the emulator: what can be known without a GPU.

Not seen here: time, and the order in which memory becomes visible (test_emulated_stores.py).
"""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_sanitized import ADDRESSES, address_objects, compile_to

from jax_ctc import _primitives
from support import emulated, oracle
from support.cases import COMPACT, DENSE, EDGES, Case, around_a_vector, both_layouts
from support.results import assert_costs, assert_gradient, assert_same_bits
from support.runs import ALL, only_all, sweep

pytestmark = emulated.NEEDED

LABELS = sweep((2, 31, 32, 33, 63, 64, 65, 130), (2, 31, 32, 33, 65))
WIDTHS = [case for L in LABELS for case in around_a_vector(L)]
CASES = [(case, np.float32) for case in EDGES + WIDTHS]
CASES += [(case, np.float64) for case in EDGES + sweep(WIDTHS, list(around_a_vector(32)))]
every_case = pytest.mark.parametrize(
    ("case", "dtype"), CASES, ids=[f"{case.name}, {dtype.__name__}" for case, dtype in CASES]
)
ORDERS = sweep((1, 2), (1,))  # of threads: seeds
# Bytes of shared memory that leave a direction two warps, and one of a Hessian-vector product: the
# pairs go in strips.
FEW_WARPS = 24 << 10


def arguments(case, dtype=np.float32):
    """The case with its label lengths folded into the labels, as the op hands it to a kernel."""
    acts, labels, lengths, label_lengths = case.arguments(dtype)
    if label_lengths is not None:
        labels = np.where(np.arange(labels.shape[1]) < label_lengths[:, None], labels, -1)
    return acts, labels, lengths


def check(answer, acts, labels, lengths, cotangents=None, **options):
    """Everything in the answer against the oracle; gradients like acts, time major."""
    truth = oracle.solve(np.asarray(acts, float), labels, lengths, **options)
    assert_same_bits(answer.cost, answer.alone)
    assert_costs(answer.cost, truth.cost, len(acts))
    expected = truth.gradient
    if cotangents is not None:
        cotangents = np.asarray(cotangents)[:, None]
        expected = np.where(cotangents == 0, 0, expected * cotangents)
    assert_gradient(answer.gradient, expected, 1 if cotangents is None else abs(cotangents).max())
    assert (answer.gradient[expected == 0] == 0).all() or np.isfinite(acts).all()


@every_case
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
def test_strips_give_the_same_bits(kernels, L, shared):
    problem = arguments(next(iter(around_a_vector(L))))
    whole = kernels.solve(*problem)
    strips = kernels.solve(*problem, shared=shared, multiprocessors=1, seed=5)
    assert_same_bits(strips.cost, whole.cost)
    assert_same_bits(strips.gradient, whole.gradient)


def strips_together(launches):
    """Blocks of a direction of a sequence, in the last lattice of a training of one sequence."""
    return launches[3, 0] // 2


@pytest.mark.parametrize("L", sweep([127, 128, 130, 255, 256, 400, 600], [128, 256]))
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


@pytest.mark.parametrize("L", sweep([32, 33, 63, 64, 65, 100, 127], [33, 100]))
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


def wrong_problems():
    """Eight sequences, of which some have something wrong; the others must not notice."""
    rng = np.random.default_rng(3)
    acts = rng.normal(size=(9, 8, 6)).astype(np.float32)
    labels = rng.integers(1, 6, (8, 3)).astype(np.int32)
    lengths = np.array([9, -1, 10, 9, 9, 9, 5, 9], np.int32)
    acts[4, 3, 2] = np.nan
    acts[4, 4, 2] = np.inf
    acts[4, 5] = -np.inf
    acts[5:, 6] = np.nan  # behind the length
    labels[7, 1] = 6
    return acts, labels, lengths


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


def check_product(product, acts, labels, lengths, directions, cotangents=None, **options):
    """Against the slope of the oracle's gradient; in float32 by what its digits allow."""
    expected = oracle.hessian_vector(
        np.asarray(acts, float), labels, lengths, np.asarray(directions, float), **options
    )
    expected = np.nan_to_num(expected)  # of -inf logits
    if cotangents is not None:
        expected = expected * np.asarray(cotangents)[:, None]
    allowed = 3e-9 if acts.dtype == np.float64 else 5e-6
    scale = max(np.abs(expected).max(initial=0), np.abs(directions).max(initial=0))
    np.testing.assert_allclose(product, expected, rtol=0, atol=allowed * scale)


def directions_like(acts, seed=1):
    return np.random.default_rng(seed).normal(size=acts.shape).astype(acts.dtype)


@every_case
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


# ---- through XLA ---------------------------------------------------------------------------------


# Files, and which of their tests.
THROUGH_XLA = {
    "edges": ("loss/test_edges.py", "not slow"),
    "transforms": ("derivatives/test_transforms.py", "not slow"),
    "sharding": ("sharding/test_sharding.py", "not slow"),
    "second order": ("derivatives/test_second_order.py", "slope or zero or reverse"),
    "alignment": ("loss/test_align.py sharding/test_align_sharding.py", "not slow"),
    "log-scores": ("loss/test_log_scores.py", "not numbers_of_no_use and not gathers_nothing"),
    "a few of each": (
        "loss/test_edges.py derivatives/test_transforms.py sharding/test_sharding.py "
        "derivatives/test_second_order.py loss/test_log_scores.py loss/test_align.py",
        "orders and compact or of_all_paths and 6 or "
        "compact and (over_a_mesh and (cost or batch and not GSPMD) or shard_map_runs and time "
        "or gradient_zero and (float32 or jit and time) or zero_cotangent and time or vjp)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", sweep(THROUGH_XLA, ["a few of each"]))
def test_the_suite_passes_through_everything_but_the_device(part):
    """The CUDA lowering, XLA's handlers with their scratch and aliases, the kernels."""
    files, some = THROUGH_XLA[part]
    tests = emulated.ROOT / "tests"
    paths = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "-p", "support.emulated_backend", *files.split(), "-m", "not slow", "-k", some],
        env={**os.environ, "PYTHONPATH": paths, "EMULATED_HANDLERS": str(emulated.handlers())},
        cwd=tests, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) kernels were launched", done.stdout).group(1)) > 50


# ---- the sanitizers, and whether the tests would notice ----------------------------------------


@only_all
@pytest.mark.slow
def test_no_input_makes_a_kernel_leave_its_arrays(tmp_path):
    program = tmp_path / "sanitized"
    sanitizers = ["-fsanitize=address", *(["-fsanitize=undefined"] if ALL else [])]
    # In `make test` it takes longer to optimise the program than to run it.
    flags = [*emulated.FLAGS, "-fno-trapping-math", "-O1" if ALL else "-O0", "-g1", *sanitizers]
    compile_to(
        tmp_path / "o", *flags, "-fno-sanitize-recover=all", f"-I{emulated.EMULATOR}",
        "-c", emulated.SOURCES / "sanitized_cuda.cpp",
    )  # fmt: skip
    # The CPU kernels are what is compared with: test_sanitized.py is for their own faults.
    compile_to(program, *ADDRESSES, tmp_path / "o", *address_objects().values())
    rounds = 40 if ALL else 3
    result = subprocess.run([program, str(rounds)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert result.stdout == f"{rounds} rounds\n"


BUGS = {
    "copies are not waited for": ("sweep.cuh", "        copy_wait<1>();  // all", "        // all"),
    "blank and edge are read before other lanes have copied them": (
        "sweep.cuh",
        "started\n        __syncwarp();",
        "started",
    ),
    "warps do not wait for their left neighbour": (
        "sweep.cuh",
        "      else if (recursion == kAlpha)\n        barrier<1>(active * kWarp);",
        "      else if (recursion == kAlpha)\n        __syncwarp();",
    ),
    "the edge is taken after the frame": (
        "sweep.cuh",
        "tile.edge_out + 2 * d, at[kPairs - 1].label);",
        "tile.edge_out + 2 * d, emit(at[kPairs - 1], now.blank, now.label[kPairs - 1]).label);",
    ),
    "nobody waits for the sweeps": (
        "lattice.cu",
        "  if (both)\n    __syncthreads();",
        "  if (both)\n    __syncwarp();",
    ),
    "the block that ends first decides": (
        "lattice.cu",
        "== 2 * a.strips - 1;",
        "== 0;",
    ),
    "a lane's second pair sees the first one after the frame": (
        "sweep.cuh",
        "at[i > 0 ? i - 1 : 0].label",
        "before[i > 0 ? i - 1 : 0].label",
    ),
    "alpha has too few pairs to its left": (
        "chunk.cuh",
        "first - kChunk + 2 * lane_index();",
        "first - (kChunk - 2) + 2 * lane_index();",
    ),
    "beta has one pair too few to its right": (
        "chunk.cuh",
        "count - first - (kWindow - 1)",
        "count - first - (kWindow - 2)",
    ),
    "a chunk begins with the states of another": (
        "chunk.cuh",
        "ws.states_of(recursion, index)",
        "ws.states_of(recursion, index ^ 1)",
    ),
    "alpha is kept after its emission": (
        "sweep.cuh",
        "== kAlpha, state + i, before[i].blank, before[i].label);",
        "== kAlpha, state + i, at[i].blank, at[i].label);",
    ),
    "a row is worked on before all windows are": (
        "occupancy.cu",
        "      }\n      __syncthreads();\n    };",
        "      }\n    };",
    ),
    "corrections are read after the row was overwritten": (
        "gradient.cu",
        "    group_barrier<G>();\n  }\n  transform",
        "  }\n  transform",
    ),
    "corrections are overwritten": (
        "gradient.cu",
        "  group_barrier<G>();\n  for_each_column",
        "  for_each_column",
    ),
    "equal labels are not added up": ("occupancy.cu", "i >= 0; i = next_of(i))", "i >= 0; i = -1)"),
    "a product has the softmax of another row": (
        "hvp.cu",
        "directed.shift = in.rows[2 * r],",
        "directed.shift = in.rows[0],",
    ),
    "a product forgets the softmax's mean": (
        "hvp.cu",
        "directed.mean = of_softmax - (directed.centre - base);",
        "directed.mean = 0;",
    ),
    "the derivative of an emission is forgotten": (
        "hvp.cu",
        "y.e == kDead ? F(0) :",
        "y.e != kDead ? F(0) :",
    ),
    "a product is written before its row is": (
        "hvp.cu",
        "  group_barrier<G>();\n  if (!alive) {",
        "  if (!alive) {",
    ),
    "a class has the emission of another": (
        "labels.cuh",
        "ws.column[k] = place_of_class(ws.value[k], blank);",
        "ws.column[k] = ws.value[k];",
    ),
    "a class has the softmax of another": (
        "occupancy.cu",
        "emissions + place_of_class(v, a.blank)",
        "emissions + v",
    ),
    "a strip waits for the one before the last": (
        "sweep.cuh",
        "slot, number - 1)",
        "slot, number - 2)",
    ),
    "a strip waits for itself": ("sweep.cuh", "slot, number - 1)", "slot, number)"),
    "edges go to the frame after": (
        "sweep.cuh",
        "load(&mine.outgoing[lane].edge);",
        "load(&mine.outgoing[max_of(lane - 1, 0)].edge);",
    ),
    "every skip is allowed": (
        "labels.cuh",
        "value[k] = label,",
        "value[k] = label + int(i),",
    ),
}


@only_all
@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, tmp_path):
    result = emulated.run_alone(__file__, emulated.planted(tmp_path, *BUGS[bug]))
    assert result.returncode != 0
    assert "AssertionError" in result.stderr or "emulator: block" in result.stderr


@pytest.mark.slow
@only_all
def test_nothing_is_caught_where_no_bug_is(tmp_path):
    emulated.build(tmp_path / "emulated.so")
    result = emulated.run_alone(__file__, tmp_path / "emulated.so")
    assert result.returncode == 0, result.stderr


def test_no_file_of_the_kernels_asks_who_compiles_it():
    """The include path chooses between nvcc's machine.cuh and the emulator's."""
    files = filter(Path.is_file, (emulated.ROOT / "kernels" / "cuda").rglob("*"))
    asking = {
        f.name for f in files if re.search("__CUDACC__|__CUDA_ARCH__|emulator\\.", f.read_text())
    }
    assert asking == set()


if __name__ == "__main__":
    kernels = emulated.load(sys.argv[1])
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(1, 40, (2, 70)).astype(np.int32))
    acts = rng.normal(size=(150, 2, 700)).astype(np.float32)
    problem = acts, labels, np.array([150, 130], np.int32)
    # Few frames for labels that all differ from their neighbours: paths advance at almost each.
    labels = (np.arange(2 * 70) % 7).reshape(2, 70).astype(np.int32)
    tight = acts[:80, :, :8], labels + (labels >= 4), np.array([80, 78], np.int32)
    check(kernels.solve(*tight, blank=4), *tight, blank=4)
    labels = (1 + np.arange(140) % 8)[None].astype(np.int32)
    long = acts[:, :1, :9], labels, np.array([149], np.int32)
    for seed in range(2):  # two strips, a block each
        check(kernels.solve(*long, seed=seed), *long)
    for seed in range(6):
        pairs = {"multiprocessors": 1 + 131 * (seed % 2)}  # two a lane, or one
        check(kernels.solve(*problem, seed=seed, in_place=True, **pairs), *problem)
        check(kernels.solve(*wrong_problems(), seed=seed), *wrong_problems())
        directions = directions_like(acts)
        check_product(kernels.hvp(*problem, directions, seed=seed), *problem, directions)

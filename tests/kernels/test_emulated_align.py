# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of the best path by the emulator: the path of an enumeration and of the CPU
kernels, bit for bit."""

import functools
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from test_align_backends import KINDS, assert_same_paths
from test_align_backends import problem as random_problem

import jax_ctc
from support import alignments, emulated
from support.results import TOLERANCE, assert_same_bits
from support.runs import only_all, sweep

pytestmark = emulated.NEEDED
PAIRS = 56  # that a warp answers for
TILE, BLOCK = 8, 2048  # frames


def check(kernels, acts, labels, lengths, *, best=alignments.viterbi, **options):
    """Against the oracle: the same path; the score as promised. Returns the answer."""
    answer = kernels.align(acts, labels, lengths, **options)
    what = {k: v for k, v in options.items() if k in ("blank", "softmax", "star")}
    path, index, score = alignments.solve(acts.astype(float), labels, lengths, best=best, **what)
    np.testing.assert_array_equal(answer[0], path)
    np.testing.assert_array_equal(answer[1], index)
    tolerance = TOLERANCE[answer[2].dtype]
    np.testing.assert_allclose(
        answer[2], score, rtol=tolerance, atol=tolerance * np.sqrt(len(acts) + 1)
    )
    return answer


def problem(T, B, V, L, dtype=np.float32, seed=0):
    """Ragged, with padding anywhere; small integers, of which many paths have equal sums."""
    rng = np.random.default_rng([T, V, L, seed])
    acts = np.round(rng.normal(size=(T, B, V))).astype(dtype)
    labels = rng.integers(1, max(V, 2), (B, L), dtype=np.int32)
    labels[(rng.random((B, L)) < 0.1) | (V == 1)] = -1
    lengths = rng.integers(T - T // 4, T + 1, B, dtype=np.int32)
    lengths[0] = T
    return acts, labels, lengths


# ---- against enumeration and the oracle --------------------------------------------------------


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(("V", "blank", "star"), [(3, 0, None), (3, 1, 3), (2, 1, 2)])
def test_of_all_paths_the_best_one_is_taken_and_ties_are_broken_by_rule(
    kernels, V, blank, star, softmax
):
    T, B, L = 6, 60, 3
    rng = np.random.default_rng(V)
    acts = rng.integers(-1, 2, (T, B, V)).astype(np.float32)
    acts[rng.random(acts.shape) < 0.1] = -np.inf
    acts[1, 4], acts[1, 5, 0], acts[2, 6, V - 1] = -np.inf, np.nan, np.inf
    labels = rng.integers(0, V, (B, L), dtype=np.int32)
    if star:
        labels[rng.random((B, L)) < 0.3] = star
    labels[(labels == blank) | (rng.random((B, L)) < 0.1)] = -1
    lengths = rng.integers(T - 2, T + 1, B, dtype=np.int32)
    options = {"blank": blank, "softmax": softmax, "star": star}
    check(kernels, acts, labels, lengths, best=alignments.enumerate_paths, **options)


@pytest.mark.parametrize("L", [0, 1, *(k * PAIRS + d for k in (1, 2) for d in (-2, -1, 0))])
def test_around_the_pairs_of_a_warp(kernels, L):
    check(kernels, *problem(2 * L + 2 * TILE + 1, 2, 5, L))


@pytest.mark.parametrize("T", [0, 1, TILE - 1, TILE, TILE + 1, 2 * TILE])
def test_around_the_frames_of_a_tile(kernels, T):
    check(kernels, *problem(T, 3, 4, 3))
    check(kernels, *problem(T, 3, 1, 2))


BLOCKS = [(BLOCK - 1, 3), (BLOCK, 2), (BLOCK + 1, 60), (2 * BLOCK + 5, 60), (BLOCK + 40, BLOCK)]


@pytest.mark.slow
@pytest.mark.parametrize(("T", "L"), sweep(BLOCKS, BLOCKS[1:3]))
def test_around_the_frames_of_a_block(kernels, T, L):
    acts, labels, lengths = problem(T, 1, 40, L)
    if L == BLOCK:  # nearly every frame another label
        labels[0] = 1 + np.arange(L) % 39
    check(kernels, acts, labels, lengths)


def bursts():
    """Paths that take a label in each of 16 frames, then none in 16. Tiles begin at another frame
    of each sequence."""
    L, V = 2 * PAIRS + 16, 12
    T = 2 * L + 2 * TILE
    said = np.arange(T) // 32 * 16 + np.minimum(np.arange(T) % 32, 15)  # the label of a frame
    labels = np.tile(1 + np.arange(L, dtype=np.int32) % (V - 1), (TILE, 1))
    acts = np.zeros((T, TILE, V), np.float32)
    spoken = np.arange(T)[said < L]
    acts[spoken, :, labels[0, said[spoken]]] = 6
    return acts, labels, T - np.arange(TILE, dtype=np.int32)


def test_paths_of_a_label_a_frame_cross_from_warp_to_warp(kernels):
    for seed in sweep((1, 2, 3), (1,)):
        check(kernels, *bursts(), seed=seed)


@pytest.mark.parametrize(("V", "dtype"), [(2100, 0), (2300, 2), (9001, 0), (9001, 1)])
def test_several_warps_share_a_row(kernels, V, dtype):
    acts, labels, lengths = problem(9, 4, V, 3, emulated.DTYPES[dtype])
    labels[:, 1] = V
    acts[3, 2, V - 2] = np.nan
    for softmax in (True, False):
        check(kernels, acts, labels, lengths, blank=V // 2, star=V, softmax=softmax)
    labels[2, 1] = -1  # without a star no other log-score is read
    answer = check(kernels, acts, labels, lengths, blank=V // 2, star=V, softmax=False)
    assert np.isfinite(answer[2][2]) == (V - 2 not in labels[2])


# ---- against the CPU kernels -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
def test_the_path_is_that_of_the_cpu_kernels(kernels, kind, dtype):
    """The problems, and programs, of test_align_backends."""
    given = random_problem(kind, dtype=dtype)
    assert_same_paths(kernels.align(*given), jax_ctc.ctc_align(*given))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_path_of_a_star_is_that_of_the_cpu_kernels(kernels, kind, softmax):
    acts, labels, lengths = random_problem(kind)
    labels[:, ::5] = 7
    options = {"softmax": softmax, "star": 7}
    ours = kernels.align(acts, labels, lengths, **options)
    assert_same_paths(ours, jax_ctc.ctc_align(acts, labels, lengths, **options))


@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize("dtype", emulated.DTYPES, ids=str)
def test_any_layout_and_alignment_of_any_dtype(kernels, time_axis, dtype):
    acts, labels, lengths = problem(40, 3, 7, 9, dtype)
    expected = alignments.solve(acts.astype(float), labels, lengths)
    for shift in (0, 1, 3):
        path, index, score = kernels.align(
            np.moveaxis(acts, 0, time_axis), labels, lengths, time_axis=time_axis, shift=shift
        )
        np.testing.assert_array_equal(np.moveaxis(path, time_axis, 0), expected[0])
        np.testing.assert_array_equal(np.moveaxis(index, time_axis, 0), expected[1])
        np.testing.assert_allclose(score, expected[2], rtol=1e-6)


# ---- the edges ---------------------------------------------------------------------------------


def wrong_problem():
    acts, labels, lengths = problem(20, 10, 6, 4)
    labels[:] = [1, 2, 2, 3]
    lengths[:] = 15
    acts[15:] = np.nan  # never read
    labels[0, 1], labels[9, 3] = 6, np.iinfo(np.int32).max
    labels[1, 2] = 0  # the blank
    lengths[2], lengths[3] = -1, 21
    acts[3, 4, 5], acts[14, 5, 0], acts[0, 6] = np.nan, np.inf, -np.inf
    lengths[7] = 4  # infeasible
    return acts, labels, lengths


def test_what_is_wrong_with_one_sequence_is_its_own(kernels):
    acts, labels, lengths = wrong_problem()
    for seed in range(3):
        _, _, score = check(kernels, acts, labels, lengths, seed=seed)
    np.testing.assert_array_equal(score[:8], [np.nan] * 7 + [-np.inf])
    acts[3, 7] = np.nan  # counts in a sequence without an alignment too
    assert np.isnan(check(kernels, acts, labels, lengths)[2][7])
    lengths[:] = np.arange(10) % 2 * np.iinfo(np.int32).min
    check(kernels, acts, labels, lengths)


def test_no_batch_and_no_frames(kernels):
    for T, B, L in ((0, 2, 2), (0, 2, 0), (5, 0, 2), (5, 2, 0)):
        acts, lengths = np.zeros((T, B, 3), np.float32), np.full(B, T, np.int32)
        check(kernels, acts, np.ones((B, L), np.int32), lengths)


@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1.7e308), (np.float32, 3e38)])
def test_logits_of_any_size_make_no_nan_of_a_sum(kernels, dtype, most):
    acts = np.zeros((6, 2, 3), dtype)
    acts[:3, 0, 0], acts[3:, 0, 1] = -most, most
    acts[:, 1, 1] = most
    labels = np.array([[1, 2], [2, -1]], np.int32)
    path, index, score = kernels.align(acts, labels, np.array([6, 6], np.int32))
    assert not np.isnan(score).any()
    assert np.isneginf(score[1])
    for b in range(2):
        assert (path[:, b] == -1).all() == (index[:, b] == -1).all() == np.isneginf(score[b])


# ---- threads, memory, launches -----------------------------------------------------------------


def several_warps(T=170, L=2 * PAIRS + 9, seed=0):
    """Sequences of two or three groups of pairs, a star among them."""
    acts, labels, lengths = problem(T, 2, 7, L, seed=seed)
    labels[:, ::9] = 7
    labels[1, 40:] = -1
    return acts, labels, lengths


def test_the_same_bits_in_any_order_of_threads_any_batch_and_anywhere_in_memory(kernels):
    acts, labels, lengths = several_warps()
    first = check(kernels, acts, labels, lengths, star=7)
    for seed in (2, 3):
        for shared in (227 << 10, 2 << 10):
            again = kernels.align(acts, labels, lengths, star=7, seed=seed, shared=shared)
            for x, y in zip(again, first, strict=True):
                assert_same_bits(x, y)
    for b in range(2):
        one = np.s_[b : b + 1]
        alone = kernels.align(acts[:, one], labels[one], lengths[one], star=7)
        for x, y in zip(alone, first, strict=True):
            assert_same_bits(x, y[..., one])


def steep():
    """A path that takes another label in nearly every frame, so it is in pair t at frame t."""
    acts, labels, lengths = problem(84, 1, 40, 78)
    labels[0] = 1 + np.arange(78) % 39
    return acts, labels, lengths


@only_all
def test_what_one_thread_stores_is_ordered_before_another_reads_it(kernels):
    """In blocks of 32 frames, between which the states are stored; the same bits as in one."""
    buffering = emulated.kernels_that_buffer_stores()
    for given, star in ((several_warps(90, PAIRS + 9), 7), (steep(), None)):
        expected = kernels.align(*given, star=star)
        for seed, shared in ((1, 227 << 10), (2, 1 << 10)):
            ours = buffering.align(*given, star=star, seed=seed, shared=shared)
            for x, y in zip(ours, expected, strict=True):
                assert_same_bits(x, y)


def test_two_launches_and_little_memory(kernels):
    launches = kernels.library.launches
    before = launches()
    kernels.align(*problem(20, 3, 5, 4))
    assert launches() - before == 2
    # An hour of speech, for which a bit-packed choice of every pair and frame would take 750 MB.
    assert kernels.library.scratch_bytes(4, 0, 100_000, 20_000) < 22e6
    # Sequences of one block: half a byte a pair and frame.
    few, many = (kernels.library.scratch_bytes(4, 0, 1504, L) for L in (100, 200))
    assert many - few == 100 * (1504 // 2 + 40)


# ---- whether the tests would notice ------------------------------------------------------------

VOTE = "__ballot_sync(kAllLanes, 1);"  # lanes wait for each other, but no store is ordered
SWEEP, KERNEL, ROWS = "align_sweep.cuh", "align.cu", "align_rows.cu"
BUGS = {
    "warps do not meet": (
        SWEEP,
        "continue;\n      __syncthreads();",
        f"continue;\n      if (BUG) {VOTE} else __syncthreads();",
    ),
    "nobody waits for the path": (
        KERNEL,
        "    __syncthreads();\n    pair =",
        f"    if (BUG) {VOTE} else __syncthreads();\n    pair =",
    ),
    "nobody waits for the stored states": (
        KERNEL,
        "window);\n      __syncthreads();",
        f"window);\n      if (BUG) {VOTE} else __syncthreads();",
    ),
    "stored states come back to one of the two places": (
        SWEEP,
        "states[i] = states[ws.columns + i] = from[i]",
        "states[i] = states[BUG ? i : ws.columns + i] = from[i]",
    ),
    "a path advances where it may stay": (
        SWEEP, "(b > l ? kLabel", "((BUG ? b >= l : b > l) ? kLabel",
    ),
    "a path skips where it may advance": (
        SWEEP, "(skip > either ?", "((BUG ? skip >= either : skip > either) ?",
    ),
    "a path ends in the blank where it may end in the label": (
        SWEEP, "label >= blank;", "(BUG ? label > blank : label >= blank);",
    ),
    "a warp answers for pairs that lack a neighbour": (
        SWEEP,
        "lane_index() < kTileFrames ||",
        "lane_index() < kTileFrames - (BUG && pair > 9 ? 2 : 0) ||",
    ),
    "the window is too small": (SWEEP, "target - (end - 1 - t)", "target - (end - 1 - BUG - t)"),
    "a star stands for the last of equal classes": (
        ROWS, "v < label)", "(BUG ? v > label : v < label))",
    ),
    "the reference of an impossible blank is -inf": (
        SWEEP,
        "reference = reference_of(of_blank)",
        "reference = BUG ? of_blank : reference_of(of_blank)",
    ),
    "words of a tile are looked for where the next one begins": (
        SWEEP, "words, of_words - pair)", "words, (BUG ? of_ahead : of_words) - pair)",
    ),
}  # fmt: skip


def test_bugs_have_a_place_in_the_source(tmp_path):
    emulated.assert_each_has_a_place(tmp_path, BUGS)


@pytest.mark.slow
@only_all
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug):
    emulated.assert_caught(__file__, BUGS, bug, buffers_stores=True)


@pytest.mark.slow
@only_all
def test_nothing_is_caught_where_no_bug_is():
    emulated.assert_nothing_caught(__file__, BUGS, buffers_stores=True)


if __name__ == "__main__":
    planted = emulated.load(sys.argv[1])
    check_planted = functools.partial(check, planted)
    check_planted(*wrong_problem())
    for k in range(3):
        check_planted(*several_warps(seed=k), star=7, seed=k)
        check_planted(*problem(60, 4, 4, 9, seed=k), star=4, softmax=False, seed=k)
    check_planted(*random_problem("impossible"))
    check_planted(*steep())
    for k in range(3):
        check_planted(*bursts(), seed=k)

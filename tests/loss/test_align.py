# SPDX-License-Identifier: Apache-2.0
"""Forced alignment: the path of an oracle, ties by rule, the edges, and the score's derivative."""

import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import alignments, oracle
from support.cases import Case, every_edge
from support.results import TOLERANCE, assert_gradient, assert_same_bits
from support.runs import sampled, sweep

align = jax.jit(
    jax_ctc.ctc_align, static_argnames=["blank", "time_major", "softmax", "star", "num_threads"]
)


def assert_alignment(actual, expected, T):
    path, label_index, score = map(np.asarray, actual)
    assert path.dtype == label_index.dtype == np.int32
    np.testing.assert_array_equal(path, expected[0])
    np.testing.assert_array_equal(label_index, expected[1])
    tolerance = TOLERANCE[score.dtype]
    np.testing.assert_allclose(score, expected[2], rtol=tolerance, atol=tolerance * np.sqrt(T + 1))
    assert (score <= 0)[~np.isnan(score)].all()


def random_batch(T, B, V, L, seed=0, ties=False, dtype=np.float32):
    """Ragged, with padding anywhere; `ties`: integer logits, of which many are equal."""
    rng = np.random.default_rng([T, V, L, seed])
    acts = rng.normal(size=(T, B, V), scale=2)
    acts = (np.round(acts / 2) if ties else acts).astype(dtype)
    labels = rng.integers(1, max(V, 2), (B, L), dtype=np.int32)
    labels[(rng.random((B, L)) < 0.2) | (V == 1)] = -1
    lengths = rng.integers(T - T // 3, T + 1, B, dtype=np.int32)
    return acts, labels, lengths


# ---- the path ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "V", "blank"), [(6, 3, 0), (7, 2, 1), (4, 4, 2)])
def test_of_all_paths_the_best_one_is_taken_and_ties_are_broken_by_rule(T, V, blank):
    B, L = 60, 3
    rng = np.random.default_rng(T)
    acts = rng.integers(-1, 2, (T, B, V)).astype(np.float32)
    acts[rng.random((T, B, V)) < 0.1] = -np.inf
    labels = rng.integers(0, V, (B, L), dtype=np.int32)
    labels[(labels == blank) | (rng.random((B, L)) < 0.2)] = -1
    lengths = rng.integers(T - 2, T + 1, B, dtype=np.int32)
    by_enumeration = alignments.solve(
        acts, labels, lengths, blank=blank, best=alignments.enumerate_paths
    )
    by_programming = alignments.solve(acts, labels, lengths, blank=blank)
    for one, other in zip(by_enumeration[:2], by_programming[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    assert_alignment(align(acts, labels, lengths, blank=blank), by_enumeration, T)


@every_edge
@pytest.mark.parametrize("L", [6, 11])
def test_every_edge_is_the_oracle_s(case, L):
    given = case.in_one_shape(V=12, L=L)
    expected = alignments.solve(*given, blank=Case.SHARED_BLANK)
    assert_alignment(align(*given, blank=Case.SHARED_BLANK), expected, len(given[0]))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize(("T", "V", "blank"), sweep([(6, 3, 0), (7, 2, 1), (5, 3, 2)], [(6, 3, 0)]))
def test_a_star_is_the_best_class_but_the_blank_and_else_a_label_like_any_other(
    T, V, blank, softmax
):
    B, L = 80, 3
    rng = np.random.default_rng(T)
    acts = rng.integers(-1, 2, (T, B, V)).astype(np.float32)
    acts[rng.random((T, B, V)) < 0.1] = -np.inf
    labels = rng.integers(0, V + 1, (B, L), dtype=np.int32)
    labels[rng.random((B, L)) < 0.3] = V
    labels[(labels == blank) | (rng.random((B, L)) < 0.1)] = -1
    labels[:4] = [[V, V, -1], [V, -1, 1 - min(blank, 1)], [1 - min(blank, 1), V, V], [V] * 3]
    lengths = rng.integers(T - 2, T + 1, B, dtype=np.int32)
    acts[1, 4, :], acts[1, 5, 0], acts[2, 6, V - 1] = -np.inf, np.nan, np.inf
    options = {"blank": blank, "softmax": softmax, "star": V}
    expected = alignments.solve(acts, labels, lengths, best=alignments.enumerate_paths, **options)
    by_programming = alignments.solve(acts, labels, lengths, **options)
    for one, other in zip(expected[:2], by_programming[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    out = align(acts, labels, lengths, **options)
    np.testing.assert_array_equal(out.path, expected[0])
    np.testing.assert_array_equal(out.label_index, expected[1])
    np.testing.assert_allclose(out.score, expected[2], rtol=1e-6, atol=1e-6)
    assert np.isfinite(expected[2]).any()
    # The class that a star stands for has the derivative.
    gradient = jax.grad(lambda x: align(x, labels, lengths, **options).score.sum())(acts)
    undefined = np.isnan(expected[2]) & (lengths >= 0)
    one_hot = expected[0][..., None] == np.arange(V)
    if not softmax:
        exact = np.where(undefined[:, None], np.asarray(gradient), one_hot)
        np.testing.assert_array_equal(gradient, exact)
    else:
        defined = np.where(undefined[:, None], 0, np.asarray(gradient))
        kept = np.where(undefined[:, None], 0, acts)
        path = np.where(undefined, -1, expected[0])
        assert_gradient(defined, expected_gradient(kept, lengths, path))


def test_a_star_takes_what_the_transcript_lacks():
    acts = np.full((9, 6), -4, np.float32)
    said = [1, 0, 5, 4, 3, 0, 2, 2, 0]
    acts[np.arange(9), said] = 4
    out = align(acts, np.array([1, 6, 2], np.int32), np.int32(9), star=6)
    np.testing.assert_array_equal(out.path, said)
    np.testing.assert_array_equal(out.label_index, [0, -1, 1, 1, 1, -1, 2, 2, -1])
    np.testing.assert_array_equal(jax_ctc.label_spans(out, 3).start, [0, 2, 6])


def test_without_another_class_a_star_has_no_alignment():
    out = align(np.zeros((4, 1, 1), np.float32), np.array([[1]]), np.array([4]), star=1)
    assert np.isneginf(out.score).all()
    assert (np.asarray(out.path) == -1).all()


@pytest.mark.parametrize(
    ("star", "error", "message"),
    [
        (5, ValueError, r"^`star`: expected None or V = 4, one past the classes, .* got 5"),
        (3, ValueError, r"^`star`: expected None or V = 4"),
        (True, TypeError, r"^`star`: expected None or a Python int, got a bool"),
        (4.0, TypeError, r"^`star`: expected None or a Python int, got a float"),
    ],
)
def test_a_star_that_is_not_one_past_the_classes_raises(star, error, message):
    given = np.zeros((3, 1, 4), np.float32), [[1, 4]], [3]
    with pytest.raises(error, match=message):
        jax_ctc.ctc_align(*given, star=star)
    with pytest.raises(TypeError, match=r"`star`: .* got a traced value"):
        jax.jit(lambda s: jax_ctc.ctc_align(*given, star=s))(4)
    with pytest.raises(ValueError, match=r"labels\[0, 1\] = 5 is not a class .* nor the star"):
        jax_ctc.ctc_align(given[0], [[1, 5]], [3], star=4)


# Around the widths of vectors, whole groups of four frames, and several blocks.
SHAPES = [(33, 3, 5, 7), (40, 2, 9, 8), (66, 2, 3, 20), (131, 2, 30, 17), (127, 1, 2, 30)]
SHAPES += [(300, 2, 40, 100), (1500, 1, 60, 300), (97, 2, 300, 33)]


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_path_of_any_shape_is_the_oracle_s(shape, ties):
    given = random_batch(*shape, ties=ties)
    assert_alignment(align(*given), alignments.solve(*given), shape[0])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_every_dtype_has_the_path_of_its_numbers(dtype):
    given = random_batch(50, 3, 9, 12, dtype=dtype)
    out = align(*given)
    assert out.score.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert_alignment(out, alignments.solve(*given), 50)


def test_sums_keep_digits_that_float32_loses():
    """Emissions of 1e6 nats, which differ by a few: float32 sums would take wrong turns."""
    acts, labels, lengths = random_batch(400, 2, 6, 40, seed=1)
    acts[..., 0] -= 1e6
    acts[200:, :, 0] += 2e6
    assert_alignment(align(acts, labels, lengths), alignments.solve(acts, labels, lengths), 400)


@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1.7e308), (np.float32, 3e38)])
def test_logits_of_any_size_make_no_nan_of_a_sum(dtype, most):
    """A score that is too small for its dtype counts as none."""
    acts = np.zeros((6, 2, 3), dtype)
    acts[:3, 0, 0], acts[3:, 0, 1] = -most, most
    acts[:, 1, 1] = most  # costs 6 * most: label 2 is needed
    labels = np.array([[1, 2], [2, -1]], np.int32)
    path, index, score = map(np.asarray, align(acts, labels, np.array([6, 6], np.int32)))
    assert not np.isnan(score).any()
    assert np.isneginf(score[1])
    for b in range(2):
        assert (path[:, b] == -1).all() == (index[:, b] == -1).all() == np.isneginf(score[b])


def test_both_layouts_and_one_sequence_are_the_same(time_major):
    acts, labels, lengths = random_batch(30, 3, 7, 6)
    expected = align(acts, labels, lengths)
    if not time_major:
        path, label_index, score = align(acts.swapaxes(0, 1), labels, lengths, time_major=False)
        for x, y in zip((path.T, label_index.T, score), expected, strict=True):
            assert_same_bits(x, y)
    for b in range(3):
        alone = align(acts[:, b], labels[b], lengths[b], time_major=time_major)
        for x, y in zip(alone, expected, strict=True):
            assert_same_bits(x, y[..., b])


def test_any_number_of_threads_returns_the_same_bits():
    given = random_batch(200, 9, 20, 40)
    for x, y in zip(align(*given, num_threads=1), align(*given), strict=True):
        assert_same_bits(x, y)


# ---- the edges ---------------------------------------------------------------------------------


def test_label_lengths_say_what_is_padding():
    acts, labels, lengths = random_batch(30, 3, 7, 6)
    counts = np.array([0, 3, 6], np.int32)
    expected = alignments.solve(acts, labels, lengths, counts)
    assert_alignment(align(acts, labels, lengths, counts), expected, 30)


def test_an_odd_sequence_has_no_path_and_leaves_the_others_alone():
    acts, labels, lengths = random_batch(20, 9, 6, 4)
    labels[:] = [1, 2, 2, 3]
    lengths[:] = 15
    usual = align(acts, labels, lengths)
    acts[15:] = np.nan  # never read
    labels[0, 1] = 6  # no class
    labels[1, 2] = 0  # the blank
    lengths[2], lengths[3] = -1, 21
    acts[3, 4, 5], acts[14, 5, 0], acts[0, 6] = np.nan, np.inf, -np.inf
    lengths[7] = 4  # infeasible
    out = align(acts, labels, lengths)
    for x, y in zip(out, usual, strict=True):
        assert_same_bits(x[..., 8], y[..., 8])
    assert (np.asarray(out.path)[:, :8] == -1).all()
    assert (np.asarray(out.label_index)[:, :8] == -1).all()
    np.testing.assert_array_equal(out.score[:8], [np.nan] * 7 + [-np.inf])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_star_among_log_scores_of_halves(dtype):
    acts = jnp.asarray(np.random.default_rng(0).normal(size=(5, 1, 40)), dtype)
    given = np.array([[40, 1]]), np.array([5])
    half, wide = (align(x, *given, softmax=False, star=40) for x in (acts, acts.astype("f")))
    np.testing.assert_array_equal(half.path, wide.path)
    np.testing.assert_allclose(half.score, wide.score, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_star_among_log_scores_reads_all_classes(value):
    acts = np.zeros((5, 1, 4), np.float32)
    acts[2, 0, 3] = value
    found = align(acts, np.array([[4, 1]]), np.array([5]), softmax=False, star=4)
    assert np.isnan(found.score).all()
    assert (np.asarray(found.path) == -1).all()


@pytest.mark.parametrize("t", range(3))
@pytest.mark.parametrize("V", [4, 40, 400])
def test_a_nan_counts_in_a_sequence_without_an_alignment_too(t, V):
    acts = np.zeros((3, 2, V), np.float32)
    acts[t, 0, 2] = np.nan
    labels = np.full((2, 9), 1, np.int32)
    np.testing.assert_array_equal(align(acts, labels, np.array([3, 3])).score, [np.nan, -np.inf])
    np.testing.assert_array_equal(jax_ctc.ctc(acts, labels, np.array([3, 3])), [np.nan, np.inf])


@pytest.mark.parametrize(
    ("T", "B", "V", "L"), [(0, 2, 3, 2), (0, 2, 3, 0), (5, 0, 3, 2), (5, 2, 3, 0), (5, 2, 1, 0)]
)
def test_empty_arrays_are_answered(T, B, V, L):
    out = align(np.zeros((T, B, V), np.float32), np.ones((B, L), np.int32), np.full(B, T))
    assert out.path.shape == out.label_index.shape == (T, B)
    assert (np.asarray(out.path) == 0).all()
    expected = -np.inf if T < L else -T * np.log(V)
    np.testing.assert_allclose(out.score, np.full(B, expected), rtol=1e-6)
    start, end = jax_ctc.label_spans(out, L)
    assert start.shape == end.shape == (B, L)


def test_a_bad_value_raises():
    with pytest.raises(ValueError, match=r"^labels\[0, 1\] = 4 is not a class of acts with V = 4"):
        jax_ctc.ctc_align(np.zeros((3, 1, 4), np.float32), [[1, 4]], [3])


# ---- vmap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "axes", sweep(list(itertools.product([None, 0, 1, 3], [None, 0, 2], [None, 1])),
                  [(0, 0, 1), (3, None, None), (None, 2, None), (1, 0, None)])
)  # fmt: skip
def test_vmap_is_a_loop(axes):
    if axes == (None, None, None):
        pytest.skip("nothing is mapped")
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(3, 12, 2, 5)).astype(np.float32)
    labels = rng.integers(1, 5, (3, 2, 4), dtype=np.int32)
    lengths = rng.integers(8, 13, (3, 2), dtype=np.int32)
    parts = [
        x if d is not None else x[:1] for x, d in zip((acts, labels, lengths), axes, strict=True)
    ]
    operands = [
        np.moveaxis(x, 0, d) if d is not None else x[0] for x, d in zip(parts, axes, strict=True)
    ]
    out = jax.vmap(align, axes)(*operands)
    for i in range(3):
        alone = align(*(x[i % len(x)] for x in parts))
        for x, y in zip(out, alone, strict=True):
            assert_same_bits(x[i], y)


# ---- the derivative of the score ---------------------------------------------------------------


def expected_gradient(acts, lengths, path):
    used = np.asarray(path)[..., None] >= 0
    one_hot = np.asarray(path)[..., None] == np.arange(acts.shape[-1])
    softmax = np.exp(oracle.log_softmax(np.where(used, acts, 0).astype(float)))
    return np.where(used, one_hot - softmax, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@sampled(1)
def test_the_gradient_of_the_score_is_the_path_less_the_softmax(dtype):
    acts, labels, lengths = random_batch(20, 3, 6, 5, dtype=dtype)
    total = lambda acts: align(acts, labels, lengths).score.sum()  # noqa: E731
    expected = expected_gradient(acts, lengths, align(acts, labels, lengths).path)
    assert_gradient(jax.grad(total)(acts), expected)
    direction = np.cos(acts)
    tangent = jax.jvp(total, (acts,), (direction,))[1]
    np.testing.assert_allclose(tangent, (expected * direction).sum(), rtol=1e-5)
    gradient = jax.vmap(jax.grad(lambda a, *rest: align(a, *rest).score), (1, 0, 0), 1)
    assert_gradient(gradient(acts, labels, lengths), expected)
    # The path stays: the second derivative is that of the normaliser.
    change = jax.jvp(jax.grad(total), (acts,), (direction,))[1]
    normaliser = lambda a: jnp.where(  # noqa: E731
        np.asarray(expected).any(-1), -jax.nn.logsumexp(a, axis=-1), 0
    ).sum()
    assert_gradient(change, jax.jvp(jax.grad(normaliser), (acts,), (direction,))[1])


def test_a_sequence_without_a_path_has_no_gradient():
    acts, labels, lengths = random_batch(20, 5, 6, 4)
    labels[:] = [1, 2, 2, 3]
    lengths[:] = [15, 4, 15, 15, 21]
    labels[2, 0] = 9
    acts[3, 3, 2] = np.nan
    acts[15:, :4] = np.nan
    acts[:15, 0, 4] = -np.inf  # impossible, and not needed
    value, vjp = jax.vjp(lambda acts: align(acts, labels, lengths).score, acts)
    np.testing.assert_array_equal(np.isfinite(value), [True, False, False, False, False])
    gradient = np.asarray(vjp(np.ones(5, np.float32))[0])
    assert np.isfinite(gradient[:, 0]).all()
    assert not gradient[15:, 0].any()
    assert not gradient[:, 0, 4].any()
    assert not gradient[:, [1, 2, 4]].any()
    assert np.isnan(gradient[:15, 3]).all()
    assert not gradient[15:, 3].any()
    # Nor does an infinite cotangent make one, or a zero cotangent a NaN.
    gradient = np.asarray(vjp(np.array([0, np.inf, np.inf, 0, np.inf], np.float32))[0])
    assert not gradient.any()


def test_the_path_is_not_differentiated():
    acts, labels, lengths = random_batch(20, 3, 6, 5)
    out, tangent = jax.jvp(lambda a: align(a, labels, lengths), (acts,), (np.ones_like(acts),))
    assert tangent.path.dtype == tangent.label_index.dtype == jax.dtypes.float0
    assert_same_bits(out.path, align(acts, labels, lengths).path)
    assert_gradient(tangent.score, np.zeros(3), scale=10)  # of a constant


MASKS = [-1e8, -1e12, -1e17, -1e30, np.finfo(np.float32).min, -np.inf]
MASKED = np.array([[0, 5, 0], [0, 5, -5], [0, 0, 5]], np.float32)  # labels 1, 1, 2, without a blank


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("V", [3, 300])  # through a table, and row by row
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_keep_their_digits_beside_a_masked_blank(mask, softmax, V, dtype):
    acts = np.full((3, 1, V), -60, dtype)
    acts[:, 0, :3], acts[:, 0, 0] = MASKED, mask
    out = align(acts, np.array([[1, 2]], np.int32), np.array([3], np.int32), softmax=softmax)
    np.testing.assert_array_equal(out.path[:, 0], [1, 1, 2])
    expected = 15 - softmax * np.log(np.exp(MASKED[:, 1:].astype(float)).sum(-1)).sum()
    np.testing.assert_allclose(out.score, [expected], rtol=1e-5)


@pytest.mark.parametrize("labels", [[1, -1], [3, -1]], ids=["a label", "a star"])
def test_an_overflow_of_log_scores_makes_no_path(labels):
    """The blanks add up to more than a double holds, where no path is."""
    acts = np.full((2, 1, 3), -np.inf)
    acts[:, 0, 0] = 1e308
    given = np.array([labels], np.int32), np.array([2], np.int32)
    out = align(acts, *given, softmax=False, star=3)
    assert out.score == -np.inf
    assert (np.asarray(out.path) == -1).all()
    alone = align(acts[..., :1], np.array([[1]], np.int32), given[1], softmax=False, star=1)
    assert alone.score == -np.inf
    assert (np.asarray(alone.path) == -1).all()


# ---- spans -------------------------------------------------------------------------------------


def test_spans_are_the_frames_of_each_label(time_major):
    acts, labels, lengths = random_batch(40, 4, 7, 8)
    lengths[3] = 1  # infeasible
    acts = acts if time_major else acts.swapaxes(0, 1)
    alignment = align(acts, labels, lengths, time_major=time_major)
    start, end = map(np.asarray, jax_ctc.label_spans(alignment, 8, time_major=time_major))
    index = np.asarray(alignment.label_index if time_major else alignment.label_index.T)
    for b, i in np.ndindex(4, 8):
        frames = np.flatnonzero(index[:, b] == i)
        if len(frames) == 0:
            assert labels[b, i] < 0 or b == 3
            assert start[b, i] == end[b, i] == -1
        else:
            np.testing.assert_array_equal(frames, np.arange(start[b, i], end[b, i]))
    alone = jax_ctc.label_spans(
        jax.tree.map(lambda x: x[..., 0], align(*random_batch(9, 2, 4, 3))), 3
    )
    assert alone.start.shape == alone.end.shape == (3,)


def test_spans_are_mapped_over_more_axes():
    alignment = align(*random_batch(40, 4, 7, 8))
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), alignment)
    out = jax.vmap(partial(jax_ctc.label_spans, L=8))(twice)
    for x, y in zip(out, jax_ctc.label_spans(alignment, 8), strict=True):
        assert_same_bits(x[1], y)
    with pytest.raises(ValueError, match=r"Use jax\.vmap for more batch axes"):
        jax_ctc.label_spans(twice, 8)


OPTIONS = {
    "a negative L": ({"L": -1}, ValueError, r"`L`: expected at least 0, got -1\.$"),
    "a fraction": ({"L": 1.0}, TypeError, r"`L`: expected a Python int, got a float\.$"),
    "no L": ({"L": None}, TypeError, r"`L`: expected a Python int, got a NoneType\.$"),
    "an array": (
        {"L": np.arange(3)},
        TypeError,
        r"`L`: expected a Python int, got a ndarray\. Give .* x\.shape\[-1\]\.$",
    ),
    "no layout": ({"time_major": None}, TypeError, "`time_major`: expected a Python bool"),
    "a tuple": ({"alignment": (1, 2, 3)}, TypeError, "`alignment`: expected what ctc_align"),
}


@pytest.mark.parametrize("wrong", OPTIONS.values(), ids=OPTIONS)
def test_options_of_spans_and_of_confidence_are_checked(wrong):
    changed, error, said = wrong
    acts, *rest = random_batch(9, 2, 4, 3)
    given = {"alignment": align(acts, *rest), "L": 3} | changed
    with pytest.raises(error, match=said):
        jax_ctc.label_spans(**given)
    with pytest.raises(error, match=said):
        jax_ctc.label_confidence(acts, **given)


def test_another_layout_than_that_of_the_alignment_is_recognised(time_major):
    acts, labels, lengths = random_batch(9, 2, 4, 3)
    acts = acts if time_major else acts.swapaxes(0, 1)
    alignment = align(acts, labels, lengths, time_major=time_major)
    said = r"`alignment`: expected a path of shape .* with B = 2 .* got \((9, 2|2, 9)\)"
    with pytest.raises(ValueError, match=said):
        jax_ctc.label_spans(alignment, 3, time_major=not time_major)
    with pytest.raises(ValueError, match=said):
        jax_ctc.label_confidence(acts, alignment, 3, time_major=not time_major)


def test_spans_and_confidence_check_their_own_options_under_jit():
    acts, *rest = random_batch(9, 2, 4, 3)
    alignment = align(acts, *rest)
    with pytest.raises(TypeError, match="`softmax`: expected a Python bool, got 'no'"):
        jax_ctc.label_confidence(acts, alignment, 3, softmax="no")
    with pytest.raises(TypeError, match="`L`: expected a Python int, got a traced value"):
        jax.jit(jax_ctc.label_spans)(alignment, 3)
    for function in (jax_ctc.label_spans, jax_ctc.label_confidence):
        assert pickle.loads(pickle.dumps(function)) is function


def test_confidence_keeps_its_digits_on_long_spans():
    T = 10_000
    acts = np.tile(np.array([[0.3, 1.7, -0.4, 0.9]], "f"), (T, 1))
    alignment = jax_ctc.ctc_align(acts, np.array([4]), T, star=4, softmax=False)
    assert (alignment.label_index == 0).all()
    confidence = jax_ctc.label_confidence(acts, alignment, 1)
    np.testing.assert_allclose(confidence, oracle.log_softmax(acts[:1])[:, 1], rtol=1e-6)


@pytest.mark.parametrize("softmax", [True, False])
@sampled(2)
def test_confidence_is_the_mean_over_the_frames_of_each_label(time_major, softmax):
    acts, labels, lengths = random_batch(40, 4, 7, 8)
    labels[2, 1] = 7  # a star
    lengths[3] = 1  # infeasible
    order = (lambda x: x) if time_major else (lambda x: x.swapaxes(0, 1))
    options = {"time_major": time_major, "softmax": softmax}
    alignment = align(order(acts), labels, lengths, star=7, **options)
    confidence = partial(jax_ctc.label_confidence, alignment=alignment, L=8, **options)
    path, index = (np.asarray(order(x)) for x in alignment[:2])
    exact = oracle.log_softmax(acts.astype(float)) if softmax else acts.astype(float)
    expected = np.full((4, 8), np.nan)
    for b, i in np.ndindex(4, 8):
        frames = np.flatnonzero(index[:, b] == i)
        if len(frames):
            expected[b, i] = exact[frames, b, path[frames, b]].mean()
    acts[20:, 3] = np.nan  # no frame of an alignment
    found = confidence(order(acts))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(expected[3]).all()
    gradient = jax.grad(lambda x: jnp.nansum(confidence(x)))(order(acts))
    assert np.isfinite(gradient).all()
    alone = jax.tree.map(lambda x: order(x)[:, 0] if x.ndim == 2 else x[0], alignment)
    of_one = jax_ctc.label_confidence(acts[:, 0], alone, 8, softmax=softmax)
    np.testing.assert_allclose(of_one, found[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@sampled(1)
def test_a_gradient_of_confidences_in_halves_loses_no_more_than_their_rounding(dtype):
    acts, labels, lengths = random_batch(40, 4, 7, 8)
    acts = jnp.asarray(4 * acts, dtype)  # the class of the path is nearly certain in many frames
    alignment = align(acts, labels, lengths)
    path, index = np.array(alignment.path), np.asarray(alignment.label_index)
    path[::3] = np.where(path[::3] < 0, -1, np.arange(4) + 3)  # no alignment has it
    alignment = alignment._replace(path=jnp.asarray(path))
    frames = index[..., None] == np.arange(8)
    weights = (frames / np.maximum(frames.sum(0), 1)).sum(-1)

    def exact(x):
        scores = jnp.take_along_axis(jax.nn.log_softmax(x), path[..., None], -1)[..., 0]
        return (scores * weights).sum()

    def found(x):
        return jnp.nansum(jax_ctc.label_confidence(x, alignment, 8))

    right = jax.grad(exact)(acts.astype(jnp.float64))
    gradient = jax.grad(found)(acts)
    assert gradient.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(gradient.astype(float), right, rtol=1.01 * eps / 2, atol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_row_without_a_softmax_has_no_confidence(value):
    acts, labels, lengths = random_batch(40, 4, 7, 8)
    alignment = align(acts, labels, lengths)
    index = np.asarray(alignment.label_index)
    expected = np.array(jax_ctc.label_confidence(acts, alignment, 8))
    frame = np.flatnonzero(index[:, 1] == 2)[0]
    acts[frame, 1, 3 if np.isnan(value) else slice(None)] = value
    found = np.asarray(jax_ctc.label_confidence(acts, alignment, 8))
    expected[1, 2] = np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_a_path_may_have_any_integer_dtype(dtype):
    acts = np.random.default_rng(0).normal(size=(300, 4)).astype("f")
    path = np.arange(300) % 4
    index = np.arange(300) // 100
    right, found = (
        jax_ctc.label_confidence(
            acts, jax_ctc.Alignment(jnp.asarray(path, x), jnp.asarray(index), jnp.zeros(())), 3
        )
        for x in (np.int32, dtype)
    )
    assert_same_bits(found, right)


def test_a_frame_of_no_class_may_hold_anything():
    acts, labels, lengths = random_batch(12, 2, 4, 3)
    alignment = align(acts, labels, lengths)
    alignment = jax.tree.map(lambda x: x.at[4].set(-1) if x.ndim == 2 else x, alignment)

    def gradient(acts):
        return jax.grad(lambda x: jnp.nansum(jax_ctc.label_confidence(x, alignment, 3)))(acts)

    right, clean = gradient(acts), acts.copy()
    acts[4], acts[lengths.min() :, lengths.argmin()] = np.nan, np.inf
    curvature = jax.grad(lambda x: (gradient(x) ** 2).sum())  # in reverse over reverse mode
    curved = curvature(clean)
    np.testing.assert_array_equal(gradient(acts), right)
    np.testing.assert_array_equal(curvature(acts), curved)
    assert not np.asarray(right)[4].any()


def test_alignments_of_the_same_acts_do_not_see_the_frames_of_each_other():
    acts = np.random.default_rng(0).normal(size=(3, 3)).astype("f")
    acts[2] = np.nan
    paths = jnp.array([[1, 1, -1], [1, 2, 2]], jnp.int32)
    index = jnp.array([[0, 0, -1], [0, 1, 1]], jnp.int32)

    def first(acts, path, index):  # of the label without a NaN
        return jax_ctc.label_confidence(acts, jax_ctc.Alignment(path, index, jnp.zeros(())), 2)[0]

    def total(acts):
        return jax.vmap(first, (None, 0, 0))(acts, paths, index).sum()

    for f in (total, lambda x: (jax.grad(total)(x) ** 2).sum()):
        found = jax.grad(f)(acts)
        assert not np.asarray(found)[2].any()
        np.testing.assert_allclose(found[:2], jax.grad(f)(np.nan_to_num(acts))[:2], rtol=1e-6)


def test_no_classes_have_no_confidence():
    nothing = jax_ctc.Alignment(*(jnp.full((3, 2), -1, jnp.int32) for _ in "ab"), jnp.zeros(2))
    assert np.isnan(jax_ctc.label_confidence(np.zeros((3, 2, 0), "f"), nothing, 2)).all()


def test_a_confidence_of_another_alignment_raises():
    alignment = align(*random_batch(9, 2, 4, 3))
    with pytest.raises(ValueError, match=r"`alignment`: expected a path of shape \(8, 2\)"):
        jax_ctc.label_confidence(np.zeros((8, 2, 4), np.float32), alignment, 3)


# ---- hypotheses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("softmax", "star", "axes"),
    sweep(
        [(s, star, axes) for s in (True, False) for star in (None, 40)
         for axes in ((None, 0, None), (None, 1, 0), (None, None, 0))],
        [(True, None, (None, 1, 0)), (False, None, (None, 0, None)), (True, 40, (None, 1, 0))],
    ),
)  # fmt: skip
@sampled(2)
def test_hypotheses_of_the_same_acts_are_a_loop_without_copies(softmax, star, axes):
    K, T, B, V, L = 3, 20, 2, 40, 5
    rng = np.random.default_rng(1)
    acts = rng.normal(size=(T, B, V)).astype(np.float32)
    labels = rng.integers(1, V, (K, B, L), dtype=np.int32)
    labels[0, 0, 3], labels[1, 1, 2] = -1, labels[1, 1, 1]
    if star is not None:
        labels[:, :, 0] = star
    lengths = rng.integers(T - 4, T + 1, (K, B), dtype=np.int32)
    many = [
        x[0] if d is None else np.moveaxis(x, 0, d)
        for x, d in zip((labels, lengths), axes[1:], strict=True)
    ]
    function = jax.vmap(partial(jax_ctc.ctc_align, softmax=softmax, star=star), axes)
    out = function(acts, *many)
    for k in range(K):
        own = [
            x[0] if d is None else x[k] for x, d in zip((labels, lengths), axes[1:], strict=True)
        ]
        alone = align(acts, *own, softmax=softmax, star=star)
        assert_same_bits(out.path[k], alone.path)
        assert_same_bits(out.label_index[k], alone.label_index)
        np.testing.assert_allclose(out.score[k], alone.score, rtol=1e-6, atol=1e-5)
    (gradient,) = jax.vjp(lambda x: function(x, *many).score, acts)[1](jnp.ones_like(out.score))
    assert np.isfinite(gradient).all()
    text = jax.jit(function).lower(acts, *many).as_text()
    assert f"{K}x{T}x{B}x{V}x" not in text
    assert f"{T}x{B}x{K}x{V}x" not in text


@pytest.mark.parametrize("time_major", [True, False])
def test_no_labels_have_no_confidence(time_major):
    acts = np.zeros((5, 2, 3) if time_major else (2, 5, 3), np.float32)
    nothing = np.zeros((2, 0), np.int32)
    alignment = jax_ctc.ctc_align(acts, nothing, None, time_major=time_major)
    found = jax_ctc.label_confidence(acts, alignment, 0, time_major=time_major)
    assert found.shape == (2, 0)
    assert found.dtype == np.float32


def test_labels_from_l_on_are_left_out():
    acts = np.log(np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8], [1, 1, 8.0]]) / 10)
    alignment = jax_ctc.ctc_align(acts, np.array([1, 2]), None)
    spans = jax_ctc.label_spans(alignment, 1)
    assert (spans.start.tolist(), spans.end.tolist()) == ([1], [2])
    acts[2:] *= 2
    found = jax_ctc.label_confidence(acts, alignment, 1, softmax=False)
    np.testing.assert_allclose(found, [np.log(0.8)], rtol=1e-6)

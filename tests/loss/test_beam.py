# SPDX-License-Identifier: Apache-2.0
"""Prefix beam search: labels and scores, against enumeration and against a search in plain Python.

tests/kernels/test_beam_kernel.py compares the kernel with pure JAX.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from jax_ctc import ctc_beam_search_decode as decode
from support.oracle import log_softmax
from support.results import COMPILED, DEVICE, assert_same_bits
from support.runs import mesh_in_use, sweep

NONE = -np.inf
DTYPES = [np.float32, np.float64, np.float16, jnp.bfloat16]
eight_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


def log_probabilities(acts):
    return log_softmax(np.asarray(acts, np.float64))


def enumerated(acts, blank=0):
    """[(labels, score)] of all label sequences of one (T, V) sequence, the most probable first."""
    log_p, frames = log_probabilities(acts), np.arange(len(acts))
    scores = {}
    for path in itertools.product(range(acts.shape[1]), repeat=len(acts)):
        labels = tuple(k for k, _ in itertools.groupby(path) if k != blank)
        scores[labels] = np.logaddexp(scores.get(labels, NONE), log_p[frames, path].sum())
    return sorted(scores.items(), key=lambda item: -item[1])


def searched(acts, width, blank=0):
    """[(labels, score)] of a beam search that keeps prefixes in a dict."""
    beam = {(): (0.0, NONE)}
    for row in log_probabilities(acts):
        after = {}

        def add(prefix, in_blank, in_label, after=after):
            old = after.get(prefix, (NONE, NONE))
            after[prefix] = np.logaddexp(old[0], in_blank), np.logaddexp(old[1], in_label)

        for prefix, (in_blank, in_label) in beam.items():
            total = np.logaddexp(in_blank, in_label)
            for c, p in enumerate(row):
                if c == blank:
                    add(prefix, total + p, NONE)
                elif prefix and prefix[-1] == c:
                    add(prefix, NONE, in_label + p)
                    add((*prefix, c), NONE, in_blank + p)
                else:
                    add((*prefix, c), NONE, total + p)
        best = sorted(after.items(), key=lambda item: -np.logaddexp(*item[1]))
        beam = dict(best[:width])
    return [(prefix, np.logaddexp(*ends)) for prefix, ends in beam.items()]


def assert_found(decoded, expected, rtol=1e-5):
    """One sequence: `expected` come first, and nothing comes after them."""
    labels, label_lengths, score = map(np.asarray, decoded)
    found = [tuple(row[:n].tolist()) for row, n in zip(labels, label_lengths, strict=True)]
    expected = [item for item in expected if item[1] > NONE]
    some = expected[: len(found)]
    assert found[: len(some)] == [prefix for prefix, _ in some]
    np.testing.assert_allclose(score[: len(some)], [x for _, x in some], rtol=rtol, atol=rtol)
    assert (score[len(some) :] == NONE).all()
    assert (label_lengths[len(some) :] == 0).all()
    for row, n in zip(labels, label_lengths, strict=True):
        assert (row[n:] == -1).all()


def of_sequence(decoded, b):
    return jax.tree.map(lambda x: x[b], decoded)


@pytest.mark.parametrize(("T", "V", "blank"), [(4, 3, 0), (6, 2, 0), (3, 4, -1), (5, 3, 1)])
def test_a_beam_that_holds_all_prefixes_finds_what_enumeration_finds(T, V, blank, time_major):
    acts = np.random.default_rng(T).normal(scale=2, size=(T, 3, V)).astype("f")
    acts[:, 2, -2] = -np.inf  # a class that is impossible
    given = acts if time_major else acts.swapaxes(0, 1)
    options = {"beam_width": 128, "top_paths": 100, "blank": blank, "time_major": time_major}
    decoded = decode(given, None, **options)
    assert decoded.labels.shape == (3, 100, T)
    for b in range(3):
        assert_found(of_sequence(decoded, b), enumerated(acts[:, b], blank % V))


@pytest.mark.parametrize("dtype", sweep(DTYPES, [np.float32, jnp.bfloat16]))
@pytest.mark.parametrize("width", sweep([1, 2, 5, 16], [1, 5]))
def test_a_narrow_beam_finds_what_a_search_with_a_dict_finds(width, dtype):
    """Few classes, so that prefixes leave the beam and come back."""
    rng = np.random.default_rng(width)
    acts, lengths = rng.normal(scale=1.5, size=(20, 4, 4)).astype(dtype), [20, 13, 1, 0]
    paths = min(width, 4)
    decoded = decode(acts, np.array(lengths), beam_width=width, top_paths=paths)
    assert decoded.score.dtype == (np.float64 if dtype == np.float64 else np.float32)
    for b, length in enumerate(lengths):
        assert_found(of_sequence(decoded, b), searched(acts[:length, b], width))


@pytest.mark.parametrize("V", sweep((30, 130, 300, 1000), (30, 300)))
def test_many_classes(V):
    """Not all classes of a frame are looked at, but it makes no difference."""
    acts = np.random.default_rng(V).normal(scale=2, size=(8, 2, V))
    decoded = decode(acts, None, beam_width=6, top_paths=6)
    for b in range(2):
        assert_found(of_sequence(decoded, b), searched(acts[:, b], 6))


def test_only_the_best_classes_of_a_frame_are_appended():
    acts = np.random.default_rng(0).normal(size=(6, 9)).astype("f")
    allowed = np.argsort(-acts[:, 1:], axis=-1)[:, :2] + 1
    labels, label_lengths, _ = decode(acts, None, beam_width=40, top_paths=40, classes_per_frame=2)
    assert {k for row in labels.tolist() for k in row if k >= 0} <= set(allowed.ravel().tolist())
    assert label_lengths.max() > 1
    all_classes = decode(acts, None, beam_width=8, top_paths=8)
    assert_same_bits(decode(acts, None, beam_width=8, top_paths=8, classes_per_frame=8).score,
                     all_classes.score)  # fmt: skip


def test_the_blank_is_none_of_the_classes_of_a_frame():
    acts = np.random.default_rng(0).normal(size=(4, 100)).astype("f")
    acts[:, 0] += 8
    found = decode(acts, None, beam_width=3, top_paths=3, classes_per_frame=1)
    assert np.isfinite(found.score).all()
    assert found.label_lengths.tolist() == [0, 1, 1]


def test_a_score_is_that_of_ctc_or_less():
    """Less if paths were pruned."""
    rng = np.random.default_rng(0)
    acts = rng.normal(scale=2, size=(30, 6, 12))
    lengths = np.array([30, 22, 30, 9, 1, 0])

    def scores(width):
        labels, label_lengths, score = decode(acts, lengths, beam_width=width, top_paths=width)
        cost = jax.vmap(partial(jax_ctc.ctc, acts), (1, None, 1), 1)(labels, lengths, label_lengths)
        return np.where(score == NONE, NONE, -cost), np.asarray(score)

    exact, score = scores(8)
    assert (score <= exact + 1e-9).all()
    assert (score < exact - 1e-6).any()
    acts, lengths = acts[:4, :2, :3], lengths[:2] * 0 + 4
    exact, score = scores(64)
    np.testing.assert_allclose(score, exact, atol=1e-9)


def test_paths_differ_and_come_in_order():
    acts = np.zeros((7, 3, 4), "f")  # many ties
    decoded = decode(acts, None, beam_width=30, top_paths=30)
    assert (np.diff(decoded.score) <= 1e-6).all()
    for b in range(3):
        assert len({tuple(row) for row in decoded.labels[b].tolist()}) == 30
        assert_same_bits(decoded.labels[b], decoded.labels[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_without_a_softmax_gives_no_labels_and_nan(value):
    acts = np.random.default_rng(0).normal(size=(8, 3, 5)).astype("f")
    lengths = np.array([8, 8, 4])
    expected = decode(acts, lengths, top_paths=3)
    acts[5, 1:] = value  # in sequence 2 it is not in use
    decoded = decode(acts, lengths, top_paths=3)
    assert np.isnan(decoded.score[1]).all()
    assert (decoded.labels[1] == -1).all()
    assert not decoded.label_lengths[1].any()
    for b in (0, 2):
        jax.tree.map(assert_same_bits, of_sequence(decoded, b), of_sequence(expected, b))


def test_a_bad_length_is_an_error_or_nan():
    acts, lengths = np.zeros((5, 3, 4), "f"), np.array([5, 6, -1])
    with pytest.raises(ValueError, match=r"lengths\[1\] = 6 is outside \[0, 5\]"):
        decode(acts, lengths)
    decoded = jax.jit(decode)(acts, lengths)
    assert np.isnan(decoded.score[:, 0]).tolist() == [False, True, True]
    assert (decoded.labels[1:] == -1).all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 1), (0, 0, 1)])
def test_empty_arrays_and_only_blanks_have_no_labels(shape):
    T, B, V = shape
    labels, label_lengths, score = decode(np.zeros(shape, "f"), None, beam_width=4, top_paths=2)
    assert labels.shape == (B, 2, T)
    assert label_lengths.shape == score.shape == (B, 2)
    if T == 0 or V == 1:
        assert (labels == -1).all()
        assert not label_lengths.any()
        np.testing.assert_array_equal(score, np.tile([0, NONE], (B, 1)))


def test_certain_frames_leave_one_path():
    """Where classes have probability 0, prefixes die and are as if they had never been."""
    acts = np.full((6, 4), NONE, "f")
    acts[range(6), [1, 1, 0, 1, 2, 2]] = 5
    acts[2, 3] = 5
    labels, label_lengths, score = decode(acts, None, beam_width=5, top_paths=4)
    assert labels.tolist()[:2] == [[1, 1, 2, -1, -1, -1], [1, 3, 1, 2, -1, -1]]
    assert label_lengths.tolist() == [3, 4, 0, 0]
    np.testing.assert_allclose(score, [np.log(0.5), np.log(0.5), NONE, NONE], rtol=1e-6)


def test_huge_logits_keep_their_scores():
    acts = np.zeros((40, 5), "f")
    acts[:, 1] = 3e3
    acts[20, 2] = 6e3
    _, _, score = decode(acts, None, top_paths=2)
    assert score[0] == 0
    assert -3000 < score[1] < -2990  # one of some forty other paths


def test_vmap_gives_what_a_loop_gives():
    acts = np.random.default_rng(0).normal(size=(2, 9, 3, 6)).astype("f")
    lengths = np.array([9, 5, 7])
    search = partial(decode, beam_width=4, top_paths=2)
    for axis in range(4):
        mapped = jax.vmap(search, (axis, None))(np.moveaxis(acts, 0, axis), lengths)
        for i in range(2):
            jax.tree.map(assert_same_bits, of_sequence(mapped, i), search(acts[i], lengths))
    one_by_one = jax.vmap(search, (1, 0))(acts[0], lengths)
    jax.tree.map(assert_same_bits, one_by_one, search(acts[0], lengths))
    both = jax.vmap(jax.vmap(search, (1, 0)), (0, None))(acts, lengths)
    jax.tree.map(assert_same_bits, both, jax.vmap(search, (0, None))(acts, lengths))


def test_to_differentiate_is_an_error_that_says_what_to_do():
    acts = np.zeros((4, 1, 3), "f")

    def score(acts):
        return decode(acts, None).score.sum()

    for f in (jax.grad(score), lambda x: jax.jvp(score, (x,), (x,)), jax.jit(jax.grad(score))):
        with pytest.raises(
            TypeError, match=r"no derivative.*stop_gradient.*jax.vmap\(ctc\).* -2, -1\)"
        ):
            f(acts)
    for x in (acts, acts[:, 0]):  # the way out that the error names
        found = decode(x, None, top_paths=3)
        costs = -jax.vmap(lambda labels, x=x: jax_ctc.ctc(x, labels, None), -2, -1)(found.labels)
        assert costs.shape == found.score.shape
        np.testing.assert_allclose(costs, found.score, atol=1e-6)
    gradient = jax.grad(lambda x: score(jax.lax.stop_gradient(x)) + x.sum())(acts)
    assert (gradient == 1).all()


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()[:8]), ("data",))


def sharded(mesh, time_major):
    acts = np.random.default_rng(0).normal(size=(10, 16, 6)).astype("f")
    lengths = np.arange(16, dtype=np.int32) % 11
    given = acts if time_major else acts.swapaxes(0, 1)
    spec = P(None, "data") if time_major else P("data")
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))  # noqa: E731
    return (given, lengths), (place(given, spec), place(lengths, P("data"))), spec


@eight_devices
def test_a_sharded_batch_stays_where_it_is(mesh, time_major):
    given, shards, spec = sharded(mesh, time_major)
    search = partial(decode, beam_width=4, top_paths=2, time_major=time_major)
    compiled = jax.jit(search).lower(*shards).compile()
    assert not any(
        word in compiled.as_text() for word in ("all-gather", "all-to-all", "all-reduce")
    )
    found, expected = compiled(*shards), search(*given)
    assert found.labels.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 3)
    jax.tree.map(assert_same_bits, found, expected)
    mapped = jax.shard_map(search, mesh=mesh, in_specs=(spec, P("data")), out_specs=P("data"))
    jax.tree.map(assert_same_bits, jax.jit(mapped)(*shards), expected)


@eight_devices
def test_types_may_name_the_mesh_axis(time_major):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    given, shards, _ = sharded(mesh, time_major)
    search = partial(decode, beam_width=4, top_paths=2, time_major=time_major)
    with mesh_in_use(mesh):
        found = jax.jit(search)(*shards)
        greedy = jax.jit(partial(jax_ctc.ctc_greedy_decode, time_major=time_major))(*shards)
        errors = jax.jit(jax_ctc.label_error_rate)(found, greedy.labels)
    jax.tree.map(assert_same_bits, found, search(*given))
    np.testing.assert_array_equal(
        greedy.labels, jax_ctc.ctc_greedy_decode(*given, time_major=time_major).labels
    )
    assert errors.distance.shape == (16, 2)


@pytest.mark.parametrize("names", ["9, 3, 6", "t, b, 6", "t, b, v"])
def test_programs_can_be_exported(names):
    sizes = export.symbolic_shape(names)
    types = [jax.ShapeDtypeStruct(sizes, "float32"), jax.ShapeDtypeStruct(sizes[1:2], "int32")]
    search = jax.jit(partial(decode, beam_width=4, top_paths=2))
    checks = jax_ctc.export_checks()
    platforms = "cpu", "cuda", "tpu"
    program = export.export(search, platforms=platforms, disabled_checks=checks)(*types)
    program = export.deserialize(program.serialize())
    acts = np.random.default_rng(0).normal(size=(9, 3, 6)).astype("f")
    lengths = np.array([9, 4, 0], np.int32)
    found = program.call(acts, lengths)
    for x, y in zip(found, search(acts, lengths), strict=True):
        assert_same_bits(x, y)


def test_arguments_are_checked():
    acts = np.zeros((4, 2, 3), "f")
    for options, error in (
        ({"beam_width": 0}, r"`beam_width`: expected at least 1, got 0"),
        ({"beam_width": 2, "top_paths": 3}, r"`top_paths`: expected at most beam_width = 2.*got 3"),
        ({"top_paths": 0}, "`top_paths`: expected at least 1"),
        ({"classes_per_frame": 0}, "`classes_per_frame`: expected at least 1"),
        ({"blank": 3}, "`blank`"),
        ({"num_threads": 0}, "`num_threads`"),
    ):
        with pytest.raises(ValueError, match=error):
            decode(acts, None, **options)
    with pytest.raises(TypeError, match=r"`beam_width`: expected a Python int, got 2\.5"):
        decode(acts, None, beam_width=2.5)
    with pytest.raises(TypeError, match=r"`beam_width`.*static_argnames"):
        jax.jit(lambda w: decode(acts, None, beam_width=w))(3)
    with pytest.raises(ValueError, match="`lengths`: expected shape"):
        decode(acts, np.array([4]))
    with pytest.raises(ValueError, match="`acts`: expected shape"):
        decode(acts[None], None)


def test_as_many_classes_as_asked_for_are_appended():
    acts = np.log([[0.4, 0.3, 0.2, 0.1]])
    found = decode(acts, None, beam_width=4, top_paths=4, classes_per_frame=2)
    assert found.labels.ravel().tolist() == [-1, 1, 2, -1]
    assert np.isneginf(found.score).tolist() == [False, False, False, True]


def test_paths_of_small_probability_count():
    score = decode(np.array([[-22.0, 0], [-22.0, 0]]), None).score
    np.testing.assert_allclose(score, [np.log1p(-np.exp(-44))], rtol=0, atol=1e-15)


@pytest.mark.skipif(not COMPILED or DEVICE != "cpu", reason="pure JAX has float32's digits alone")
@pytest.mark.parametrize(
    "rows",
    [
        [[1000, -20, NONE, NONE], [1000, NONE, -19.99999, NONE]],
        [[NONE, 0, 0, NONE], [NONE, -20, -19.99999, 1000]],
    ],
    ids=["another label", "the same label"],
)
def test_float32_finds_what_float64_finds_of_the_same_numbers(rows):
    acts = np.array(rows, np.float32)
    found, exact = (
        decode(x, None, beam_width=9, top_paths=4).labels for x in (acts, acts.astype(np.float64))
    )
    np.testing.assert_array_equal(found, exact)


def test_a_prefix_that_comes_back_is_the_same_among_many():
    """Meanwhile the table of prefixes has grown."""
    width = c = 600
    p = np.full((4, c + 1), 1e-9)
    p[0, 0], p[0, 1:c] = 1000, 1 + 1e-4 * np.arange(c - 1, 0, -1)  # of each class a prefix
    p[1, [0, c]] = 3, 7  # only the prefix without labels stays; the others come with c behind them
    p[2, [0, 1, 2, 511, 512]] = 6, 5, 5, 5, 5  # these come back
    p[3, [0, c]] = 9, 1  # what they make with c is in the beam
    labels = decode(np.log(p), None, beam_width=width, top_paths=width).labels
    assert len({tuple(row) for row in labels.tolist()}) == width

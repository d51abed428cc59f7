# SPDX-License-Identifier: Apache-2.0
"""The edit distance between decoded labels and true ones."""

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support.runs import mesh_in_use, sampled


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def padded(rng, shape):
    """Few classes, so that some agree; a third of the entries is padding, anywhere."""
    labels = rng.integers(1, 4, shape, dtype=np.int32)
    return np.where(rng.random(shape) < 1 / 3, rng.integers(-3, 0, shape), labels)


def without(row, length=None):
    return [k for k in row[:length].tolist() if k >= 0]


@pytest.mark.parametrize(("N", "L"), [(9, 6), (5, 11), (7, 7), (0, 4), (4, 0), (0, 0)])
def test_the_distance_is_that_of_levenshtein(N, L):
    rng = np.random.default_rng(N)
    decoded, labels = padded(rng, (40, N)), padded(rng, (40, L))
    decoded_lengths, label_lengths = rng.integers(0, N + 1, 40), rng.integers(0, L + 1, 40)
    errors = jax_ctc.label_error_rate(decoded, labels, decoded_lengths, label_lengths)
    assert errors.distance.dtype == errors.label_count.dtype == np.int32
    assert errors.rate.dtype == np.float32
    for i in range(40):
        a = without(decoded[i], decoded_lengths[i])
        b = without(labels[i], label_lengths[i])
        assert errors.distance[i] == levenshtein(a, b)
        assert errors.label_count[i] == len(b)
        np.testing.assert_allclose(errors.rate[i], levenshtein(a, b) / max(len(b), 1), rtol=1e-6)


def test_each_path_of_a_sequence_is_compared_with_its_labels():
    rng = np.random.default_rng(0)
    decoded, labels = padded(rng, (5, 3, 8)), padded(rng, (5, 6))
    errors = jax_ctc.label_error_rate(decoded, labels)
    for b in range(5):
        for k in range(3):
            expected = levenshtein(without(decoded[b, k]), without(labels[b]))
            assert errors.distance[b, k] == expected
    one = jax_ctc.label_error_rate(decoded[0], labels[0])
    np.testing.assert_array_equal(one.distance, errors.distance[0])
    mapped = jax.vmap(jax_ctc.label_error_rate, (1, None), 1)(decoded, labels)
    np.testing.assert_array_equal(mapped.rate, errors.rate)


def test_what_was_decoded_may_be_given_as_it_came():
    acts = np.random.default_rng(0).normal(size=(7, 4, 3)).astype("f")
    decoded = jax_ctc.ctc_greedy_decode(acts, None)
    errors = jax.jit(jax_ctc.label_error_rate)(decoded, decoded.labels)
    assert not errors.distance.any()
    np.testing.assert_array_equal(errors.label_count, decoded.label_lengths)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_any_integers_are_labels(dtype):
    a, b = np.array([1, 2, 3], dtype), np.array([1, 3, 5, 5], np.int32)
    assert jax_ctc.label_error_rate(a, b).distance == 3


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_a_sharded_batch_stays_where_it_is():
    rng = np.random.default_rng(0)
    pair = padded(rng, (8, 3, 7)), padded(rng, (8, 5))
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    shards = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in pair]
    compiled = jax.jit(jax_ctc.label_error_rate).lower(*shards).compile()
    assert not any(
        word in compiled.as_text() for word in ("all-gather", "all-to-all", "all-reduce")
    )
    expected = jax_ctc.label_error_rate(*pair)
    mapped = jax.shard_map(
        jax_ctc.label_error_rate, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data")
    )
    for found in (compiled(*shards), jax.jit(mapped)(*shards)):
        np.testing.assert_array_equal(found.distance, expected.distance)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_an_explicit_mesh_types_the_results():
    rng = np.random.default_rng(0)
    pair = padded(rng, (8, 3, 7)), padded(rng, (8, 5))
    expected = jax_ctc.label_error_rate(*pair)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with mesh_in_use(mesh):
        shards = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in pair]
        runs = [jax_ctc.label_error_rate, jax.jit(jax_ctc.label_error_rate)]
        if jax.__version_info__ >= (0, 8):  # the vmap of 0.7 takes the second axis for the first
            runs.append(jax.vmap(jax_ctc.label_error_rate, (1, None), 1))
        for run in runs:
            for x, y in zip(run(*shards), expected, strict=True):
                spec = jax.typeof(x).sharding.spec
                assert spec == P("data", *[None] * (x.ndim - 1))
                np.testing.assert_array_equal(x, y if x.shape == y.shape else y[:, None])


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 selects from one sharding only")
@pytest.mark.parametrize("sizes", [(7, 5), (5, 7)], ids=str)
@pytest.mark.parametrize(
    "specs",
    [
        (P("data"), P()), (P(), P("data")), (P("data"), P("model")), (P("data"), P(None, "data")),
        (P("data"), P(("data", "model"))),
    ],
    ids=str,
)  # fmt: skip
@sampled(6)
def test_an_explicit_mesh_may_shard_one_of_the_two_or_both_otherwise(sizes, specs):
    rng = np.random.default_rng(0)
    pair = [padded(rng, (8, size + 1)) for size in sizes]
    expected = jax_ctc.label_error_rate(*pair)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with mesh_in_use(mesh):
        shards = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(pair, specs, strict=True)
        ]
        found = jax.jit(jax_ctc.label_error_rate)(*shards)
        np.testing.assert_array_equal(found.distance, expected.distance)


@pytest.mark.parametrize("sizes", [("n", 6), ("n", "l"), (9, "l"), (3, "l")], ids=str)
@sampled(2)
def test_sizes_may_be_symbols(sizes):
    b, *_ = symbols = export.symbolic_shape("b, n, l")
    named = dict(zip("nl", symbols[1:], strict=True))
    types = [jax.ShapeDtypeStruct((b, named.get(size, size)), "int32") for size in sizes]
    program = export.export(jax.jit(jax_ctc.label_error_rate))(*types)
    rng = np.random.default_rng(0)
    pair = padded(rng, (4, sizes[0] if sizes[0] != "n" else 9)), padded(rng, (4, 6))
    expected = jax_ctc.label_error_rate(*pair)
    for x, y in zip(program.call(*(x.astype(np.int32) for x in pair)), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 4)])
def test_a_batch_may_be_empty(batch):
    decoded = np.zeros((*batch, 3), np.int32)
    for labels in (np.zeros((*batch, 2), np.int32), np.zeros((*batch[:1], 2), np.int32)):
        for result in jax_ctc.label_error_rate(decoded, labels):
            assert result.shape == batch


def test_arguments_are_checked():
    a = np.ones((3, 4), int)
    with pytest.raises(TypeError, match="`decoded`: expected integers, got float"):
        jax_ctc.label_error_rate(a * 1.0, a)
    with pytest.raises(TypeError, match="`labels`: expected integers"):
        jax_ctc.label_error_rate(a, a > 0)
    with pytest.raises(
        ValueError,
        match=r"`labels`: expected shape \(3, L\) or \(L,\), .*`decoded` .*\(3, 4\), got \(2, L\)",
    ):
        jax_ctc.label_error_rate(a, np.ones((2, 4), int))
    with pytest.raises(
        ValueError,
        match=r"`label_lengths`: expected shape \(3,\) or \(\), .*`labels` .*\(3, 4\), got \(2,\)",
    ):
        jax_ctc.label_error_rate(a, a, None, np.ones(2, int))
    with pytest.raises(ValueError, match="got a scalar"):
        jax_ctc.label_error_rate(3, a)


def test_a_rate_is_the_quotient_under_jit_too():
    """Where nothing is right it is 1, and not the float32 before."""
    counts = np.arange(1, 121)
    labels = np.where(np.arange(120) < counts[:, None], np.arange(1, 121), -1)
    decoded = np.repeat(np.where(labels > 0, labels + 1000, -1)[:, None], 2, 1)
    assert (jax.jit(jax_ctc.label_error_rate)(decoded, labels).rate == 1).all()


@pytest.mark.parametrize(
    ("decoded", "labels", "distance"),
    [([1, -1], [0, 0], 2), ([0, 0], [1, -1], 2), ([0, 1], [1, 0], 2), ([0], [0], 0)],
)
def test_label_0_is_a_label_like_any_other(decoded, labels, distance):
    errors = jax_ctc.label_error_rate(np.array(decoded), np.array(labels))
    assert errors.distance == distance
    assert errors.label_count == sum(k >= 0 for k in labels)


@pytest.mark.parametrize(
    ("decoded_length", "label_length", "distance"), [(-1, None, 2), (None, -2, 2), (9, 9, 0)]
)
def test_a_length_below_0_counts_as_0_and_one_above_the_size_as_the_size(
    decoded_length, label_length, distance
):
    labels = np.array([1, 2])
    errors = jax_ctc.label_error_rate(labels, labels, decoded_length, label_length)
    assert errors.distance == distance

# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding: the best path, without repeats and blanks."""

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
from support.oracle import log_softmax
from support.runs import mesh_in_use, sampled, sweep

T, B, V = 12, 8, 5


def problem(dtype=np.float32, blank=0, seed=0):
    rng = np.random.default_rng(seed)
    acts = rng.normal(scale=2, size=(T, B, V)).astype(dtype)
    acts[..., blank] += 1
    return acts, rng.integers(0, T + 1, B).astype(np.int32)


def read(acts, length, blank=0):
    """(labels, score) of one sequence, in plain Python."""
    log_p = log_softmax(np.asarray(acts[:length], np.float64))
    path = log_p.argmax(-1).tolist()
    return [k for k, _ in itertools.groupby(path) if k != blank], log_p.max(-1).sum()


def assert_read(decoded, acts, lengths, blank=0, rtol=1e-5):
    assert decoded.labels.dtype == decoded.label_lengths.dtype == np.int32
    for b, length in enumerate(lengths):
        labels, score = read(acts[:, b], length, blank)
        assert decoded.labels[b].tolist() == labels + [-1] * (len(acts) - len(labels))
        assert decoded.label_lengths[b] == len(labels)
        np.testing.assert_allclose(float(decoded.score[b]), score, rtol=rtol)


@partial(jax.jit, static_argnums=2)
def score_gradient(acts, lengths, time_major=True):
    decode = partial(jax_ctc.ctc_greedy_decode, time_major=time_major)
    return jax.grad(lambda x: decode(x, lengths).score.sum())(acts)


@pytest.mark.parametrize(
    ("dtype", "blank"),
    sweep(
        list(itertools.product([np.float32, np.float64, np.float16, jnp.bfloat16], [0, -1])),
        [(np.float32, 0), (np.float64, -1), (jnp.bfloat16, 0)],
    ),
)
def test_labels_are_those_of_the_best_path(dtype, blank, time_major):
    acts, lengths = problem(dtype, blank)
    given = acts if time_major else acts.swapaxes(0, 1)
    decoded = jax_ctc.ctc_greedy_decode(given, lengths, blank=blank, time_major=time_major)
    assert_read(decoded, acts, lengths, blank % V)
    assert decoded.score.dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_one_sequence_has_no_batch_axis():
    acts, _ = problem()
    labels, label_lengths, score = jax_ctc.ctc_greedy_decode(acts[:, 0], None)
    assert (labels.shape, label_lengths.shape, score.shape) == ((T,), (), ())
    assert labels[:label_lengths].tolist() == read(acts[:, 0], T)[0]


def test_vmap_gives_what_a_loop_gives():
    acts, lengths = problem()
    together = jax_ctc.ctc_greedy_decode(acts, lengths)
    one_by_one = jax.vmap(jax_ctc.ctc_greedy_decode, (1, 0))(acts, lengths)
    for x, y in zip(together, one_by_one, strict=True):
        np.testing.assert_array_equal(x, y)


def test_ties_go_to_the_lowest_class():
    decoded = jax_ctc.ctc_greedy_decode(np.array([[0, 1, 1], [0, 0, 0], [0, 2, 2.0]], "f"), None)
    assert decoded.labels.tolist() == [1, 1, -1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_without_a_softmax_gives_no_labels_and_nan(value):
    acts, lengths = problem()
    lengths[:] = T
    lengths[2] = 4
    acts[5, 1:3] = value  # in sequence 2 it is not in use
    decoded = jax_ctc.ctc_greedy_decode(acts, lengths)
    assert np.isnan(decoded.score).tolist() == [b == 1 for b in range(B)]
    assert (decoded.labels[1] == -1).all()
    assert decoded.label_lengths[1] == 0
    gradient = np.asarray(
        jax.grad(lambda x: jax_ctc.ctc_greedy_decode(x, lengths).score.sum())(acts)
    )
    assert np.isnan(gradient[: lengths[1], 1]).all()
    assert (gradient[lengths[1] :, 1] == 0).all()
    assert np.isfinite(np.delete(gradient, 1, axis=1)).all()
    others = [b for b in range(B) if b != 1]
    assert_read(
        jax.tree.map(lambda x: x[np.array(others)], decoded), acts[:, others], lengths[others]
    )


def test_a_bad_length_is_an_error_or_nan():
    acts, lengths = problem()
    lengths[3] = T + 1
    with pytest.raises(ValueError, match=r"lengths\[3\] = 13 is outside \[0, 12\]"):
        jax_ctc.ctc_greedy_decode(acts, lengths)
    decoded = jax.jit(jax_ctc.ctc_greedy_decode)(acts, lengths)
    assert np.isnan(decoded.score).tolist() == [b == 3 for b in range(B)]
    assert (decoded.labels[3] == -1).all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 1), (0, 0, 1)])
def test_empty_arrays_and_only_blanks_have_no_labels(shape):
    labels, label_lengths, score = jax_ctc.ctc_greedy_decode(np.zeros(shape, "f"), None)
    assert labels.shape == (shape[1], shape[0])
    if shape[0] == 0 or shape[2] == 1:
        assert not label_lengths.any()
        assert not score.any()


def test_the_score_has_the_gradient_of_its_path():
    acts, lengths = problem(np.float64)
    lengths[0] = T
    acts[3, 0, 1] = -np.inf
    acts[T - 1, 1, :] = np.nan  # not in use
    lengths[1] = 5

    def score(acts):
        return jax_ctc.ctc_greedy_decode(acts, lengths).score.sum()

    gradient = jax.grad(score)(acts)
    expected = (np.arange(V) == acts.argmax(-1)[..., None]) - np.exp(log_softmax(acts))
    expected[np.arange(T)[:, None] >= lengths] = 0
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_labels_and_their_cost_fit_into_ctc():
    acts, lengths = problem()
    decoded = jax_ctc.ctc_greedy_decode(acts, lengths)
    cost = jax_ctc.ctc(acts, decoded.labels, lengths, decoded.label_lengths)
    assert (decoded.score <= -cost + 1e-5).all()


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@sampled(1)
def test_a_sharded_batch_stays_where_it_is(time_major):
    acts, lengths = problem()
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    spec = P(None, "data") if time_major else P("data")
    given = acts if time_major else acts.swapaxes(0, 1)
    shards = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in ((given, spec), (lengths, P("data")))
    ]

    def decode(acts, lengths):
        return jax_ctc.ctc_greedy_decode(acts, lengths, time_major=time_major)

    compiled = jax.jit(decode).lower(*shards).compile()
    assert not any(
        word in compiled.as_text() for word in ("all-gather", "all-to-all", "all-reduce")
    )
    assert_read(compiled(*shards), acts, lengths)
    mapped = jax.shard_map(decode, mesh=mesh, in_specs=(spec, P("data")), out_specs=P("data"))
    assert_read(jax.jit(mapped)(*shards), acts, lengths)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@sampled(1)
def test_an_explicit_mesh_types_the_results(time_major):
    acts, lengths = problem()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    spec = P(None, "data") if time_major else P("data")
    given = acts if time_major else acts.swapaxes(0, 1)

    def decode(acts, lengths):
        return jax_ctc.ctc_greedy_decode(acts, lengths, time_major=time_major)

    with mesh_in_use(mesh):
        shards = [
            jax.device_put(x, NamedSharding(mesh, s))
            for x, s in ((given, spec), (lengths, P("data")))
        ]
        for run in (decode, jax.jit(decode)):
            decoded = run(*shards)
            for x in decoded:
                assert jax.typeof(x).sharding.spec == P("data", *[None] * (x.ndim - 1))
            assert_read(jax.tree.map(np.asarray, decoded), acts, lengths)
        if jax.__version_info__ >= (0, 8):  # JAX 0.7 adds into nothing that types shard
            found, right = (score_gradient(*x, time_major) for x in (shards, (given, lengths)))
            np.testing.assert_allclose(found, right, rtol=1e-6)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 selects from one sharding only")
@pytest.mark.parametrize("sharded", ["acts", "lengths"])
def test_an_explicit_mesh_may_shard_one_of_the_two(sharded):
    acts, lengths = problem()
    expected = score_gradient(acts, lengths)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    specs = (P(None, "data"), P()) if sharded == "acts" else (P(), P("data"))
    with mesh_in_use(mesh):
        shards = [
            jax.device_put(x, NamedSharding(mesh, s))
            for x, s in zip((acts, lengths), specs, strict=True)
        ]
        decoded = jax_ctc.ctc_greedy_decode(*shards)
        for x in decoded:
            assert jax.typeof(x).sharding.spec == P("data", *[None] * (x.ndim - 1))
        assert_read(jax.tree.map(np.asarray, decoded), acts, lengths)
        np.testing.assert_allclose(score_gradient(*shards), expected, rtol=1e-6)


def test_threads_are_limited_and_checked():
    acts, lengths = problem()
    one = jax_ctc.ctc_greedy_decode(acts, lengths, num_threads=1)
    for x, y in zip(one, jax_ctc.ctc_greedy_decode(acts, lengths), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match="`num_threads`"):
        jax_ctc.ctc_greedy_decode(acts, lengths, num_threads=0)


def test_every_size_may_be_a_symbol():
    sizes = export.symbolic_shape("t, b, v")
    arguments = [jax.ShapeDtypeStruct(sizes, "float32"), jax.ShapeDtypeStruct(sizes[1:2], "int32")]
    checks = jax_ctc.export_checks()
    program = export.export(jax.jit(jax_ctc.ctc_greedy_decode), disabled_checks=checks)(*arguments)
    acts, lengths = problem()
    assert_read(jax_ctc._greedy.Decoded(*program.call(acts, lengths)), acts, lengths)


def test_arguments_are_checked():
    acts, lengths = problem()
    with pytest.raises(ValueError, match="`acts`: expected shape"):
        jax_ctc.ctc_greedy_decode(acts[0, 0], None)
    with pytest.raises(TypeError, match="`acts`"):
        jax_ctc.ctc_greedy_decode(acts.astype(int), None)
    with pytest.raises(ValueError, match="`lengths`: expected shape"):
        jax_ctc.ctc_greedy_decode(acts, lengths[:3])
    with pytest.raises(ValueError, match="`blank`"):
        jax_ctc.ctc_greedy_decode(acts, lengths, blank=V)
    with pytest.raises(TypeError, match="`time_major`"):
        jax_ctc.ctc_greedy_decode(acts, lengths, time_major=2)


SCALES = {
    "a temperature": lambda x: x / np.float32(0.3),
    "a norm": lambda x: 20 * x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True)),
    "a cap": lambda x: 50 * jnp.tanh(x / 50),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("decode", [jax_ctc.ctc_greedy_decode, jax_ctc.ctc_beam_search_decode])
@pytest.mark.parametrize("shape", [(64, 2, 29), (30, 1, 5), (1, 64, 29)], ids=str)
@sampled(8)
def test_acts_may_end_in_a_product(scale, decode, shape):
    """XLA computes it anew where it is needed, and may round it in another way."""
    x = 20 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
    together = jax.jit(lambda x: decode(scale(x), None))(x)
    apart = decode(jax.jit(scale)(x), None)
    np.testing.assert_array_equal(together.labels, apart.labels)
    np.testing.assert_allclose(together.score, apart.score, rtol=1e-4, atol=1e-4)


def test_no_nan_is_made_where_none_is():
    acts = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    with jax.debug_nans(True):
        gradient = jax.grad(lambda x: jax_ctc.ctc_greedy_decode(x, None).score.sum())(acts)
    assert (gradient != 0).all()


def test_the_score_of_a_nearly_certain_path_keeps_its_digits():
    score = jax_ctc.ctc_greedy_decode(np.array([[20, 0]], np.float32), None).score
    np.testing.assert_allclose(score, -np.log1p(np.exp(-20)), rtol=1e-6)

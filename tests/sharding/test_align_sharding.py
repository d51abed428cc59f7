# SPDX-License-Identifier: Apache-2.0
"""Alignments of a batch sharded over eight devices, and exported."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import alignments
from support.results import assert_gradient, assert_same_bits
from support.runs import mesh_in_use, sampled

needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
T, B, V, L = 12, 8, 6, 4


@pytest.fixture
def batch(time_major):
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, B, V)).astype(np.float32)
    labels = rng.integers(1, V, (B, L), dtype=np.int32)
    lengths = rng.integers(T - 3, T + 1, B, dtype=np.int32)
    return acts if time_major else acts.swapaxes(0, 1), labels, lengths


def specs(time_major):
    frames = P(None, "data") if time_major else P("data")
    return (frames, P("data"), P("data")), jax_ctc.Alignment(frames, frames, P("data"))


def sharded(batch, mesh, time_major):
    places = [NamedSharding(mesh, spec) for spec in specs(time_major)[0]]
    return tuple(map(jax.device_put, batch, places))


def score_gradient(acts, labels, lengths, time_major):
    align = partial(jax_ctc.ctc_align, time_major=time_major)
    return jax.grad(lambda acts: align(acts, labels, lengths).score.sum())(acts)


@needs_devices
def test_jit_over_a_mesh_gathers_nothing(batch, time_major):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    shards = sharded(batch, mesh, time_major)
    align = jax.jit(partial(jax_ctc.ctc_align, time_major=time_major))
    for function in (align, jax.jit(partial(score_gradient, time_major=time_major))):
        text = function.lower(*shards).compile().as_text()
        assert not {"all-gather", "all-to-all"} & set(re.findall(r"[a-z-]+", text))
        assert_gradient(function(*shards)[-1], function(*batch)[-1])
    out = align(*shards)
    for x, y, spec in zip(out, align(*batch), specs(time_major)[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), x.ndim)


@needs_devices
def test_shard_map_runs_each_part_by_itself(batch, time_major):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    in_specs, out_specs = specs(time_major)
    align = partial(jax_ctc.ctc_align, time_major=time_major)
    mapped = jax.shard_map(align, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    out = jax.jit(mapped)(*sharded(batch, mesh, time_major))
    for x, y in zip(out, align(*batch), strict=True):
        assert_same_bits(x, y)
    gradient = partial(score_gradient, time_major=time_major)
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=in_specs, out_specs=in_specs[0])
    assert_gradient(jax.jit(mapped)(*sharded(batch, mesh, time_major)), gradient(*batch))


@needs_devices
def test_an_explicit_mesh_types_the_results(batch, time_major):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    align = jax.jit(partial(jax_ctc.ctc_align, time_major=time_major))
    expected = align(*batch)
    gradient = jax.jit(partial(score_gradient, time_major=time_major))
    expected_gradient = gradient(*batch)
    with mesh_in_use(mesh):
        shards = sharded(batch, mesh, time_major)
        for x, y, spec in zip(align(*shards), expected, specs(time_major)[1], strict=True):
            assert jax.typeof(x).sharding.spec == P(*spec, *[None] * (x.ndim - len(spec)))
            np.testing.assert_allclose(x, y, rtol=1e-6)
        assert_gradient(gradient(*shards), expected_gradient)


@needs_devices
def test_confidences_need_no_mesh_in_use_where_types_shard_the_path_alone(batch, time_major):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    alignment = jax_ctc.ctc_align(*batch, time_major=time_major)
    places = [NamedSharding(mesh, spec) for spec in specs(time_major)[1]]
    sharded = jax_ctc.Alignment(*map(jax.device_put, map(np.asarray, alignment), places))
    confidence = jax.jit(partial(jax_ctc.label_confidence, L=L, time_major=time_major))
    replicated = jax.device_put(batch[0], NamedSharding(mesh, P()))
    try:
        found = confidence(replicated, sharded)
    except Exception as error:
        if "sharding rule for scatter" in str(error):  # JAX 0.7.0
            pytest.skip("this JAX cannot scatter what types shard")
        raise
    np.testing.assert_allclose(found, confidence(batch[0], alignment), rtol=1e-6)


@needs_devices
@sampled(1)
def test_what_labels_have_of_an_alignment_is_typed_too(batch, time_major):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))

    def of_labels(acts, labels, lengths):
        alignment = jax_ctc.ctc_align(acts, labels, lengths, time_major=time_major)
        confidence = jax_ctc.label_confidence(acts, alignment, L, time_major=time_major)
        return *jax_ctc.label_spans(alignment, L, time_major=time_major), confidence

    expected = of_labels(*batch)
    with mesh_in_use(mesh):
        for run in (of_labels, jax.jit(of_labels)):
            try:
                found = run(*sharded(batch, mesh, time_major))
            except Exception as error:
                if "sharding rule for scatter" in str(error):  # JAX 0.7.0
                    pytest.skip("this JAX cannot scatter what types shard")
                raise
            for x, y in zip(found, expected, strict=True):
                assert jax.typeof(x).sharding.spec == P("data", None)
                np.testing.assert_allclose(x, y, rtol=1e-6)


@needs_devices
@pytest.mark.parametrize("softmax", [True, False])
@sampled(1)
def test_confidences_on_many_devices_have_the_gradient_of_their_sum(batch, time_major, softmax):
    """Of the same acts: in shard_map, and with a mesh in explicit mode."""
    acts, labels, lengths = batch
    acts = (acts if time_major else acts.swapaxes(0, 1))[:, :1]  # for all label sequences
    alignments = jax_ctc.ctc_align(np.repeat(acts, len(lengths), 1), labels, lengths)

    def total(acts, alignment):
        confidence = jax_ctc.label_confidence(acts, alignment, L, softmax=softmax)
        return jnp.nansum(confidence)

    def of_all(acts, alignments):
        one = jax.vmap(lambda a: total(acts[:, 0], a), (jax_ctc.Alignment(1, 1, 0),))
        return one(alignments).sum()

    expected = jax.grad(of_all)(acts, alignments)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    specs = jax_ctc.Alignment(P(None, "data"), P(None, "data"), P("data"))
    mapped = jax.shard_map(
        lambda acts, alignments: of_all(acts, alignments)[None],
        mesh=mesh, in_specs=(P(), specs), out_specs=P("data"),
    )  # fmt: skip
    found = jax.jit(jax.grad(lambda x: mapped(x, alignments).sum()))(acts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    acts = jnp.asarray(np.repeat(acts, len(lengths), 1))
    expected = jax.grad(total)(acts, alignments)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with mesh_in_use(mesh):
        everywhere = jax.device_put(acts, NamedSharding(mesh, P()))
        shards = jax.tree.map(
            lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), alignments, specs
        )
        found = jax.grad(total)(everywhere, shards)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platforms", [("cpu", "cuda"), ("tpu", "default")], ids=" ".join)
def test_every_size_of_an_exported_alignment_may_be_a_symbol(platforms):
    here = export.default_export_platform()
    t, b, v, n = export.symbolic_shape("t, b, v, l")
    types = [((t, b, v), np.float32), ((b, n), np.int32), ((b,), np.int32)]
    program = export.export(
        jax.jit(jax_ctc.ctc_align),
        platforms=[here if name == "default" else name for name in platforms],
        disabled_checks=jax_ctc.export_checks(),
    )(*(jax.ShapeDtypeStruct(*x) for x in types))
    loaded = export.deserialize(program.serialize())
    for shape in [(12, 3, 6, 4), (9, 2, 3, 1)]:
        rng = np.random.default_rng(1)
        acts = rng.normal(size=shape[:3]).astype(np.float32)
        labels = rng.integers(1, shape[2], (shape[1], shape[3]), dtype=np.int32)
        lengths = np.full(shape[1], shape[0], np.int32)
        path, index, score = loaded.call(acts, labels, lengths)
        expected = alignments.solve(acts, labels, lengths)
        np.testing.assert_array_equal(path, expected[0])
        np.testing.assert_array_equal(index, expected[1])
        np.testing.assert_allclose(score, expected[2], rtol=1e-5)

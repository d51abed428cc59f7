# SPDX-License-Identifier: Apache-2.0
"""The kernel of the beam search against pure JAX, and calls of its handler by a forged program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from jax_ctc import _reference
from jax_ctc._primitives.beam import beam_p
from jax_ctc._primitives.custom_call import TARGETS
from support import handlers
from support.results import assert_same_bits
from support.runs import sweep

compiled_only = pytest.mark.skipif(
    not jax_ctc.build_info()["cpu"], reason="the CPU runs pure JAX here"
)
OPTIONS = {
    "time_axis": 0, "blank": 0, "threads": 0,
    "beam_width": 5, "top_paths": 3, "classes_per_frame": 0, "softmax": True,
}  # fmt: skip


def operands(acts, lengths):
    return acts, np.zeros((*acts.shape[1:-1], 0), np.int32), np.asarray(lengths, np.int32)


def run(bind, arguments, **options):
    return jax.jit(partial(bind, **OPTIONS | options))(*arguments)


@compiled_only
@pytest.mark.parametrize(
    ("T", "V", "width", "classes"),
    sweep(
        [(40, 30, 16, 0), (60, 1, 3, 0), (30, 2, 7, 0), (25, 200, 40, 3), (12, 700, 70, 0)],
        [(40, 30, 16, 0), (25, 200, 40, 3), (12, 700, 70, 0)],
    ),
)
def test_the_kernel_finds_what_pure_jax_finds(T, V, width, classes):
    rng = np.random.default_rng(V)
    arguments = operands(rng.normal(scale=3, size=(T, 3, V)), [T, T - 7, T + 1])
    options = {"beam_width": width, "top_paths": width, "classes_per_frame": classes}
    found, pure = (run(bind, arguments, **options) for bind in (beam_p.bind, _reference.beam))
    for x, y in zip(found[:2], pure[:2], strict=True):
        assert_same_bits(x, y)
    np.testing.assert_allclose(found[2], pure[2], rtol=1e-12, atol=1e-11)


def test_a_prefix_leaves_a_beam_of_one_when_the_class_after_the_best_makes_a_better_one():
    """At frame 1 the last label and the blank are equal: one more class than prefixes counts."""
    rows = [[0.01, 0.98, 0.01], [0.49, 0.49, 0.02], [0.05, 0.5, 0.45]]
    arguments = operands(np.log(rows)[:, None], [3])
    options = {"beam_width": 1, "top_paths": 1}
    found, pure = (run(bind, arguments, **options) for bind in (beam_p.bind, _reference.beam))
    for labels, counts, score in (found, pure):
        assert np.asarray(labels).ravel()[: int(np.ravel(counts)[0])].tolist() == [1, 2]
        np.testing.assert_allclose(np.exp(np.ravel(score)), [0.43218], rtol=1e-5)


def test_batch_axes_stand_before_and_after_time():
    acts = np.random.default_rng(0).normal(scale=2, size=(2, 9, 3, 6))
    arguments = acts, np.zeros((2, 3, 0), np.int32), np.array([[9, 4, 0], [7, 10, 8]], np.int32)
    found = run(beam_p.bind, arguments, time_axis=1)
    pure = run(_reference.beam, arguments, time_axis=1)
    for x, y in zip(found[:2], pure[:2], strict=True):
        assert_same_bits(x, y)
    np.testing.assert_allclose(found[2], pure[2], rtol=1e-12)
    alone = run(beam_p.bind, (acts[1], arguments[1][1], arguments[2][1]))
    for x, y in zip(found, alone, strict=True):
        assert_same_bits(x[1], y)


def test_pure_jax_takes_memory_for_pairs_of_prefixes_alone():
    """As the docstring says: 20 bytes a pair, and nothing for each class beside them."""
    width = 100
    pure = partial(_reference.beam, **OPTIONS | {"beam_width": width})
    arguments = operands(np.zeros((6, 1, 1000), "f"), [6])
    memory = jax.jit(pure).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 20 * width**2
    with pytest.raises(ValueError, match="`beam_width`: pure JAX takes 20"):
        pure(*arguments, beam_width=2**40)


def test_a_score_that_float32_cannot_hold_is_that_of_no_path():
    acts = np.array([[[3e38, -3e38, 0]], [[0, -3e38, 3e38]]], "f")
    for bind in (beam_p.bind, _reference.beam):
        labels, counts, score = run(bind, operands(acts, [2]))
        gone = np.isneginf(np.asarray(score[0]))
        assert gone.tolist() == [False, False, True]
        assert (np.asarray(labels)[:, 0, gone] == -1).all()
        assert (np.asarray(counts)[0, gone] == 0).all()
        assert np.asarray(labels)[:2, 0, 0].tolist() == [2, -1]


def test_no_score_of_probabilities_is_above_0():
    acts = (20 * np.random.default_rng(0).normal(size=(3, 300, 2))).astype("f")  # most are certain
    for bind in (beam_p.bind, _reference.beam):
        assert (np.asarray(run(bind, operands(acts, np.full(300, 3)))[2]) <= 0).all()


@pytest.mark.parametrize(("V", "width"), [(100, 50), (600, 3)])
def test_of_equal_classes_the_lowest_come_first(V, width):
    acts = np.zeros((1, 1, V), "f")
    acts[0, 0, 3:] = acts[0, 0, 0] = 1  # the blank and classes from 3 on, then 1 and 2
    expected = [-1, *range(3, V), 1, 2][:width]
    for bind in (beam_p.bind, _reference.beam):
        labels, _, _ = run(bind, operands(acts, [1]), beam_width=width, top_paths=width)
        assert labels[0, 0].tolist()[: len(expected)] == expected


def test_without_softmax_scores_are_sums_of_acts():
    acts = np.random.default_rng(0).normal(size=(6, 1, 4))
    acts -= np.log(np.exp(acts).sum(-1, keepdims=True))
    shift = np.arange(6.0).reshape(6, 1, 1)
    expected = run(beam_p.bind, operands(acts, [6]))
    for bind in (beam_p.bind, _reference.beam):
        found = run(bind, operands(acts + shift, [6]), softmax=False)
        assert_same_bits(found[0], expected[0])
        np.testing.assert_allclose(found[2], expected[2] + shift.sum(), rtol=1e-12)


def test_half_precision_is_the_same_numbers_in_float32():
    acts = np.random.default_rng(0).normal(size=(9, 2, 40))
    for dtype in (jnp.bfloat16, np.float16):
        arguments = operands(acts.astype(dtype), [9, 5])
        exact = operands(acts.astype(dtype).astype("f"), [9, 5])
        for x, y in zip(run(beam_p.bind, arguments), run(beam_p.bind, exact), strict=True):
            assert_same_bits(x, y)


@compiled_only
def test_bits_do_not_depend_on_the_batch_or_on_threads():
    acts = np.random.default_rng(0).normal(size=(80, 9, 300)).astype("f")
    lengths = np.arange(9) * 10
    together = run(beam_p.bind, operands(acts, lengths))
    one_thread = run(beam_p.bind, operands(acts, lengths), threads=1)
    alone = run(beam_p.bind, operands(acts[:, 8:], lengths[8:]))
    for x, y, z, axis in zip(together, one_thread, alone, (1, 0, 0), strict=True):
        assert_same_bits(x, y)
        assert_same_bits(np.take(x, [8], axis), z)


@pytest.mark.parametrize(("time_axis", "dtype"), [(0, "f"), (1, "f"), (0, jnp.bfloat16)])
def test_acts_are_neither_copied_nor_transposed(time_axis, dtype):
    acts, *rest = operands(np.zeros((100, 4, 500), dtype), [100] * 4)
    given = acts.swapaxes(0, 1) if time_axis else acts
    for bind in (beam_p.bind, _reference.beam):
        search = jax.jit(partial(bind, **OPTIONS | {"time_axis": time_axis}))
        compiled = search.lower(given, *rest).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < acts.nbytes // 4


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("time_axis", sweep([0, 1], [0]))
def test_pure_jax_leaves_a_sharded_batch_where_it_is(time_axis):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    acts, *rest = operands(np.random.default_rng(0).normal(size=(8, 16, 5)).astype("f"), [8] * 16)
    if time_axis:
        acts = acts.swapaxes(0, 1)
    spec = P("data") if time_axis else P(None, "data")
    specs = (spec, P("data"), P("data"))
    shards = [
        jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip((acts, *rest), specs, strict=True)
    ]
    search = jax.jit(partial(_reference.beam, **OPTIONS | {"time_axis": time_axis}))
    compiled = search.lower(*shards).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all"))
    expected = search(acts, *rest)
    *labels, score = compiled(*shards)
    for x, y in zip(labels, expected, strict=False):
        assert_same_bits(x, y)
    np.testing.assert_allclose(score, expected[-1], rtol=1e-6)  # XLA fuses the programs as it likes


ATTRIBUTES = handlers.ATTRIBUTES | {
    "beam_width": 5, "top_paths": 3, "classes_per_frame": 0, "softmax": True,
}  # fmt: skip
T, B, V = 5, 2, 7


def honest(T=T, B=B, V=V):
    results = [np.zeros((T, B, 3), np.int32), np.zeros((B, 3), np.int32), np.zeros((B, 3), "f")]
    return list(operands(np.zeros((T, B, V), "f"), [T] * B)), results


def refused(operands, results, because="", **attributes):
    return handlers.refused(TARGETS["beam"], operands, results, ATTRIBUTES | attributes, because)


@compiled_only
@pytest.mark.parametrize(("T", "B", "V"), [(5, 2, 7), (0, 2, 7), (5, 0, 7), (5, 2, 1), (0, 0, 1)])
def test_an_honest_call_is_answered(T, B, V):
    handlers.call(TARGETS["beam"], *honest(T, B, V), ATTRIBUTES)


@compiled_only
@pytest.mark.parametrize("time_axis", [-1, 2, 2**62])
def test_a_wrong_axis_is_refused(time_axis):
    assert refused(*honest(), time_axis=time_axis)


@compiled_only
def test_a_forged_call_is_refused():
    given, results = honest()
    assert not refused(given, results)
    for k in range(3):
        for x in (results[k][:-1], results[k].astype("f" if k < 2 else "d"), np.zeros(0, "f")):
            assert refused(given, [*results[:k], x, *results[k + 1 :]])
    acts, labels, lengths = given
    assert refused([acts, np.zeros((B, 1), np.int32), lengths], results, "jax_ctc_beam_v1")
    assert refused([acts, labels, lengths[:1]], results)
    assert refused([acts[0], labels, lengths], results)
    assert refused([acts.astype(int), labels, lengths], results)
    for wrong in (
        *({"blank": k} for k in (-1, V, 2**62)),
        *({"beam_width": k} for k in (-1, 0, 2, 2**31, 2**62)),
        *({"top_paths": k} for k in (-1, 0, 1, 6, 2**62)),
        {"classes_per_frame": -1},
        {"softmax": 0.5},
    ):
        assert refused(given, results, **wrong), wrong
    for name in ATTRIBUTES:
        fewer = {key: value for key, value in ATTRIBUTES.items() if key != name}
        assert handlers.refused(TARGETS["beam"], given, results, fewer), name


@compiled_only
def test_a_forged_length_is_nan():
    (acts, labels, lengths), results = honest()
    for length in (-1, T + 1, 2**31 - 1, -(2**31)):
        lengths[0] = length
        found, counts, score = handlers.call(
            TARGETS["beam"], [acts, labels, lengths], results, ATTRIBUTES
        )
        assert np.isnan(score[0]).all()
        assert (found[:, 0] == -1).all()
        assert not counts[0].any()
        assert not np.isnan(score[1]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_row_or_length_is_nan_in_pure_jax_too(value):
    acts = np.random.default_rng(0).normal(size=(8, 4, 5)).astype(np.float32)
    acts[5] = value
    for bind in (beam_p.bind, _reference.beam):
        labels, counts, score = run(bind, operands(acts, [8, 5, -1, 9]))
        assert np.isnan(score).all(-1).tolist() == [True, False, True, True]
        assert (np.delete(labels, 1, axis=1) == -1).all()
        assert not np.delete(counts, 1, axis=0).any()


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (0, 0, 1)])
def test_pure_jax_answers_empty_arrays(shape):
    arguments = operands(np.zeros(shape, np.float32), [shape[0]] * shape[1])
    for x, y in zip(run(_reference.beam, arguments), run(beam_p.bind, arguments), strict=True):
        np.testing.assert_array_equal(x, y)


def test_pure_jax_takes_any_number_of_classes_in_an_exported_program():
    t, b, v = export.symbolic_shape("t, b, v")
    types = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((t, b, v), "float32"), ((b, 0), "int32"), ((b,), "int32"))
    ]
    program = export.export(jax.jit(partial(_reference.beam, **OPTIONS)))(*types)
    for V in (3, 9):
        acts = np.random.default_rng(0).normal(size=(4, 2, V)).astype(np.float32)
        arguments = operands(acts, [4, 3])
        for x, y in zip(program.call(*arguments), run(_reference.beam, arguments), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("sharded", ["acts and lengths", "acts", "lengths"])
def test_pure_jax_runs_in_shard_map(sharded):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    acts = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)
    acts, labels, lengths = operands(np.tile(acts, (1, 2, 1)), [6, 3, 6, 3])
    expected = run(_reference.beam, (acts, labels, lengths))
    of_acts, of_lengths = P(None, "data"), P("data")
    if "acts" not in sharded:
        acts, of_acts = acts[:, :2], P()
    if "lengths" not in sharded:
        labels, lengths, of_lengths = labels[:2], lengths[:2], P()
    search = jax.shard_map(
        partial(_reference.beam, **OPTIONS),
        mesh=mesh,
        in_specs=(of_acts, of_lengths, of_lengths),
        out_specs=[P(None, "data"), P("data"), P("data")],
    )
    for x, y in zip(jax.jit(search)(acts, labels, lengths), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)

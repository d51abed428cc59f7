# SPDX-License-Identifier: Apache-2.0
"""Programs exported and loaded elsewhere, and programs found in the compilation cache."""

import re
import sys
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_ctc
from jax_ctc._primitives import custom_call
from support import oracle
from support.cases import COMPACT, DENSE, both_layouts
from support.results import assert_costs, assert_gradient, assert_same_bits
from support.runs import only_all, run, sampled, sweep

pytest.importorskip("flatbuffers", reason="serialisation of exported programs needs flatbuffers")


def exported(f, *arguments, platforms=("cpu", "cuda")):
    """Serialised, with the derivative."""
    checks = jax_ctc.export_checks()
    program = export.export(jax.jit(f), platforms=platforms, disabled_checks=checks)(*arguments)
    return program.serialize(vjp_order=1)


@both_layouts
def test_an_exported_loss_can_be_called_and_differentiated(case):
    acts, labels, lengths, _ = case.arguments()
    loaded = export.deserialize(exported(jax_ctc.ctc, acts, labels, lengths))
    cost, gradient = oracle.cost_and_gradient(acts, labels, lengths)
    assert set(loaded.platforms) == {"cpu", "cuda"}
    assert_costs(loaded.call(acts, labels, lengths), cost, case.T)
    actual = jax.grad(lambda acts: loaded.call(acts, labels, lengths).sum())(acts)
    assert_gradient(actual, gradient)


@sampled(1)
def test_an_exported_gradient_and_product_are_those_of_the_program(time_major):
    acts, labels, lengths, _ = COMPACT.arguments()
    acts = acts if time_major else acts.swapaxes(0, 1)

    def product(acts, direction):
        cost = partial(jax_ctc.ctc, labels=labels, lengths=lengths, time_major=time_major)
        gradient = jax.grad(lambda acts: cost(acts).sum())
        return jax.jvp(gradient, (acts,), (direction,))

    loaded = export.deserialize(exported(product, acts, np.cos(acts)))
    actual = jax.jit(loaded.call)(acts, np.cos(acts))
    jax.tree.map(assert_same_bits, actual, jax.jit(product)(acts, np.cos(acts)))


@pytest.mark.parametrize("V", [4, 40])
def test_the_number_of_hypotheses_may_be_a_symbol(V):
    (K,) = export.symbolic_shape("k")
    acts = np.random.default_rng(0).normal(size=(9, 2, V)).astype(np.float32)
    lengths = np.array([9, 7], np.int32)
    costs = jax.vmap(jax_ctc.ctc, in_axes=(None, 0, None))
    several = jax.ShapeDtypeStruct((K, 2, 3), jnp.int32)
    loaded = export.deserialize(exported(costs, acts, several, lengths))
    labels = np.random.default_rng(1).integers(1, V, (5, 2, 3), dtype=np.int32)
    for cost, row in zip(loaded.call(acts, labels, lengths), labels, strict=True):
        assert_costs(cost, oracle.cost_and_gradient(acts, row, lengths)[0], 9)


def test_classes_may_be_a_symbol_where_labels_are_known():
    acts, labels, lengths, _ = COMPACT.arguments()
    T, B, _ = acts.shape
    (V,) = export.symbolic_shape("v")
    loss = exported(
        lambda acts: jax_ctc.ctc(acts, labels, lengths), jax.ShapeDtypeStruct((T, B, V), "f")
    )
    cost = export.deserialize(loss).call(acts)
    assert_costs(cost, oracle.solve(acts, labels, lengths).cost, T)


@pytest.mark.parametrize("V", [4, 8])
def test_batch_and_time_may_be_symbols(V):
    T, B = export.symbolic_shape("t, b")
    symbolic = (
        jax.ShapeDtypeStruct((T, B, V), jnp.float32),
        jax.ShapeDtypeStruct((B, 3), jnp.int32),
        jax.ShapeDtypeStruct((B,), jnp.int32),
    )

    def both(acts, labels, lengths):
        cost = lambda acts: jax_ctc.ctc(acts, labels, lengths)  # noqa: E731
        return cost(acts), jax.grad(lambda acts: cost(acts).sum())(acts)

    loaded = export.deserialize(exported(both, *symbolic))
    for frames, sequences in [(5, 1), (12, 4)]:
        rng = np.random.default_rng(frames)
        acts = rng.normal(size=(frames, sequences, V)).astype(np.float32)
        labels = rng.integers(1, V, (sequences, 3), dtype=np.int32)
        lengths = np.full(sequences, frames, np.int32)
        cost, gradient = oracle.cost_and_gradient(acts, labels, lengths)
        actual = loaded.call(acts, labels, lengths)
        assert_costs(actual[0], cost, frames)
        assert_gradient(actual[1], gradient)


def symbolic(names):
    T, B, V, L = export.symbolic_shape(names)
    return (
        jax.ShapeDtypeStruct((T, B, V), jnp.float32),
        jax.ShapeDtypeStruct((B, L), jnp.int32),
        jax.ShapeDtypeStruct((B,), jnp.int32),
    )


def dense_and_compact():
    """Of one exported program with V = 5."""
    rng = np.random.default_rng(0)
    for T, B, L in [(6, 2, 3), (15, 3, 7)]:
        acts = rng.normal(size=(T, B, 5)).astype(np.float32)
        labels = rng.integers(1, 5, (B, L), dtype=np.int32)
        labels[:, 1] = -1
        lengths = np.full(B, T, np.int32)
        lengths[1] = T - 1
        yield (acts, labels, lengths), oracle.solve(acts, labels, lengths)


# tpu stands for every platform that runs pure JAX, and "default" for the one that this machine has:
# a program is called on one of its own platforms only.
@pytest.mark.parametrize(
    ("names", "platforms"),
    sweep(
        list(product(["t, b, v, l", "t, b, 5, l"], [("cpu", "cuda"), ("tpu", "default")])),
        [("t, b, v, l", ("cpu", "cuda")), ("t, b, 5, l", ("tpu", "default"))],
    ),
    ids=str,
)
@sampled(1)
def test_every_size_may_be_a_symbol(names, platforms):
    here = export.default_export_platform()
    platforms = [here if name == "default" else name for name in platforms]
    loss = export.deserialize(exported(jax_ctc.ctc, *symbolic(names), platforms=platforms))
    for arguments, truth in dense_and_compact():
        acts, *rest = arguments
        assert_costs(loss.call(*arguments), truth.cost, len(acts))
        gradient = jax.grad(lambda acts: loss.call(acts, *rest).sum())(acts)  # noqa: B023
        assert_gradient(gradient, truth.gradient)


@pytest.mark.parametrize("names", sweep(["t, b, v, l", "t, b, v, 3"], ["t, b, v, l"]))
def test_every_size_of_an_occupancy_may_be_a_symbol(names):
    checks = jax_ctc.export_checks()
    program = export.export(
        jax.jit(jax_ctc.ctc_occupancy), platforms=("cpu", "cuda", "tpu"), disabled_checks=checks
    )(*symbolic(names))
    loaded = export.deserialize(program.serialize())
    for arguments, truth in dense_and_compact():
        if "3" in names and arguments[1].shape[1] != 3:
            continue
        assert_gradient(loaded.call(*arguments), truth.occupancy)


@pytest.mark.slow
def test_an_exported_program_runs_in_another_process(tmp_path):
    acts, labels, lengths, _ = DENSE.arguments()
    (tmp_path / "program").write_bytes(exported(jax_ctc.ctc, acts, labels, lengths))
    np.savez(tmp_path / "arguments.npz", acts=acts, labels=labels, lengths=lengths)
    source = f"""
import jax, jax_ctc, numpy as np, pathlib
from jax import export
here = pathlib.Path({str(tmp_path)!r})
program = export.deserialize(bytearray((here / "program").read_bytes()))
arguments = np.load(here / "arguments.npz")
cost = program.call(*(arguments[k] for k in ("acts", "labels", "lengths")))
print(np.asarray(cost).tobytes().hex())
"""
    told = run(sys.executable, "-P", "-c", source)
    assert told.returncode == 0, told.stderr
    expected = np.asarray(jax.jit(jax_ctc.ctc)(acts, labels, lengths))
    assert told.stdout.strip() == expected.tobytes().hex()


@pytest.mark.slow
@only_all
def test_a_second_process_finds_the_program_in_the_compilation_cache(tmp_path):
    source = """
import jax, jax_ctc, numpy as np
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append("cache_hits" in event))
rest = np.array([[1, 2]]), np.array([6])
step = jax.jit(jax.value_and_grad(lambda x: jax_ctc.ctc(x, *rest).sum()))
cost, gradient = step(np.arange(24, dtype=np.float32).reshape(6, 1, 4) % 5)
print(sum(hits), float(cost), float(abs(gradient).sum()))
"""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    first, second = (run(sys.executable, "-P", "-c", source, **settings) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    hits, *results = zip(first.stdout.split(), second.stdout.split(), strict=True)
    assert hits[0] == "0"
    assert int(hits[1]) > 0
    assert all(a == b for a, b in results)


def test_every_target_has_a_version_in_its_name():
    names = [check.is_custom_call() for check in jax_ctc.export_checks()]
    of_now = {*custom_call.TARGETS.values(), *custom_call.OF_SCORES.values()}
    assert sorted(names) == sorted(of_now | {*custom_call.RETIRED})
    assert custom_call.RETIRED  # programs that were exported with them can be exported again
    assert all(re.fullmatch(r"jax_ctc_[a-z_]+_v\d", name) for name in names)

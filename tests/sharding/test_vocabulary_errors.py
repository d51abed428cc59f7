# SPDX-License-Identifier: Apache-2.0
"""V sharded over devices: errors name the argument and say what to do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support.runs import mesh_in_use
from support.sharded_classes import mesh_of, needs_devices, problem

pytestmark = needs_devices


def test_an_unknown_axis_is_named():
    (acts, *rest), *_ = problem(24)
    with pytest.raises(ValueError, match=r"`vocab_axis`.*'nowhere'.*is not set"):
        jax_ctc.ctc(acts, *rest, vocab_axis="nowhere")
    with (
        mesh_in_use(mesh_of(2, 4)),
        pytest.raises(ValueError, match=r"`vocab_axis`.*'nowhere'.*'data', 'model'"),
    ):
        jax.jit(partial(jax_ctc.ctc, vocab_axis="nowhere"))(acts, *rest)


@pytest.mark.parametrize("vocab_axis", [0, ("model", 1), ()])
def test_an_axis_is_a_name(vocab_axis):
    (acts, *rest), *_ = problem(24)
    with pytest.raises(TypeError, match="`vocab_axis`: expected the name"):
        jax_ctc.ctc(acts, *rest, vocab_axis=vocab_axis)


def test_classes_that_do_not_divide_are_an_error_that_says_what_to_do():
    (acts, *rest), *_ = problem(24)
    with (
        mesh_in_use(mesh_of(1, 8)),
        pytest.raises(ValueError, match=r"multiple of the 8 devices.*got V = 23.*-inf"),
    ):
        jax.jit(partial(jax_ctc.ctc, vocab_axis="model"))(acts[..., :23], *rest)


def test_time_sharded_by_type_beside_classes_is_an_error():
    (acts, *rest), *_ = problem(24)
    mesh = mesh_of(2, 4, AxisType.Explicit)
    acts = jax.device_put(acts, NamedSharding(mesh, P("data", None, "model")))
    with mesh_in_use(mesh), pytest.raises(TypeError, match="time axis"):
        jax.jit(jax_ctc.ctc)(acts, *rest)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((P(None, "data"), P("data"), P("data")), "`acts`: expected a slice.*all along 'model'"),
        ((P(None, "model"), P("model"), P("model")), "`labels`: expected the same on every dev"),
        ((P(None, None, "model"), P(), P("model")), "`lengths`: expected the same on every dev"),
    ],
    ids=["acts alike", "batch on that axis", "lengths differ"],
)
def test_wrong_replication_over_vocab_axis_raises(specs, message):
    (acts, labels, lengths), *_ = problem(24)
    if specs[1] == P():  # so many that each device has one for every sequence
        lengths = np.tile(lengths, 4)
    mapped = jax.shard_map(
        partial(jax_ctc.ctc, vocab_axis="model"), mesh=mesh_of(2, 4), in_specs=specs,
        out_specs=P(("data", "model")),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        jax.jit(mapped)(acts, labels, lengths)


def test_two_axes_of_classes_shard_acts_both_or_there_is_an_error():
    (acts, labels, lengths), *_ = problem(24)
    assert labels.max() >= 12
    both = "data", "model"

    def costs(axes):
        mapped = jax.shard_map(
            partial(jax_ctc.ctc, vocab_axis=both), mesh=mesh_of(2, 4),
            in_specs=(P(None, None, axes), P(), P()), out_specs=P(),
        )  # fmt: skip
        return jax.jit(mapped)(acts, labels, lengths)

    np.testing.assert_allclose(costs(both), jax_ctc.ctc(acts, labels, lengths), rtol=1e-6)
    with pytest.raises(ValueError, match="all along 'data'"):
        costs("model")


def test_a_shard_map_that_does_not_check_variation_is_believed():
    (acts, *rest), *_ = problem(24)
    mapped = jax.shard_map(
        partial(jax_ctc.ctc, vocab_axis="model"), mesh=mesh_of(1, 8),
        in_specs=(P(None, None, "model"), P(), P()), out_specs=P(), check_vma=False,
    )  # fmt: skip
    np.testing.assert_allclose(jax.jit(mapped)(acts, *rest), jax_ctc.ctc(acts, *rest), rtol=1e-6)


def test_an_axis_of_one_device_may_shard_classes():
    (acts, *rest), *_ = problem(24)
    mesh = mesh_of(8, 1, AxisType.Explicit)
    with mesh_in_use(mesh):
        typed = jax.device_put(acts, NamedSharding(mesh, P(None, None, "model")))
        found = jax.jit(jax_ctc.ctc)(typed, *rest)
    np.testing.assert_allclose(found, jax_ctc.ctc(acts, *rest), rtol=1e-6)


def test_hidden_sharded_over_vocab_axis_raises():
    (hidden, *rest), *_ = problem(24)
    mapped = jax.shard_map(
        partial(jax_ctc.ctc_linear, vocab_axis="model"), mesh=mesh_of(2, 4),
        in_specs=(P(None, "model"), P(None, "model"), P(), P()), out_specs=P("model"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="`hidden`: expected the same on every device"):
        jax.jit(mapped)(np.tile(hidden, (1, 4, 1)), np.ones((24, 40), np.float32), *rest)


@pytest.mark.parametrize("known", [False, True])
def test_check_counts_the_classes_of_all_slices(known):
    (acts, labels, lengths), *_ = problem(24)
    assert labels.max() >= 6  # a slice has so many

    def cost(acts, labels, lengths):
        jax_ctc.check(acts, labels, lengths, vocab_axis="model")
        return jax_ctc.ctc(acts, labels, lengths, vocab_axis="model")

    specs = P(None, None, "model"), P(), P()
    here = mesh_of(1, 8)
    if known:
        bound = lambda acts: cost(acts, labels, lengths)  # noqa: E731
        mapped = jax.shard_map(bound, mesh=here, in_specs=specs[:1], out_specs=P())
        np.testing.assert_allclose(
            jax.jit(mapped)(acts), jax_ctc.ctc(acts, labels, lengths), rtol=1e-6
        )
        return
    mapped = jax.shard_map(cost, mesh=here, in_specs=specs, out_specs=P())
    checked = jax.jit(checkify.checkify(mapped))
    assert checked(acts, labels, lengths)[0].get() is None
    labels = np.where(labels == labels[0, 0], 24, labels)
    assert "labels[0, 0] = 24 is not a class" in checked(acts, labels, lengths)[0].get()


@pytest.mark.parametrize(
    ("spec", "vocab_axis", "message"),
    [
        (P(None, None, "model"), "data", "expected 'model', over which the type of `acts`"),
        (P(None, "model"), "model", "expected axes that shard nothing else.*batch over 'model'"),
        (P(), ("model", "model"), "expected every axis once"),
    ],
    ids=["another axis", "the batch's axis", "twice"],
)
def test_an_axis_that_types_contradict_is_an_error(spec, vocab_axis, message):
    (acts, *rest), *_ = problem(24)
    mesh = mesh_of(2, 4, AxisType.Explicit)
    acts = jax.device_put(acts, NamedSharding(mesh, spec))
    with mesh_in_use(mesh), pytest.raises(ValueError, match=f"`vocab_axis`: {message}"):
        jax.jit(partial(jax_ctc.ctc, vocab_axis=vocab_axis))(acts, *rest)


def test_acts_without_axes_are_an_error():
    with pytest.raises(ValueError, match=r"`acts`: expected shape .* got shape \(\)"):
        jax_ctc.ctc(jnp.float32(1), np.zeros((1, 1), int), np.zeros(1, int))

# SPDX-License-Identifier: Apache-2.0
"""What labels, lengths and the static arguments may be, beside plain arrays."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.results import assert_costs, assert_same_bits
from support.runs import mesh_in_use

T, B, V = 6, 2, 5
ACTS = np.random.default_rng(0).normal(size=(T, B, V)).astype(np.float32)
LABELS = np.array([[1, 2, 1, -1], [1, 2, 3, 1]], np.int32)
LENGTHS, LABEL_LENGTHS = np.array([6, 5], np.int32), np.array([2, 4], np.int32)
COST = jax_ctc.ctc(ACTS, LABELS, LENGTHS, LABEL_LENGTHS)

FUNCTIONS = [jax_ctc.ctc, jax_ctc.check, jax_ctc.ctc_occupancy]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def test_the_cost_of_this_file_is_right():
    truth = oracle.solve(ACTS, LABELS, LENGTHS, LABEL_LENGTHS)
    assert_costs(COST, truth.cost, T)


class Box:
    """What jnp.asarray takes because it says how."""

    def __init__(self, inside):
        self.inside = inside

    def __jax_array__(self):
        return self.inside


@pytest.mark.parametrize("under_jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("of", [np.asarray, jnp.asarray], ids=["NumPy", "JAX"])
@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_integers_of_four_bits(name, of, under_jit):
    dtype = getattr(ml_dtypes, name)
    labels = np.where(LABELS < 0, 0 if name == "uint4" else -1, LABELS)
    rest = [of(x.astype(dtype)) for x in (labels, LENGTHS, LABEL_LENGTHS)]
    f = jax.jit(jax_ctc.ctc) if under_jit else jax_ctc.ctc
    assert_same_bits(f(ACTS, *rest), COST)


@pytest.mark.parametrize("name", ["int2", "uint2"])
def test_integers_of_two_bits(name):
    dtype = getattr(ml_dtypes, name)
    acts, labels = ACTS[:1], np.array([[1], [1]])
    ones = np.ones(2, dtype)
    expected = jax_ctc.ctc(acts, labels, np.ones(2, int), np.ones(2, int))
    assert_same_bits(jax_ctc.ctc(acts, labels.astype(dtype), ones, ones), expected)
    if name == "uint2":
        with pytest.raises(ValueError, match=r"^labels\[0, 0\] = 3 is not a class"):
            jax_ctc.ctc(acts[..., :2], np.full((2, 1), 3, dtype), ones)


def test_lists_with_tracers_in_them():
    def cost(one, four, six):
        return jax_ctc.ctc(ACTS, [[one, 2, 1, -1], [1, 2, 3, one]], [six, 5], (2, four))

    assert_same_bits(jax.jit(cost)(*map(jnp.int32, (1, 4, 6))), COST)


def test_lists_of_arrays():
    rows = [jnp.asarray(row) for row in LABELS]
    assert_same_bits(jax_ctc.ctc(ACTS, rows, list(jnp.asarray(LENGTHS)), [2, 4]), COST)


@pytest.mark.parametrize("under_jit", [False, True], ids=["eager", "jit"])
def test_whatever_says_how_it_is_an_array(under_jit):
    def cost(labels, lengths):
        return jax_ctc.ctc(Box(jnp.asarray(ACTS)), Box(labels), [Box(n) for n in lengths], Box(two))

    two = jnp.asarray(LABEL_LENGTHS)
    cost = jax.jit(cost) if under_jit else cost
    assert_same_bits(cost(jnp.asarray(LABELS), jnp.asarray(LENGTHS)), COST)


def test_a_box_of_numpy_keeps_64_bits(without_x64):
    labels = LABELS.astype(np.int64)
    labels[1, 2] = 2**32 + 1
    with pytest.raises(ValueError, match=r"^labels\[1, 2\] = 4294967297 is not a class"):
        jax_ctc.ctc(ACTS, Box(labels), LENGTHS)


def test_variables_of_flax():
    nnx = pytest.importorskip("flax.nnx", reason="needs Flax", exc_type=ImportError)
    given = [nnx.Variable(jnp.asarray(x)) for x in (ACTS, LABELS, LENGTHS, LABEL_LENGTHS)]
    assert_same_bits(jax_ctc.ctc(*given), COST)
    assert_same_bits(jax.jit(lambda *given: jax_ctc.ctc(*given))(*given), COST)


# ---- lengths=None ------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("under_jit", [False, True], ids=["eager", "jit"])
def test_no_lengths_are_all_frames(function, under_jit, time_major):
    acts = ACTS if time_major else ACTS.swapaxes(0, 1)
    f = partial(function, time_major=time_major)
    if function is jax_ctc.check:
        assert f(acts, LABELS, None) is None
        with pytest.raises(ValueError, match=r"^labels\[0, 1\] = 2 is not a class"):
            f(acts[..., :2], LABELS, None)
        return
    f = jax.jit(f) if under_jit else f
    assert_same_bits(f(acts, LABELS, None), f(acts, LABELS, np.full(B, T)))
    assert_same_bits(f(acts, LABELS, None, LABEL_LENGTHS), f(acts, LABELS, [T] * B, LABEL_LENGTHS))


def test_no_lengths_of_one_sequence_and_under_transformations():
    one = jax_ctc.ctc(ACTS[:, 0], LABELS[0], None)
    assert_same_bits(one, jax_ctc.ctc(ACTS[:, 0], LABELS[0], T))
    each = jax.vmap(lambda acts, labels: jax_ctc.ctc(acts, labels, None), (1, 0))
    assert_same_bits(each(ACTS, LABELS), jax_ctc.ctc(ACTS, LABELS, None))
    gradient = jax.grad(lambda acts, n: jax_ctc.ctc(acts, LABELS, n).sum())
    assert_same_bits(gradient(ACTS, None), gradient(ACTS, np.full(B, T)))


def test_no_lengths_inside_shard_map_and_in_an_exported_program():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    f = jax.shard_map(
        lambda acts, labels: jax_ctc.ctc(acts, labels, None),
        mesh=mesh, in_specs=(P(None, "data"), P("data")), out_specs=P("data"),
    )  # fmt: skip
    with mesh_in_use(mesh):
        assert_same_bits(jax.jit(f)(ACTS, LABELS), jax_ctc.ctc(ACTS, LABELS, None))
    t, b = jax.export.symbolic_shape("t, b")
    shapes = jax.ShapeDtypeStruct((t, b, V), np.float32), jax.ShapeDtypeStruct((b, 4), np.int32)
    exported = jax.export.export(
        jax.jit(lambda acts, labels: jax_ctc.ctc(acts, labels, None)),
        disabled_checks=jax_ctc.export_checks(),
    )(*shapes)
    assert_same_bits(exported.call(ACTS, LABELS), jax_ctc.ctc(ACTS, LABELS, None))


# ---- static arguments --------------------------------------------------------------------------


@every_function
def test_a_negative_blank_counts_from_the_last_class(function):
    labels = np.where(LABELS < 0, -1, LABELS - 1)
    for blank in (-1, -V):
        y = labels if blank == -1 else LABELS
        if function is jax_ctc.check:
            with pytest.raises(ValueError, match=rf"^labels\[0, 0\] = {blank % V} is the blank"):
                function(ACTS, np.full_like(y, blank % V), LENGTHS, blank=blank)
        else:
            actual = function(ACTS, y, LENGTHS, blank=blank)
            assert_same_bits(actual, function(ACTS, y, LENGTHS, blank=blank % V))
    cost = jax_ctc.ctc(ACTS, labels, LENGTHS, blank=-1)
    assert_costs(cost, oracle.solve(ACTS, labels, LENGTHS, blank=V - 1).cost, T)


def test_the_last_class_is_that_of_all_slices():
    acts = np.random.default_rng(1).normal(size=(T, B, 8)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    f = jax.shard_map(
        lambda acts, labels: jax_ctc.ctc(acts, labels, None, blank=-1, vocab_axis="model"),
        mesh=mesh, in_specs=(P(None, None, "model"), P()), out_specs=P(),
    )  # fmt: skip
    expected = oracle.solve(acts, LABELS, [T] * B, blank=7).cost
    assert_costs(jax.jit(f)(acts, LABELS), expected, T)


@pytest.mark.parametrize("threads", [1, np.int64(2), 2**31, 2**63, 10**30])
def test_any_number_of_threads(threads):
    actual = jax_ctc.ctc(ACTS, LABELS, LENGTHS, LABEL_LENGTHS, num_threads=threads)
    assert_same_bits(actual, COST)


def test_switches_may_be_bools_of_numpy():
    swapped = ACTS.swapaxes(0, 1)
    actual = jax_ctc.ctc(
        swapped, LABELS, LENGTHS, LABEL_LENGTHS,
        time_major=np.bool_(False), zero_infinity=np.bool_(True),
    )  # fmt: skip
    assert_same_bits(actual, jax_ctc.ctc(swapped, LABELS, LENGTHS, [2, 4], time_major=False))


def test_an_empty_list_holds_no_labels():
    acts = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_array_equal(
        jax_ctc.ctc(acts, [], 4), jax_ctc.ctc(acts, np.zeros(0, np.int32), 4)
    )


def test_an_integer_of_python_beyond_32_bits_is_named():
    with pytest.raises(ValueError, match=r"labels\[0\] = 1099511627776 is not a class"):
        jax_ctc.ctc(np.zeros((4, 3)), np.array([2**40], object), 4)


def test_only_integers_for_acts_look_swapped_with_labels():
    with pytest.raises(TypeError, match="got complex64") as caught:
        jax_ctc.ctc(np.zeros((4, 1, 3), np.complex64), np.zeros((1, 2)), [4])
    assert "swapped" not in str(caught.value)

# SPDX-License-Identifier: Apache-2.0
"""ctc_linear: the loss of an output layer, against a float64 oracle of its logits."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jax_ctc
from support import layers
from support.layers import assert_close, exact, of_tiles, problem, solve
from support.results import COMPILED, assert_costs, assert_same_bits
from support.runs import sampled, sweep

LAYER = problem()


def edited(**edits):
    """A problem with some entries of some arrays set: hidden=((3, 1), nan)."""
    arrays = {name: getattr(LAYER, name).copy() for name in edits}
    for name, (index, value) in edits.items():
        arrays[name][index] = value
    return replace(LAYER, **arrays)


@cache
def with_tiles_of(tile_bytes):
    """The same function for the same size, so that programs are shared."""
    return partial(of_tiles, tile_bytes=tile_bytes)


@pytest.mark.parametrize("tile_bytes", sweep([1, 1024, 5000, 1 << 20], [1, 1 << 20]))
@sampled(1)
def test_costs_and_gradients_are_those_of_the_oracle_whatever_the_tiles(tile_bytes):
    weights = np.array([1, 0.5, -2, 3], np.float32)
    cost, gradients = solve(with_tiles_of(tile_bytes), LAYER, weights)
    expected = exact(*LAYER.arrays, *LAYER.rest, weights)
    assert_costs(cost, expected[0], 12)
    assert_close(gradients, expected[1])


@pytest.mark.parametrize("V", sweep(list(range(1, 40)), [1, 2, 5, 33]))
@sampled(2)
def test_any_number_of_classes(V):
    """Dense and compact residuals of the few classes, and blocks of V that overlap."""
    layer = problem(T=9, B=3, V=V, L=3)
    cost, gradients = solve(of_tiles, layer)
    expected = exact(*layer.arrays, *layer.rest)
    assert_costs(cost, expected[0], 9)
    assert_close(gradients, expected[1])


def test_a_layer_without_a_bias():
    hidden, kernel, bias = LAYER.arrays
    cost = jax_ctc.ctc_linear(hidden, kernel, *LAYER.rest)
    assert_costs(cost, exact(hidden, kernel, 0 * bias, *LAYER.rest)[0], 12)


@pytest.mark.parametrize(
    ("T", "B", "L"), [(0, 4, 0), (0, 4, 2), (12, 0, 2), (12, 4, 0), (1, 1, 1)], ids=str
)
@sampled(2)
def test_sizes_of_zero_and_one(T, B, L):
    layer = problem()
    layer = replace(
        layer,
        hidden=layer.hidden[:T, :B],
        labels=layer.labels[:B, :L],
        lengths=np.full(B, T, np.int32),
    )
    cost, gradients = solve(of_tiles, layer)
    expected = exact(*layer.arrays, *layer.rest)
    assert_costs(cost, expected[0], T)
    assert_close(gradients, expected[1])


def test_layouts_and_one_sequence():
    hidden, kernel, bias = LAYER.arrays
    batch_major = of_tiles(hidden.swapaxes(0, 1), kernel, bias, *LAYER.rest, time_major=False)
    one = of_tiles(hidden[:, 1], kernel, bias, LAYER.labels[1], LAYER.lengths[1])
    expected = exact(*LAYER.arrays, *LAYER.rest)[0]
    assert_costs(batch_major, expected, 12)
    assert one.shape == ()
    assert_costs(one, expected[1], 12)


def test_the_blank_may_be_any_class():
    labels = np.where(LAYER.labels == 22, 0, LAYER.labels)
    for blank in (22, -1):
        cost = of_tiles(*LAYER.arrays, labels, LAYER.lengths, blank=blank)
        assert_costs(cost, exact(*LAYER.arrays, labels, LAYER.lengths, blank=22)[0], 12)


# ---- edges -------------------------------------------------------------------------------------

ODD = 1
OTHERS = [0, 2, 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [(2, ODD, 3), (0, ODD), (slice(None), ODD)], ids=str)
def test_what_is_not_a_number_in_hidden_stays_with_its_sequence(value, index):
    cost, (d_hidden, _, _) = solve(of_tiles, edited(hidden=(index, value)))
    usual, (usual_d_hidden, _, _) = solve(of_tiles, LAYER)
    assert np.isnan(cost[ODD])
    assert np.isnan(d_hidden[: LAYER.lengths[ODD], ODD]).all()
    assert not d_hidden[LAYER.lengths[ODD] :, ODD].any()
    assert_same_bits(cost[np.array(OTHERS)], usual[np.array(OTHERS)])
    assert_same_bits(d_hidden[:, OTHERS], usual_d_hidden[:, OTHERS])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sequence_whose_cotangent_is_zero_leaves_nothing_in_the_kernel(value):
    """Zero times the NaN of its hidden states would."""
    layer = edited(hidden=((slice(None), ODD), value))
    weights = np.array([1, 0, 1, 1], np.float32)
    _, gradients = solve(of_tiles, layer, weights)
    expected = exact(*LAYER.arrays, *LAYER.rest, weights)[1]
    assert_close(gradients, expected)
    assert not np.asarray(gradients[0])[:, ODD].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_frames_after_the_length_have_no_influence(value):
    hidden = LAYER.hidden.copy()
    for b, length in enumerate(LAYER.lengths):
        hidden[length:, b] = value
    cost, gradients = solve(of_tiles, replace(LAYER, hidden=hidden))
    usual = solve(of_tiles, LAYER)
    jax.tree.map(assert_same_bits, (cost, gradients), usual)
    for b, length in enumerate(LAYER.lengths):
        assert not np.asarray(gradients[0])[length:, b].any()


@pytest.mark.parametrize(
    "edit",
    [
        {"labels": ((ODD, 0), 23)},
        {"labels": ((ODD, 2), 0)},
        {"labels": ((ODD, 1), 2**31 - 1)},
        {"lengths": (ODD, -1)},
        {"lengths": (ODD, 13)},
    ],
    ids=str,
)
def test_a_bad_label_or_length_costs_nan_for_its_sequence_alone(edit):
    cost, gradients = solve(of_tiles, edited(**edit))
    weights = np.array([1, 0, 1, 1], np.float32)
    expected = exact(*LAYER.arrays, *LAYER.rest, weights)
    assert np.isnan(cost[ODD])
    assert_costs(cost[np.array(OTHERS)], expected[0][OTHERS], 12)
    assert_close(gradients, expected[1])


def test_an_infeasible_sequence_costs_infinity_and_has_no_gradient():
    layer = edited(lengths=(ODD, 2))
    weights = np.array([1, 0, 1, 1], np.float32)
    cost, gradients = solve(of_tiles, layer)
    assert np.isposinf(cost[ODD])
    assert_close(gradients, exact(*LAYER.arrays, *LAYER.rest, weights)[1])
    zero = of_tiles(*layer.arrays, *layer.rest, zero_infinity=True)
    assert zero[ODD] == 0


@pytest.mark.parametrize("classes", [[5], [0], [1, 2, 3, 4], list(range(1, 23))], ids=str)
def test_a_bias_of_minus_infinity_makes_a_class_impossible(classes):
    layer = edited(bias=(classes, -np.inf))
    cost, gradients = solve(of_tiles, layer)
    expected = exact(*layer.arrays, *layer.rest)
    assert_costs(cost, expected[0], 12)
    assert_close(gradients, expected[1])


# ---- dtypes ------------------------------------------------------------------------------------


def test_double_precision():
    layer = problem(T=40, dtype=np.float64)
    cost, gradients = solve(of_tiles, layer)
    expected = exact(*layer.arrays, *layer.rest)
    assert cost.dtype == np.float64
    assert_costs(cost, expected[0], 40)
    assert_close(gradients, expected[1], 1e-11)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@sampled(1)
def test_halves_are_multiplied_exactly_and_rounded_once(dtype):
    layer = problem(T=60, V=50, D=32)
    hidden, kernel, bias = (jnp.asarray(x, dtype) for x in layer.arrays)
    half = replace(layer, hidden=hidden, kernel=kernel, bias=bias)
    cost, gradients = solve(of_tiles, half)
    expected = exact(*half.arrays, *half.rest)
    assert cost.dtype == np.float32
    assert_costs(cost, expected[0], 60)
    assert all(x.dtype == dtype for x in gradients)
    eps = float(jnp.finfo(dtype).eps)
    assert_close(gradients, expected[1], eps)


def test_gradients_of_bfloat16_layers_are_summed_in_float32():
    """The kernel's is within 1e-3 of its largest entry, beside its rounding to bfloat16."""
    layer = problem(T=300, B=4, V=200, L=20, D=32)
    hidden, kernel = (jnp.asarray(x, jnp.bfloat16) for x in layer.arrays[:2])
    half = replace(layer, hidden=hidden, kernel=kernel)
    _, gradients = solve(of_tiles, half)
    expected = exact(*half.arrays, *half.rest)[1]
    for actual, wanted in zip(gradients[1:], expected[1:], strict=True):
        rounding = 2.0**-8 * np.abs(wanted) * (actual.dtype == jnp.bfloat16)
        error = np.abs(np.asarray(actual).astype(float) - wanted) - rounding
        assert error.max() <= 1e-3 * np.abs(wanted).max()


def test_dtypes_of_arguments_may_differ():
    hidden = jnp.asarray(LAYER.hidden, jnp.bfloat16)
    cost, (d_hidden, d_kernel, d_bias) = solve(of_tiles, replace(LAYER, hidden=hidden))
    assert (d_hidden.dtype, d_kernel.dtype, d_bias.dtype) == (jnp.bfloat16, np.float32, np.float32)
    expected = exact(hidden, *LAYER.arrays[1:], *LAYER.rest)
    assert_costs(cost, expected[0], 12)
    assert_close((d_kernel, d_bias), expected[1][1:])


def test_a_kernel_of_halves_is_multiplied_with_floats_as_floats():
    layer = replace(LAYER, hidden=10 * LAYER.hidden, kernel=jnp.asarray(LAYER.kernel, jnp.bfloat16))
    cost, _ = solve(of_tiles, layer)
    assert_costs(cost, exact(*layer.arrays, *layer.rest)[0], 12)


def test_more_sequences_than_are_searched_at_once():
    """The last of 4,096 rows of a step is not the first one of the next."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 4100, 2)).astype(np.float32)
    kernel = rng.normal(size=(2, 5)).astype(np.float32)
    labels, lengths = rng.integers(1, 5, (4100, 1)), rng.integers(0, 4, 4100)
    cost = jax_ctc.ctc_linear(hidden, kernel, labels, lengths)
    np.testing.assert_allclose(cost, jax_ctc.ctc(hidden @ kernel, labels, lengths), rtol=1e-5)


def test_large_numbers_keep_their_digits():
    """A bias and a direction that all classes share cancel."""
    layer = replace(LAYER, bias=LAYER.bias + np.float32(1000))
    assert_close(solve(of_tiles, layer)[1], exact(*layer.arrays, *layer.rest)[1], 1e-4)
    directions = tuple(np.full_like(x, 1000 * (i == 2)) for i, x in enumerate(LAYER.arrays))
    slope = jax.jvp(lambda *x: of_tiles(*x, *LAYER.rest), LAYER.arrays, directions)[1]
    np.testing.assert_allclose(slope, 0, atol=1e-3)


@pytest.mark.skipif(not COMPILED, reason="plain JAX is as accurate as its lattice")
def test_long_sequences_are_as_accurate_as_stored_logits():
    layer = problem(T=2000, B=2, V=120, L=100, D=16)
    expected = exact(*layer.arrays, *layer.rest)[1]

    def errors(f):
        actual = solve(f, layer)[1]
        return [np.abs(np.asarray(x) - y).max() for x, y in zip(actual, expected, strict=True)]

    ours, stored = errors(with_tiles_of(None)), errors(layers.of_logits)
    for mine, other, exactly in zip(ours, stored, expected, strict=True):
        assert mine <= max(2 * other, 3e-7 * np.abs(exactly).max())


# ---- arguments ---------------------------------------------------------------------------------

SHAPES = {
    "kernel of another D": ({"kernel": np.zeros((5, 23))}, r"`kernel`: expected shape \(6, V\)"),
    "kernel transposed": ({"kernel": np.zeros((23, 6))}, r"`kernel`: expected shape \(6, V\)"),
    "kernel of one axis": ({"kernel": np.zeros(6)}, r"`kernel`: expected shape \(D, V\)"),
    "bias of another V": ({"bias": np.zeros(22)}, r"`bias`: expected shape \(23,\)"),
    "bias of two axes": ({"bias": np.zeros((1, 23))}, r"`bias`: expected shape \(23,\)"),
    "hidden of four axes": ({"hidden": np.zeros((1, 12, 4, 6))}, r"`hidden`: expected shape"),
    "blank": ({"blank": 23}, r"`blank`: .* because `kernel` has shape \(6, 23\)"),
    "labels": ({"labels": np.full((4, 3), 23)}, r"labels\[0, 0\] = 23 is not a class of kernel"),
    "lengths": ({"lengths": np.full(4, 13)}, r"lengths\[0\] = 13 is outside .*hidden has T = 12"),
    "label rows": ({"labels": np.ones((3, 3), int)}, r"`labels`: .* because `hidden` has shape"),
    "tile of no bytes": ({"tile_bytes": 0}, r"`tile_bytes`: expected None or at least 1"),
    "precision": ({"precision": "low"}, r"`precision`: "),
}
TYPES = {
    "integers": ({"hidden": np.zeros((12, 4, 6), int)}, r"`hidden` \(hidden states\)"),
    "kernel of integers": ({"kernel": np.zeros((6, 23), int)}, r"`kernel` \(weights"),
    "bias of integers": ({"bias": np.zeros(23, int)}, r"`bias` \(bias"),
    "bias by position": ({"label_lengths": np.zeros(23, "f")}, r"A bias is given by name"),
    "ratios of labels": ({"label_lengths": np.ones(4, "f")}, r"ratios of L by jnp.round"),
    "size of a tile": ({"tile_bytes": 1.5}, r"`tile_bytes`: expected None or a Python int"),
}


def call(
    hidden=LAYER.hidden, kernel=LAYER.kernel, labels=LAYER.labels, lengths=LAYER.lengths, **options
):
    return jax_ctc.ctc_linear(hidden, kernel, labels, lengths, **options)


@pytest.mark.parametrize(("change", "message"), SHAPES.values(), ids=SHAPES)
def test_wrong_shapes_and_values_raise(change, message):
    with pytest.raises(ValueError, match=message):
        call(**change)


@pytest.mark.parametrize(("change", "message"), TYPES.values(), ids=TYPES)
def test_wrong_types_raise(change, message):
    with pytest.raises(TypeError, match=message):
        call(**change)


def test_a_kernel_that_is_not_transposed_is_not_told_so():
    layer = replace(LAYER, kernel=np.zeros((9, 4), np.float32), bias=None)
    with pytest.raises(ValueError, match=r"^`kernel`: expected shape") as caught:
        jax_ctc.ctc_linear(layer.hidden, layer.kernel, *layer.rest)
    assert "kernel.T" not in str(caught.value)


def test_a_transposed_kernel_is_recognised():
    with pytest.raises(ValueError, match=r"Is it \(V, D\)\?"):
        jax_ctc.ctc_linear(LAYER.hidden, np.zeros((23, 6)), *LAYER.rest)


def test_check_names_a_label_that_is_no_class_of_the_kernel():
    def loss(hidden, kernel, labels, lengths):
        jax_ctc.check(hidden, labels, lengths, kernel=kernel)
        return jax_ctc.ctc_linear(hidden, kernel, labels, lengths).sum()

    labels = LAYER.labels.copy()
    labels[2, 1] = 23
    checked = jax.jit(checkify.checkify(loss))
    error, _ = checked(*LAYER.arrays[:2], labels, LAYER.lengths)
    assert "labels[2, 1] = 23 is not a class of kernel with V = 23" in error.get()
    error, _ = checked(*LAYER.arrays[:2], *LAYER.rest)
    assert error.get() is None

# SPDX-License-Identifier: Apache-2.0
"""Which floats come out, how half precision is rounded, and integers of every width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.cases import COMPACT, DENSE, both_layouts
from support.results import TOLERANCE, assert_costs, assert_same_bits
from support.runs import sampled

FLOATS = [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16]
HALVES = [jnp.bfloat16, jnp.float16]
INTEGERS = [np.dtype(sign + str(bits)) for sign in ("int", "uint") for bits in (8, 16, 32, 64)]

halves = pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: dtype.__name__)
integers = pytest.mark.parametrize("dtype", INTEGERS, ids=str)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
def test_the_cost_is_float64_for_float64_and_float32_for_all_others(dtype):
    acts, *rest = DENSE.arguments(dtype)
    cost, vjp = jax.vjp(lambda acts: jax_ctc.ctc(acts, *rest), acts)
    assert cost.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert vjp(cost)[0].dtype == dtype
    assert jax_ctc.ctc_occupancy(acts, *rest).dtype == cost.dtype


def test_float32_acts_stay_float32_without_x64(without_x64):
    acts, *rest = DENSE.arguments()
    cost, gradient = jax.value_and_grad(lambda acts: jax_ctc.ctc(acts, *rest).sum())(acts)
    assert cost.dtype == gradient.dtype == jnp.float32


@both_layouts
@halves
def test_a_cost_from_half_precision_is_that_of_the_rounded_logits(case, dtype):
    acts, *rest = case.arguments(dtype)
    cost = jax_ctc.ctc(acts, *rest)
    assert_costs(cost, oracle.solve(acts, *rest).cost, case.T)
    assert_same_bits(cost, jax_ctc.ctc(acts.astype(jnp.float32), *rest))


def half_an_ulp(dtype, values):
    """Half the distance between neighbours of `dtype` around each value; a normal one at least."""
    info = jnp.finfo(dtype)
    exponents = np.frexp(np.maximum(np.abs(values), float(info.tiny)))[1]
    return np.ldexp(float(info.eps) / 4, exponents)


@both_layouts
@halves
@pytest.mark.parametrize("cotangent", [(1, 1, 1), (0.3, -1.7, 1 / 3)], ids=["ones", "weights"])
def test_a_gradient_in_half_precision_is_rounded_once(case, dtype, cotangent):
    acts, *rest = case.arguments(dtype)
    cotangent = np.array(cotangent, np.float32)
    _, vjp = jax.vjp(lambda acts: jax_ctc.ctc(acts, *rest), acts)
    gradient = np.asarray(vjp(jnp.asarray(cotangent))[0]).astype(float)
    expected = oracle.solve(acts, *rest).gradient * cotangent[:, None].astype(float)
    allowed = half_an_ulp(dtype, expected) + 2 * TOLERANCE[np.dtype("float32")]
    np.testing.assert_array_less(np.abs(gradient - expected), allowed)


@halves
def test_half_precision_accumulates_in_float32(dtype):
    """A thousand frames, fifty thousand terms of a softmax: nothing a half could count."""
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(1000, 1, 50)).astype(dtype)
    labels = rng.integers(1, 50, (1, 100))
    assert_costs(jax_ctc.ctc(acts, labels, [1000]), oracle.solve(acts, labels, [1000]).cost, 1000)
    wide = rng.normal(size=(3, 1, 50_000)).astype(dtype)
    assert_costs(jax_ctc.ctc(wide, [[7, 7]], [3]), oracle.solve(wide, [[7, 7]], [3]).cost, 3)


@integers
@pytest.mark.parametrize("under_jit", [False, True], ids=["eager", "jit"])
def test_labels_and_lengths_may_be_any_integers(dtype, under_jit):
    acts, labels, lengths, _ = COMPACT.arguments()
    label_lengths = np.array([3, 1, 0])
    expected = jax_ctc.ctc(acts, labels, lengths, label_lengths)
    if dtype.kind == "u":
        labels = np.where(labels < 0, 0, labels)  # no padding but by label_lengths
    ctc = jax.jit(jax_ctc.ctc) if under_jit else jax_ctc.ctc
    cost = ctc(acts, *(array.astype(dtype) for array in (labels, lengths, label_lengths)))
    assert_same_bits(cost, expected)


def test_each_argument_may_have_its_own_integers():
    acts, labels, lengths, _ = COMPACT.arguments()
    cost = jax_ctc.ctc(acts, labels.astype(np.int8), lengths.astype(np.uint64), [3, 3, 3])
    assert_same_bits(cost, jax_ctc.ctc(acts, labels, lengths))


@integers
def test_the_largest_integer_is_no_padding(dtype):
    """An unsigned -1 is the largest value of its type, and as a label a bad one."""
    acts, labels, lengths, _ = COMPACT.arguments()
    labels = np.where(labels < 0, 1, labels).astype(dtype)
    labels[1, 2] = np.iinfo(dtype).max
    cost = jax.jit(jax_ctc.ctc)(acts, labels, lengths)
    assert np.isnan(cost).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [d for d in INTEGERS if d.kind == "i"], ids=str)
def test_the_smallest_integer_is_padding(dtype):
    acts, labels, lengths, _ = COMPACT.arguments()
    lowest = np.where(labels < 0, np.iinfo(dtype).min, labels.astype(dtype))
    expected = jax_ctc.ctc(acts, labels, lengths)
    assert_same_bits(jax_ctc.ctc(acts, lowest, lengths), expected)
    assert_same_bits(jax.jit(jax_ctc.ctc)(acts, lowest, lengths), expected)


WIDE = {
    "labels": np.array([[1, 2], [2**32 + 1, 2]]),
    "lengths": np.array([5, 2**32 + 5]),
    "label_lengths": np.array([2, 2**32 + 2]),
}


def wide_arguments(name):
    narrow = {
        "acts": np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float32),
        "labels": np.array([[1, 2], [1, 2]]),
        "lengths": np.array([5, 5]),
        "label_lengths": np.array([2, 2]),
    }
    return narrow, narrow | {name: WIDE[name]}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("x64", [True, False])
def test_a_value_beyond_int32_is_reported_as_it_is(name, x64, request):
    if not x64:
        request.getfixturevalue("without_x64")
    narrow, wide = wide_arguments(name)
    assert np.isfinite(jax_ctc.ctc(**narrow)).all()
    with pytest.raises(ValueError, match=str(WIDE[name].max())):
        jax_ctc.ctc(**wide)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_a_traced_value_beyond_int32_is_not_taken_for_its_low_half(name, dtype):
    narrow, wide = wide_arguments(name)
    wide[name] = wide[name].astype(dtype)
    cost, expected = jax.jit(jax_ctc.ctc)(**wide), jax_ctc.ctc(**narrow)
    assert np.isnan(cost[1])
    assert_same_bits(cost[0], expected[0])


@pytest.mark.parametrize("x64", [True, False])
def test_numpy_labels_closed_over_by_jit_keep_their_value(x64, request):
    """They are concrete while acts are traced: an error or NaN, but never label 1."""
    if not x64:
        request.getfixturevalue("without_x64")
    _, wide = wide_arguments("labels")
    acts = wide.pop("acts")
    try:
        outcome = str(jax.jit(lambda acts: jax_ctc.ctc(acts, **wide))(acts)[1])
    except ValueError as error:
        outcome = str(error)
    assert outcome == "nan" or str(2**32 + 1) in outcome


def test_a_cost_is_as_strong_as_any_float32():
    """Times a bfloat16 it is float32, also if acts are made of Python's numbers."""
    cost = jax.eval_shape(lambda x: jax_ctc.ctc(jnp.full((4, 3), x), np.array([1]), 4), 1.0)
    assert not cost.weak_type


@halves
def test_a_forward_jacobian_of_halves_is_the_reverse_one(dtype):
    acts, *rest = COMPACT.arguments(dtype)
    cost = lambda acts: jax_ctc.ctc(acts, *rest)  # noqa: E731
    forward, reverse = jax.jacfwd(cost)(acts), jax.jacrev(cost)(acts)
    np.testing.assert_allclose(forward.astype(float), reverse.astype(float), atol=1e-2)


# ---- halves that the same program computes -----------------------------------------------------

LABELS = np.array([[1, 2, 3], [4, 4, 5]], np.int32)


def cost_of(acts):
    return jax_ctc.ctc(acts, LABELS, None)


def cost_of_hypotheses(acts):
    return jax.vmap(lambda one: jax_ctc.ctc(acts, one, None))(np.stack([LABELS, LABELS + 5]))


def best_score(acts):
    return jax_ctc.ctc_align(acts, LABELS, None).score


def tangents(acts):
    directions = jnp.stack([jnp.cos(k * acts) for k in (1, 2)])
    return jax.vmap(lambda u: jax.jvp(cost_of, (acts,), (u,))[1])(directions)


DERIVATIVES = {
    "gradient": jax.grad(lambda acts: cost_of(acts).sum()),
    "jacobian": jax.jacrev(cost_of),
    "tangents": tangents,
    "gradient of hypotheses": jax.grad(lambda acts: cost_of_hypotheses(acts).sum()),
    "gradient of an alignment": jax.grad(lambda acts: best_score(acts).sum()),
    "occupancies": lambda acts: jax_ctc.ctc_occupancy(acts, LABELS, None),
    "greedy score": lambda acts: jax_ctc.ctc_greedy_decode(acts, None).score,
}


@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
@pytest.mark.parametrize("V", [100, 600])
@halves
@sampled(7)
def test_halves_that_the_program_computes_are_rounded_first(derivative, V, dtype):
    """XLA keeps more digits between two operations of its own; kernels see what is rounded."""
    rng = np.random.default_rng(0)
    hidden, kernel, bias = (
        jnp.asarray(scale * rng.normal(size=shape), dtype)
        for scale, shape in ((3, (12, 2, 16)), (1, (16, V)), (3, (V,)))
    )

    def layer(hidden):
        return hidden @ kernel + bias[None, None]

    together = jax.jit(lambda hidden: derivative(layer(hidden)))(hidden)
    apart = jax.jit(derivative)(jax.jit(layer)(hidden))
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        together.astype(float), apart.astype(float), rtol=2 * rounding, atol=2e-3
    )

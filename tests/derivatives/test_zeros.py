# SPDX-License-Identifier: Apache-2.0
"""What is exactly 0 in a gradient stays 0, whatever it is multiplied with."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.oracle import cost_and_gradient
from support.results import assert_gradient
from support.runs import sampled

T, B = 6, 8
# Few classes for the labels there are (dense residuals), many (compact), and enough for a table.
SIZES = pytest.mark.parametrize(("V", "L"), [(5, 4), (7, 30), (40, 4)], ids=["V5", "V7", "V40"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
INFEASIBLE, BAD_LABEL, BLANK, BAD_LENGTH, EMPTY, NAN, SHORT, GOOD = range(B)
WITHOUT = [INFEASIBLE, BAD_LABEL, BLANK, BAD_LENGTH, EMPTY]  # sequences without a gradient
NEVER = 3  # a class of probability 0 that no label asks for


def problem(V, L, dtype):
    """Every kind of sequence that the contract knows."""
    acts = np.random.default_rng(0).normal(0, 2, (T, B, V))
    acts[:, :, NEVER] = -np.inf
    labels = np.full((B, L), -1, np.int32)
    labels[:, :2] = [1, 2]
    labels[INFEASIBLE, :4] = 1
    labels[BAD_LABEL, 1], labels[BLANK, 1] = V, 0
    lengths = np.array([T, T, T, T + 1, 0, T, T - 2, T], np.int32)
    acts[2, NAN, 1] = np.nan
    acts[T - 2 :, SHORT] = np.nan
    return jnp.asarray(acts).astype(dtype), jnp.asarray(labels), jnp.asarray(lengths)


def zeros_of(V):
    """Where the contract says exactly 0."""
    zero = np.zeros((T, B, V), bool)
    zero[:, WITHOUT] = True
    zero[T - 2 :, SHORT] = True
    zero[:, [SHORT, GOOD], NEVER] = True
    return zero


def vjp(V, L, dtype, cotangent):
    acts, labels, lengths = problem(V, L, dtype)

    cost = jnp.float64 if dtype == "float64" else jnp.float32
    return gradient_of(acts, labels, lengths, jnp.full(B, cotangent, cost))


@jax.jit
def gradient_of(acts, labels, lengths, cotangents):
    return jax.vjp(lambda a: jax_ctc.ctc(a, labels, lengths), acts)[1](cotangents)[0]


@jax.jit
def tangents_of(acts, labels, lengths, u):
    return jax.jvp(lambda a: jax_ctc.ctc(a, labels, lengths), (acts,), (u,))[1]


@jax.jit
def product_of(acts, labels, lengths, cotangents, u):
    return jax.jvp(lambda a: gradient_of(a, labels, lengths, cotangents), (acts,), (u,))[1]


@SIZES
@DTYPES
@pytest.mark.parametrize("cotangent", [np.inf, -np.inf, np.nan], ids=["inf", "-inf", "nan"])
def test_a_zero_of_the_gradient_stays_zero_whatever_the_cotangent(V, L, dtype, cotangent):
    gradient = np.asarray(vjp(V, L, dtype, cotangent), float)
    zero = zeros_of(V)
    assert (gradient[zero] == 0).all()
    assert np.isnan(gradient[:, NAN]).all()
    unit = np.asarray(vjp(V, L, dtype, 1), float)
    with np.errstate(invalid="ignore"):
        expected = np.where(unit == 0, 0, unit * cotangent)
    np.testing.assert_array_equal(gradient, expected)
    assert not np.isfinite(gradient[:, GOOD, [0, 1, 2]]).any()


@SIZES
def test_a_zero_cotangent_gives_zero_everywhere(V, L):
    assert (np.asarray(vjp(V, L, "float32", 0.0)) == 0).all()


MASKED = {  # of acts, labels and lengths: a number for each sequence, with a derivative
    "ctc": jax_ctc.ctc,
    "log-scores": partial(jax_ctc.ctc, softmax=False),
    "occupancy": lambda *given: jax_ctc.ctc_occupancy(*given)[..., 1].sum(0),
    "greedy": lambda acts, _, lengths: jax_ctc.ctc_greedy_decode(acts, lengths).score,
}
MODES = ["reverse", "reverse over forward", "reverse over reverse"]
# The second derivative of an occupancy is the third of the cost, which plain JAX computes.
CHOSEN = [*itertools.product(["ctc", "log-scores", "greedy"], MODES), ("occupancy", "reverse")]


@SIZES
@pytest.mark.parametrize(("name", "mode"), CHOSEN)
@sampled(4)
def test_a_masked_sequence_has_no_derivative_in_any_mode(V, L, name, mode):
    """Its mask is a zero cotangent, which reaches the second derivative as a direction."""
    f, (acts, labels, lengths) = MASKED[name], problem(V, L, "float32")
    u = jnp.ones_like(acts).at[..., 1].set(2)

    def loss(acts, *rest):
        return jnp.where(jnp.arange(B) == GOOD, f(acts, *rest), 0).sum()

    derivative = {
        "reverse": loss,
        "reverse over forward": lambda x, *rest: jax.jvp(lambda x: loss(x, *rest), (x,), (u,))[1],
        "reverse over reverse": lambda x, *rest: (jax.grad(loss)(x, *rest) * u)[:, GOOD].sum(),
    }[mode]
    found = np.asarray(jax.jit(jax.grad(derivative))(acts, labels, lengths))
    assert (np.delete(found, GOOD, axis=1) == 0).all()
    assert np.isfinite(found[:, GOOD]).all()
    assert found[:, GOOD].any()


@SIZES
@pytest.mark.parametrize("softmax", [True, False])
def test_a_cotangent_behind_the_length_does_not_count_as_one(V, L, softmax):
    """Gradients are 0 there. So a masked sequence stays masked if only those are not."""
    acts, labels, lengths = problem(V, L, "float32")
    acts = acts.at[1, :, 0].set(jnp.nan)
    lengths = jnp.maximum(lengths - 2, 0)
    behind = jnp.arange(T, dtype=lengths.dtype)[:, None] >= lengths[None]

    def gradient(acts, labels, lengths):
        def cost(acts):
            return jax_ctc.ctc(acts, labels, lengths, softmax=softmax).sum()

        return jax.grad(cost)(acts)

    @jax.jit
    def product(acts, labels, lengths, cotangent):
        return jax.vjp(lambda acts: gradient(acts, labels, lengths), acts)[1](cotangent)[0]

    cotangent = jnp.where(behind[..., None], jnp.ones_like(acts), 0)
    assert cotangent.any()
    assert not np.asarray(product(acts, labels, lengths, cotangent)).any()


def test_a_masked_sequence_does_not_reach_the_weights_of_costs():
    acts, labels, lengths = problem(5, 4, "float32")
    direction = jnp.cos(jnp.nan_to_num(acts))

    def change(weights, labels, lengths):
        gradient = jax.grad(lambda acts: (weights * jax_ctc.ctc(acts, labels, lengths)).sum())
        return jax.jvp(gradient, (acts,), (direction,))[1][0, GOOD, 0]

    found = np.asarray(jax.jit(jax.grad(change))(jnp.ones(B, "f"), labels, lengths))
    assert found[GOOD] != 0
    assert not np.delete(found, GOOD).any()


def test_a_masked_sequence_does_not_reach_the_output_layer():
    hidden, labels, lengths = problem(5, 4, "float32")
    hidden = jnp.where(hidden == -jnp.inf, 0, hidden)

    def change(kernel, labels, lengths):
        def loss(kernel):
            cost = jax_ctc.ctc_linear(hidden, kernel, labels, lengths)
            return jnp.where(jnp.arange(B) == GOOD, cost, 0).sum()

        return jax.jvp(loss, (kernel,), (jnp.arange(25.0).reshape(5, 5),))[1]

    found = jax.jit(jax.grad(change))(jnp.eye(5), labels, lengths)
    assert np.isfinite(found).all()
    assert np.asarray(found).any()


def test_the_square_of_an_infinite_cost_has_the_gradient_zero():
    acts = jnp.zeros((60, 2, 28))
    labels, lengths = np.ones((2, 40), int), np.array([60, 3])
    labels[0, 20:] = -1

    def squares(acts):
        return (jax_ctc.ctc(acts, labels, lengths) ** 2).sum()

    gradient = np.asarray(jax.grad(squares)(acts))
    assert (gradient[:, 1] == 0).all()
    cost, expected = cost_and_gradient(np.zeros((60, 2, 28)), labels, lengths)
    assert_gradient(gradient[:, 0], 2 * cost[0] * expected[:, 0], scale=2 * cost[0])


def directions_of(zero, value, acts):
    """Ordinary where the gradient is not 0."""
    u = np.random.default_rng(1).normal(size=acts.shape)
    return np.where(zero, value, u), np.where(zero, 0, u)


@SIZES
@DTYPES
@pytest.mark.parametrize("value", [np.inf, np.nan], ids=["inf", "nan"])
def test_a_direction_does_not_count_where_the_gradient_is_zero(V, L, dtype, value):
    acts, labels, lengths = problem(V, L, dtype)
    wild, tame = (jnp.asarray(u).astype(dtype) for u in directions_of(zeros_of(V), value, acts))
    tangents = np.asarray(tangents_of(acts, labels, lengths, wild))
    assert (tangents[WITHOUT] == 0).all()
    assert np.isnan(tangents[NAN])
    np.testing.assert_array_equal(tangents, tangents_of(acts, labels, lengths, tame))


@pytest.mark.parametrize("V", [6, 40], ids=["dense", "compact"])
@DTYPES
@pytest.mark.parametrize("value", [np.inf, np.nan], ids=["inf", "nan"])
def test_a_direction_does_not_count_where_a_label_cannot_stand(V, dtype, value):
    rng = np.random.default_rng(0)
    acts = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(12, 3, V)))).astype(dtype)
    labels, lengths = jnp.tile(jnp.array([1, 2, 3, 2, 3]), (3, 1)), jnp.array([12, 12, 12])
    tame = rng.normal(size=acts.shape)
    wild = tame.copy()
    # The third label before its time; the first one after it; and where it may stand.
    wild[0, 0, 3] = wild[1, 0, 3] = wild[10, 1, 1] = wild[5, 2, 1] = value

    def product(u):
        def gradient(acts):
            return jax.grad(lambda x: jax_ctc.ctc(x, labels, lengths, softmax=False).sum())(acts)

        return np.asarray(jax.jvp(gradient, (acts,), (jnp.asarray(u).astype(dtype),))[1], float)

    found, expected = product(wild), product(tame)
    assert np.isnan(found[:, 2, :4]).all()
    np.testing.assert_allclose(
        found[:, :2], expected[:, :2], rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-6
    )


@SIZES
def test_a_gradient_that_is_zero_by_cancelling_ignores_its_direction(V, L):
    """One class has all of the probability: softmax and occupancy are both 1."""
    acts = jnp.full((T, 1, V), -jnp.inf).at[:, :, 0].set(0)
    u = jnp.full((T, 1, V), jnp.inf)
    labels = jnp.full((1, L), -1)
    out = jax.jvp(lambda a: jax_ctc.ctc(a, labels, jnp.array([T])), (acts,), (u,))
    assert [float(x[0]) for x in out] == [0, 0]


@SIZES
@DTYPES
@pytest.mark.parametrize(
    ("cotangent", "wild"),
    [(np.inf, False), (np.nan, False), (1.0, True), (np.inf, True), (0.0, True)],
)
def test_a_product_is_zero_where_the_gradient_is(V, L, dtype, cotangent, wild):
    acts, labels, lengths = problem(V, L, dtype)
    zero = zeros_of(V)
    if wild:  # one entry that counts, too
        zero[0, GOOD, 0] = True
    u = jnp.asarray(directions_of(zero, np.inf if wild else 1.0, acts)[0]).astype(dtype)
    cotangents = jnp.full(B, cotangent, jnp.float64 if dtype == "float64" else jnp.float32)
    out = np.asarray(product_of(acts, labels, lengths, cotangents, u), float)
    assert (out[zeros_of(V)] == 0).all()
    if cotangent == 0:
        assert (out == 0).all()
    else:
        assert np.isnan(out[:, NAN]).all()
        used = out[: T - 2, SHORT][:, [0, 1, 2]]
        assert np.isfinite(used).all() == (cotangent == 1)


@pytest.mark.parametrize("cotangent", [np.inf, -np.inf, np.nan], ids=["inf", "-inf", "nan"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_wide_rows_of_halves_have_the_gradient_that_one_times_the_cotangent_is(dtype, cotangent):
    acts = np.random.default_rng(0).normal(size=(12, 1, 2100))
    acts[..., 100:] = -np.inf
    pull_back = jax.vjp(
        lambda acts: jax_ctc.ctc(acts, np.array([[5, 6, 7]]), np.array([12])),
        jnp.asarray(acts).astype(dtype),
    )[1]
    unit, found = (np.asarray(pull_back(jnp.full(1, c, "f"))[0], float) for c in (1, cotangent))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found, np.where(unit == 0, 0, unit * cotangent))

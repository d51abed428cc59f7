# SPDX-License-Identifier: Apache-2.0
"""A zero of the gradient stays one, whatever it is multiplied with: cotangents and directions of
inf and NaN, as losses that are not linear in the cost have them."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.results import TOLERANCE
from support.runs import sampled

T, L = 7, 4
ORDINARY, SHORT, TOO_SHORT, BAD, IMPOSSIBLE, NO_FRAMES, NOT_A_NUMBER = range(7)
LENGTHS = np.array([T, T - 2, 3, T, T, 0, T - 1], np.int32)
LABELS = np.array(
    [
        [1, 2, 2, 3], [3, -1, 1, -1], [1, 2, 3, 1], [1, 99, 2, -1], [2, 2, -1, -1], [1, 3, 2, 1],
        [1, 2, -1, -1],
    ],
    np.int32,
)  # fmt: skip
DEAD = [TOO_SHORT, BAD, IMPOSSIBLE, NO_FRAMES]
UNUSED = np.arange(T)[:, None] >= LENGTHS  # (T, B)
WAYS = {"dense": L, "compact": 16, "hypotheses": 20, "slices": 16}  # and their V
every_way = pytest.mark.parametrize("way", WAYS)


@cache
def problem(V):
    """acts, what the oracle says of them, a direction, and the oracle's product with it."""
    rng = np.random.default_rng(V)
    acts = (2 * rng.normal(size=(T, len(LENGTHS), V))).astype(np.float32)
    acts[1, IMPOSSIBLE, [0, 2]] = -np.inf  # all of its classes
    acts[UNUSED] = np.nan
    acts[2, NOT_A_NUMBER, 1] = np.nan
    direction = rng.normal(size=acts.shape).astype(np.float32)
    clean = np.where(np.isnan(acts), 0, acts)
    living = np.where(np.isin(np.arange(len(LENGTHS)), [*DEAD, NOT_A_NUMBER]), 0, LENGTHS)
    product = oracle.hessian_vector(clean, LABELS, living, direction)
    direction[UNUSED] = np.nan
    direction[:, DEAD] = np.array([np.inf, np.nan, -np.inf, np.nan], np.float32)[:, None]
    return acts, oracle.solve(acts, LABELS, LENGTHS), direction, product


def hidden_labels():
    """Under jit their values are not known, so the bad one cannot raise."""
    return jax.lax.optimization_barrier(LABELS)


@cache
def costs_of(way):
    if way == "hypotheses":
        return lambda acts: jax.vmap(jax_ctc.ctc, (None, 0, None))(
            acts, hidden_labels()[None], LENGTHS
        )[0]
    if way == "slices":
        if jax.device_count() < 8:
            pytest.skip("needs eight devices")
        mapped = jax.shard_map(
            partial(jax_ctc.ctc, vocab_axis="model"),
            mesh=Mesh(np.array(jax.devices()[:8]), ("model",)),
            in_specs=(P(None, None, "model"), P(), P()),
            out_specs=P(),
        )
        return lambda acts: mapped(acts, hidden_labels(), LENGTHS)
    return lambda acts: jax_ctc.ctc(acts, hidden_labels(), LENGTHS)


@cache
def pulled_back(way):
    f = costs_of(way)
    return jax.jit(lambda acts, ct: jax.vjp(f, acts)[1](ct)[0])


def assert_zeros(x):
    """Exactly, where there is no gradient."""
    assert not np.asarray(x)[:, DEAD].any()
    assert not np.asarray(x)[UNUSED].any()


def assert_close(actual, expected, scale=1):
    tolerance = scale * TOLERANCE[np.dtype("float32")]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@every_way
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 0, 1])
@sampled(8)
def test_a_gradient_of_zero_is_zero_times_anything(way, value):
    acts, truth, *_ = problem(WAYS[way])
    gradient = pulled_back(way)(acts, np.full(len(LENGTHS), value, np.float32))
    assert_zeros(gradient)
    used = ~UNUSED[:, NOT_A_NUMBER]
    if value == 0:
        assert not gradient.any()
        return
    assert np.isnan(gradient[used, NOT_A_NUMBER]).all()
    if value == 1:
        assert_close(gradient, truth.gradient)
    else:
        assert not np.isfinite(gradient[:, ORDINARY, 1]).any()


@every_way
def test_a_cotangent_stays_with_its_sequence(way):
    acts, truth, *_ = problem(WAYS[way])
    ct = np.ones(len(LENGTHS), np.float32)
    ct[[SHORT, *DEAD]] = np.nan, np.inf, np.nan, -np.inf, np.inf
    gradient = pulled_back(way)(acts, ct)
    assert_zeros(gradient)
    assert_close(gradient[:, ORDINARY], truth.gradient[:, ORDINARY])


LOSSES = {
    "square": lambda c: c**2,
    "focal": lambda c: (1 - jnp.exp(-c)) ** 2 * c,
    "square of the finite": lambda c: jnp.where(jnp.isinf(c), 0, c**2),
    "log": jnp.log,
}


@every_way
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_that_are_not_linear_in_the_cost(way, loss):
    acts, truth, *_ = problem(WAYS[way])
    slopes = jax.jit(jax.vmap(jax.grad(LOSSES[loss])))(truth.cost.astype(np.float32))
    value, back = jax.vjp(LOSSES[loss], jnp.asarray(truth.cost, jnp.float32))
    gradient = pulled_back(way)(acts, back(jnp.ones_like(value))[0])
    assert_zeros(gradient)
    living = [ORDINARY, SHORT]
    expected = truth.gradient[:, living] * np.asarray(slopes)[living, None]
    assert_close(gradient[:, living], expected, 50)


@every_way
def test_the_jacobian_of_a_square_is_that_of_a_loop(way):
    acts, truth, *_ = problem(WAYS[way])
    f = costs_of(way)
    rows = jax.jit(jax.jacrev(lambda acts: f(acts) ** 2))(acts)  # (B, T, B, V)
    for b, row in enumerate(rows):
        if b != NOT_A_NUMBER:
            assert not np.delete(row, b, axis=1).any()
        assert_zeros(row)
    for b in (ORDINARY, SHORT):
        assert_close(rows[b, :, b], 2 * truth.cost[b] * truth.gradient[:, b], 100)


@every_way
@sampled(2)
def test_directions_are_not_looked_at_where_there_is_no_gradient(way):
    acts, truth, direction, _ = problem(WAYS[way])
    f = costs_of(way)
    along = jax.jit(lambda acts, u: jax.jvp(f, (acts,), (u,))[1])
    many = jax.jit(lambda acts, us: jax.vmap(lambda u: jax.jvp(f, (acts,), (u,))[1])(us))
    slope = along(acts, direction)
    with np.errstate(invalid="ignore"):
        products = np.where(truth.gradient == 0, 0, truth.gradient * direction)
    for actual in (slope, *many(acts, np.stack([direction, direction]))):
        assert not np.asarray(actual)[DEAD].any()
        assert np.isnan(actual[NOT_A_NUMBER])
        living = [ORDINARY, SHORT]
        np.testing.assert_allclose(
            actual[np.array(living)], products.sum((0, 2))[living], rtol=1e-4, atol=1e-4
        )


@every_way
@sampled(2)
def test_products_with_the_hessian_are_zero_where_the_gradient_is(way):
    acts, _, direction, expected = problem(WAYS[way])
    f = costs_of(way)
    ct = np.ones(len(LENGTHS), np.float32)
    ct[DEAD] = np.inf, np.nan, -np.inf, 1

    def gradient(acts):
        return jax.vjp(f, acts)[1](ct)[0]

    def slope(acts, u):
        return jnp.vdot(ct[:2], jax.jvp(f, (acts,), (u,))[1][:2])

    product = jax.jit(lambda acts, u: jax.jvp(gradient, (acts,), (u,))[1])(acts, direction)
    assert_zeros(product)
    assert_close(product[:, :NOT_A_NUMBER], expected[:, :NOT_A_NUMBER], 10)
    other = jax.jit(jax.grad(slope))(acts, direction)
    assert_zeros(other)
    assert_close(other[:, :NOT_A_NUMBER], expected[:, :NOT_A_NUMBER], 10)


@pytest.mark.parametrize("V", [L, 16])
def test_occupancies_are_zero_where_there_is_no_alignment(V):
    acts, truth, *_ = problem(V)

    def occupancy(acts):
        return jax_ctc.ctc_occupancy(acts, hidden_labels(), LENGTHS)

    value, back = jax.vjp(jax.jit(occupancy), acts)
    assert_zeros(value)
    assert_close(value, truth.occupancy)
    for cotangent in (np.inf, np.nan):
        ct = np.zeros_like(acts)
        ct[:, DEAD] = cotangent
        ct[UNUSED] = cotangent
        assert not np.asarray(back(jnp.asarray(ct))[0])[:, :NOT_A_NUMBER].any()

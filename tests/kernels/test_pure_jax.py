# SPDX-License-Identifier: Apache-2.0
"""What pure JAX promises as the kernels do, asked of it directly: it needs no other process."""

import inspect
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ctc import _reference
from jax_ctc._primitives import row_sums
from jax_ctc._reference import lattice, problem
from support import oracle
from support.cases import COMPACT, DENSE, Case, both_layouts, every_edge
from support.results import assert_costs, assert_gradient, assert_same_bits
from support.runs import sampled, sweep

LABELS, LENGTHS = np.array([[1, 2]] * 3, np.int32), np.array([6, 4, 6], np.int32)


def parameters(time_major=True):
    return {"time_axis": 0 if time_major else 1, "blank": 0, "threads": 0, "softmax": True}


@partial(jax.jit, static_argnames="time_major")
def evaluate(acts, labels, lengths, cotangents, time_major=True):
    """Costs alone, costs and their gradient."""
    p = parameters(time_major)
    cost, *kept = _reference.forward(acts, labels, lengths, **p)
    gradient = _reference.cotangent(acts, labels, lengths, *kept, cotangents, **p)
    return _reference.loss(acts, labels, lengths, **p), cost, gradient


@partial(jax.jit, static_argnames="time_axis")
def forward(acts, labels, lengths, time_axis):
    return _reference.forward(acts, labels, lengths, **parameters() | {"time_axis": time_axis})


def ones(lengths):
    return np.ones(len(lengths), np.float32)


@pytest.mark.parametrize(
    ("dtype", "time_major"),
    sweep(
        list(itertools.product([jnp.float32, jnp.bfloat16, jnp.float16], [True, False])),
        [(jnp.bfloat16, False)],  # its rows are widened, and its frames are not the first axis
    ),
)
def test_the_loss_takes_no_memory_that_grows_with_classes(dtype, time_major):
    def temporaries(V):
        acts = jax.ShapeDtypeStruct((8, 4, V) if time_major else (4, 8, V), dtype)
        integers = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(4, 3), (4,)])
        loss = jax.jit(partial(_reference.loss, **parameters(time_major)))
        return loss.lower(acts, *integers).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(50_000) < temporaries(1000) + 8 * 4 * 1000


def test_a_sum_over_classes_has_its_derivatives_without_its_rule_too():
    """In a gradient that is taken through `scan` JAX drops the rule and keeps the body."""
    x = jnp.array([[2.0, -1.0, 2.0, 0.5], [0.0, -jnp.inf, -3.0, 1.0]])
    top = jnp.array([2.0, 1.0])

    def tail(x):
        body = inspect.unwrap(problem.ties_and_tail)
        return body(x, jnp.array([True, True]), top)[1].sum()

    along = jnp.array([[1.0, 2.0, 3.0, -4.0], [-1.0, 1.0, 0.5, 2.0]])
    terms = jnp.exp(x - top[:, None])
    gradient, product = jax.jvp(jax.grad(tail), (x,), (along,))
    np.testing.assert_allclose(gradient, terms, rtol=1e-6)
    np.testing.assert_allclose(product, terms * along, rtol=1e-6)


@pytest.mark.parametrize("time_major", [True, False])
@sampled(1)
def test_the_gradient_is_the_only_array_like_acts(time_major):
    T, B, V, L = 32, 8, 3000, 10
    acts = jax.ShapeDtypeStruct((T, B, V) if time_major else (B, T, V), jnp.float32)
    integers = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(B, L), (B,)])
    cotangents = jax.ShapeDtypeStruct((B,), jnp.float32)
    program = evaluate.lower(acts, *integers, cotangents, time_major=time_major).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * T * B * V / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("T_B_V_L", "time_major"),
    sweep(
        list(itertools.product([(20, 3, 7, 10), (20, 3, 37, 6), (9, 13, 3000, 4)], [True, False])),
        [((20, 3, 7, 10), True), ((9, 13, 3000, 4), False)],
    ),
)
@sampled(1)
def test_a_batch_has_the_bits_of_batches_of_one(T_B_V_L, time_major):
    T, B, V, L = T_B_V_L
    rng = np.random.default_rng(V)
    acts = rng.normal(size=(T, B, V) if time_major else (B, T, V)).astype(np.float32)
    labels = rng.integers(1, V, (B, L), dtype=np.int32)
    lengths = rng.integers(T - 3, T + 1, B, dtype=np.int32)
    weights = rng.normal(size=B).astype(np.float32)
    axis = 1 if time_major else 0
    alone, cost, gradient = evaluate(acts, labels, lengths, weights, time_major)
    assert_same_bits(alone, cost)
    for b in range(min(B, 5)):
        one = slice(b, b + 1)
        x = np.take(acts, [b], axis)
        results = evaluate(x, labels[one], lengths[one], weights[one], time_major)
        assert_same_bits(results[0], cost[one])
        assert_same_bits(results[2], np.take(gradient, [b], axis))


def test_finite_differences_of_the_cost_agree_as_well_as_warp_ctc_asks():
    """Its own check: T = 50, L = 15, V = 20, steps of 1e-2, 1e-5 of the squared norm."""
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(50, 1, 20)).astype(np.float32)
    labels, lengths = rng.integers(1, 20, (1, 15), dtype=np.int32), np.array([50], np.int32)
    gradient = np.asarray(evaluate(acts, labels, lengths, ones(lengths))[2], float)
    loss = jax.jit(partial(_reference.loss, **parameters()))
    wide = (np.tile(labels, (1000, 1)), np.tile(lengths, 1000))
    steps = 1e-2 * np.eye(1000, dtype=np.float32).reshape(1000, 50, 20).swapaxes(0, 1)
    ahead, behind = (np.asarray(loss(acts + step, *wide), float) for step in (steps, -steps))
    difference = ((ahead - behind) / 2e-2).reshape(50, 1, 20)
    assert ((difference - gradient) ** 2).sum() < 1e-5 * (gradient**2).sum()


def test_a_cost_is_off_by_at_most_a_unit_in_the_last_place():
    rng = np.random.default_rng(1)
    acts = rng.normal(size=(50, 40, 20)).astype(np.float32)
    labels, lengths = rng.integers(1, 20, (40, 15), dtype=np.int32), np.full(40, 50, np.int32)
    cost = np.asarray(jax.jit(partial(_reference.loss, **parameters()))(acts, labels, lengths))
    exact = oracle.solve(acts, labels, lengths).cost
    assert (np.abs(cost - exact) <= np.spacing(cost)).all()


@pytest.mark.parametrize(
    ("case", "T"),
    sweep(list(itertools.product([DENSE, COMPACT], [9, 11])), [(DENSE, 11)]),
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_blocks_of_frames_count_each_frame_once(case, T, monkeypatch):
    """Not to the bit: XLA fuses the two programs differently on JAX 0.7."""
    rng = np.random.default_rng(T)
    acts = rng.normal(size=(T, 3, case.V)).astype(np.float32)
    arguments = (acts, case.labels, np.array([T, T - 2, 4], np.int32), np.ones(3, np.float32))

    def compiled_anew():  # JAX would find a function that it has traced before
        return jax.jit(lambda *given: evaluate.__wrapped__(*given))(*arguments)

    once = compiled_anew()
    monkeypatch.setattr(lattice, "_KEPT", 1)
    for blocks, whole in zip(compiled_anew(), once, strict=True):
        np.testing.assert_allclose(blocks, whole, rtol=1e-6, atol=3e-7)


@pytest.mark.slow
def test_a_long_sequence_fits_into_memory():
    T, L = 70_000, 15_500
    integers = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(1, L), (1,)])
    acts = jax.ShapeDtypeStruct((T, 1, 32), jnp.float32)
    program = jax.jit(partial(_reference.forward, **parameters())).lower(acts, *integers).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2e9


@pytest.mark.parametrize("V", [3, 3000])
@pytest.mark.parametrize("place", [0, 1, -1])
@sampled(2)
def test_a_nan_is_seen_in_arrays_of_any_size(V, place):
    acts = np.zeros((6, 3, V), np.float32)
    acts[2, 1, place] = np.nan
    alone, cost, gradient = evaluate(acts, LABELS, LENGTHS, ones(LENGTHS))
    for costs in (alone, cost):
        assert np.isnan(costs).tolist() == [False, True, False]
    assert np.isnan(gradient[:4, 1]).all()
    assert not np.isnan(gradient[:, [0, 2]]).any()
    assert not np.asarray(gradient[4:, 1]).any()


def test_every_class_counts_once_where_they_are_read_in_groups():
    """The last of the groups begins with classes of the group before it."""
    acts = np.random.default_rng(0).normal(size=(6, 3, 3000)).astype(np.float32)
    alone, cost, gradient = evaluate(acts, LABELS, LENGTHS, ones(LENGTHS))
    truth = oracle.solve(acts, LABELS, LENGTHS)
    assert_costs(alone, truth.cost, 6)
    assert_costs(cost, truth.cost, 6)
    assert_gradient(gradient, truth.gradient)


@pytest.mark.parametrize("V", [4, 5000])
def test_sums_see_a_nan_beside_nothing_but_minus_infinity(V):
    acts = np.full((6, 3, V), -np.inf, np.float32)
    acts[2, 1, -1] = np.nan
    sums = jax.jit(partial(row_sums._sums, **parameters()))
    top, count, tail, _ = sums(acts, LABELS, LENGTHS)
    assert np.isnan(count).sum() == 1
    assert np.isnan(count[2, 1])
    assert not np.isnan(top).any()
    assert not np.isnan(tail).any()


@partial(jax.jit, static_argnames="blank")
def everything(acts, labels, lengths, cotangents, direction, blank=0):
    """Costs, gradient, tangents, and products with the Hessian for cotangents of 1 and for these"""
    p = parameters() | {"blank": blank}
    cost, *kept = _reference.forward(acts, labels, lengths, **p)
    problem = (acts, labels, lengths, *kept)
    return (
        cost,
        _reference.cotangent(*problem, cotangents, **p),
        _reference.tangent(*problem, direction, **p),
        _reference.hvp(*problem, jnp.ones_like(cotangents), direction, **p),
        _reference.hvp(*problem, cotangents, direction, **p),
    )


@every_edge
@pytest.mark.parametrize("L", [6, 11], ids=["compact", "dense"])
@sampled(8)
def test_every_edge_is_what_the_oracle_says(case, L):
    acts, labels, lengths = case.in_one_shape(V=12, L=L)
    direction = np.random.default_rng(1).normal(size=acts.shape).astype(np.float32)
    blank, one = Case.SHARED_BLANK, np.ones(4, np.float32)
    results = everything(acts, labels, lengths, one, direction, blank)
    cost, gradient, change, product, _ = map(np.asarray, results)
    truth = oracle.solve(acts, labels, lengths, blank=blank)
    assert_costs(cost, truth.cost, len(acts))
    assert_gradient(gradient, truth.gradient)
    np.testing.assert_allclose(change, (truth.gradient * direction).sum((0, 2)), atol=1e-4)
    expected = oracle.hessian_vector(acts, labels, lengths, direction, blank=blank)
    np.testing.assert_allclose(product, np.nan_to_num(expected), rtol=0, atol=1e-4)


@both_layouts
@pytest.mark.parametrize("factor", [np.inf, -np.inf, np.nan])
@sampled(1)
def test_what_has_no_gradient_has_none_whatever_it_is_multiplied_with(case, factor):
    """Sequence 0 is too short, 1 has a bad label, 2 is in order; all have padded frames."""
    acts, labels = case.acts(), case.labels.copy()
    labels[0], labels[1, 0] = 1, 99
    lengths = np.array([2, 7, 6], np.int32)
    acts[6:] = np.nan
    unused = np.arange(case.T)[:, None] >= lengths * [0, 0, 1]
    everywhere = np.full(3, factor, np.float32)
    direction = np.where(unused[..., None], np.float32(factor), np.cos(np.nan_to_num(acts)))

    results = everything(acts, labels, lengths, everywhere, direction)
    _, gradient, change, product, scaled = map(np.asarray, results)
    for like_acts in (gradient, product, scaled):
        assert not like_acts[unused].any()
    assert not change[:2].any()
    assert np.isfinite(change[2])
    assert np.isfinite(product).all()
    assert not np.isfinite(gradient[:6, 2]).all()


def test_no_exponent_runs_over_where_all_of_a_long_sequence_is_impossible():
    acts = np.full((64, 1, 60), -np.inf, np.float32)
    acts[..., 59] = 0
    labels, lengths = np.arange(1, 41, dtype=np.int32)[None], np.array([64], np.int32)
    cost, with_gradient, gradient = evaluate(acts, labels, lengths, ones(lengths))
    assert np.isposinf(cost).all()
    assert np.isposinf(with_gradient).all()
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("time_axis", range(4))
def test_more_batch_axes_are_mapped_over(time_axis):
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(5, 4, 2, 3, 6)).astype(np.float32)
    labels = rng.integers(1, 6, (4, 2, 3, 2), dtype=np.int32)
    lengths = rng.integers(3, 6, (4, 2, 3), dtype=np.int32)
    flat = acts.reshape(5, 24, 6), labels.reshape(24, 2), lengths.reshape(24)
    expected, *kept = forward(*flat, time_axis=0)
    cost, *residuals = forward(
        np.moveaxis(acts, 0, time_axis), labels, lengths, time_axis=time_axis
    )
    np.testing.assert_allclose(np.ravel(cost), expected, rtol=1e-6)
    for x, y in zip(residuals, kept, strict=True):
        found = np.moveaxis(x, time_axis, 0).reshape(y.shape)
        np.testing.assert_allclose(found, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", [DENSE, COMPACT], ids=["dense", "compact"])
@sampled(1)
def test_a_zero_cotangent_is_a_zero_and_a_nan_stays(case):
    acts = case.acts()
    acts[1, :2] = np.nan
    lengths = np.array([9, 9, 9], np.int32)
    cotangents = np.array([0, 1, 0], np.float32)
    gradient = np.asarray(evaluate(acts, case.labels, lengths, cotangents)[2])
    assert not gradient[:, [0, 2]].any()
    assert np.isnan(gradient[:, 1]).all()

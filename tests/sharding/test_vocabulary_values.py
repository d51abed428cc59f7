# SPDX-License-Identifier: Apache-2.0
"""V sharded over devices, and few classes: edges, large numbers, what is not a number."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.cases import Case, every_edge
from support.results import TOLERANCE, assert_costs, assert_gradient
from support.runs import sampled, sweep
from support.sharded_classes import (
    T,
    by_shard_map,
    hessian_vector,
    hypothesis_of,
    mesh_of,
    needs_devices,
    on_one_device,
    over_eight,
    over_eight_with_a_blank,
    problem,
    solution_of,
)

pytestmark = needs_devices


@every_edge
def test_every_edge_is_as_on_one_device(case):
    given = case.in_one_shape(V=16, L=6)
    cost, gradient = solution_of(over_eight_with_a_blank)(*given)
    expected = oracle.cost_and_gradient(*given, blank=Case.SHARED_BLANK)
    assert_costs(cost, expected[0], 12)
    assert_gradient(gradient, expected[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [np.s_[2, 1, 9], np.s_[2, 1, :], np.s_[2, 1, 9:12], np.s_[-1, 1]])
def test_what_is_not_a_number_stays_with_its_sequence(value, place):
    (acts, labels, lengths), *_ = problem(24)
    acts = acts.copy()
    acts[place] = value
    cost, gradient = solution_of(over_eight)(acts, labels, lengths)
    expected = solution_of(on_one_device)(acts, labels, lengths)
    np.testing.assert_allclose(cost, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=TOLERANCE[np.dtype("float32")])


@pytest.mark.parametrize("value", [3, np.nan, np.inf, -np.inf])
def test_slices_of_many_classes_are_as_the_oracle_says(value):
    """The kernels read rows of more than 1024 classes in another way."""
    (acts, labels, lengths), *_ = problem(8 * 1500)
    acts = acts.copy()
    acts[2, 1, [5000, 5001, 11_000]] = value
    cost, gradient = solution_of(over_eight)(acts, labels, lengths)
    expected = oracle.cost_and_gradient(acts, labels, lengths)
    assert_costs(cost, expected[0], T)
    assert_gradient(gradient, expected[1])


@pytest.mark.parametrize(("spread", "offset"), [(1, 0), (20, 0), (3, 1000), (3, -1000)])
@sampled(2)
def test_large_logits_and_long_sequences_keep_their_digits(spread, offset):
    sizes = {"T": 1000, "B": 8, "spread": spread, "offset": offset}
    arguments, _, *expected = problem(40, **sizes)
    cost, gradient = solution_of(over_eight)(*arguments)
    assert_costs(cost, expected[0], 1000)
    assert_gradient(gradient, expected[1])


few_classes = pytest.mark.parametrize("f", [hypothesis_of, over_eight])


@few_classes
@pytest.mark.parametrize("value", [-1e4, -1e6, -1e9, 1e9, -3e38])
@pytest.mark.parametrize("rows", [np.s_[3], np.s_[:]], ids=["a row", "all rows"])
def test_rows_of_any_size_keep_their_digits(f, value, rows):
    """What masks a row, or an offset of all logits."""
    (acts, labels, lengths), *_ = problem(40)
    acts = acts.copy()
    acts[rows] = acts[rows] + np.float32(value)
    given = acts, labels, lengths
    expected = oracle.cost_and_gradient(*given)
    cost, gradient = solution_of(f)(*given)
    assert_costs(cost, expected[0], T)
    assert_gradient(gradient, expected[1])


@cache
def program_of_products(f):
    return jax.jit(
        lambda acts, labels, lengths, u: hessian_vector(lambda x: f(x, labels, lengths), acts, u)
    )


@few_classes
@pytest.mark.parametrize("margin", [20, 60, 90, 300])
def test_products_of_confident_rows_are_finite(f, margin):
    (acts, labels, lengths), direction, *_ = problem(40)
    acts = (0.1 * acts).astype(np.float32)
    acts[:, :, 0] += margin
    given = acts, labels, lengths, direction
    actual, expected = (program_of_products(f)(*given) for f in (f, on_one_device))
    np.testing.assert_allclose(actual, expected, atol=3e-6)


@cache
def gradient_but_of_the_third(f):
    weights = np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32)
    return jax.jit(jax.grad(lambda x, *rest: jnp.vdot(f(x, *rest), weights)))


@few_classes
def test_an_infinite_direction_of_a_class_of_probability_zero_does_not_count(f):
    (acts, labels, lengths), *_ = problem(40)
    other = np.setdiff1d(np.arange(1, 40), labels)[0]
    acts, direction = acts.copy(), np.ones_like(acts)
    acts[..., other], direction[..., other] = -np.inf, np.inf
    change = jax.jvp(lambda acts: f(acts, labels, lengths), (acts,), (direction,))[1]
    np.testing.assert_allclose(change, 0, atol=1e-4)


@few_classes
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_does_not_count_has_gradient_zero_whatever_acts_hold(f, value):
    (acts, labels, lengths), *_ = problem(40)
    acts, labels, lengths = acts.copy(), labels.copy(), lengths.copy()
    acts[5, :4, 7] = value
    labels[0, 0], lengths[1] = 99, T + 1  # bad, and their acts too
    gradient = gradient_but_of_the_third(f)(acts, labels, lengths)
    assert not gradient[:, :3].any()
    assert np.isnan(gradient[: lengths[3], 3]).all()
    assert np.isfinite(gradient[:, 4:]).all()


@pytest.mark.parametrize("dtype", sweep([jnp.bfloat16, jnp.float16], [jnp.bfloat16]))
def test_half_precision_acts_have_a_half_precision_gradient(dtype):
    (acts, labels, lengths), *_ = problem(24)
    acts = jnp.asarray(acts, dtype)
    f = by_shard_map(mesh_of(1, 8), P(None, None, "model"), P(), labels, lengths)
    cost, gradient = oracle.cost_and_gradient(np.asarray(acts, np.float32), labels, lengths)
    assert_costs(jax.jit(f)(acts), cost, T)
    actual = jax.jit(jax.grad(lambda x: f(x).sum()))(acts)
    assert actual.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(actual.astype(np.float32), gradient, rtol=eps, atol=eps)


@pytest.mark.parametrize("label", [23, 24])
def test_check_knows_of_the_classes_of_others(label):
    (acts, labels, lengths), *_ = problem(24)
    labels = np.full_like(labels, label)

    def checked(acts, labels):
        jax_ctc.check(acts, labels, lengths, vocab_axis="model")

    mapped = jax.shard_map(
        checkify.checkify(checked), mesh=mesh_of(1, 8), in_specs=(P(None, None, "model"), P()),
        out_specs=P(),
    )  # fmt: skip
    error, _ = jax.jit(mapped)(acts, labels)
    wrong = "labels[0, 0] = 24 is not a class of acts with V = 24"
    assert (error.get() is None) if label == 23 else (wrong in error.get())


def test_labels_are_classes_of_the_whole():
    """23 is a class of 24, though a device has three; 24 is none."""
    (acts, labels, lengths), *_ = problem(24)
    labels = labels.copy()
    labels[0, 0], labels[1, 0] = 23, 24
    f = by_shard_map(mesh_of(1, 8), P(None, None, "model"), P(), labels, lengths)
    expected = jax.jit(jax_ctc.ctc)(acts, labels, lengths)
    np.testing.assert_allclose(jax.jit(f)(acts), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.nansum(f(x))))(acts)
    assert not gradient[:, 1].any()

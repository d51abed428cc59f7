# SPDX-License-Identifier: Apache-2.0
"""The gradient against the oracle, for every case, and what is exact about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.cases import COMPACT, both_layouts, every_case
from support.results import COMPILED, assert_gradient, assert_same_bits
from support.runs import sampled


def pull_back(cotangent, acts, *rest, **options):
    """The cotangent of acts, from one of the costs."""
    _, vjp = jax.vjp(lambda acts: jax_ctc.ctc(acts, *rest, **options), acts)
    return vjp(jnp.asarray(cotangent, acts.dtype))[0]


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@sampled(32)
def test_gradient_is_softmax_less_occupancy(case, dtype):
    acts, *rest = case.arguments(dtype)
    gradient = pull_back(np.ones(acts.shape[1]), acts, *rest, blank=case.blank)
    assert gradient.shape == acts.shape
    assert gradient.dtype == dtype
    assert_gradient(gradient, oracle.solve(acts, *rest, blank=case.blank).gradient)


@every_case
@sampled(16)
def test_each_sequence_is_scaled_by_its_own_cotangent(case, time_major):
    acts, *rest = case.arguments()
    cotangent = np.linspace(-3, 2, acts.shape[1])
    expected = oracle.solve(acts, *rest, blank=case.blank).gradient * cotangent[:, None]
    swapped = (0, 1, 2) if time_major else (1, 0, 2)
    gradient = pull_back(
        cotangent, acts.transpose(swapped), *rest, blank=case.blank, time_major=time_major
    )
    assert_gradient(gradient.transpose(swapped), expected, scale=3)


@every_case
def test_every_frame_sums_to_zero(case):
    acts, *rest = case.arguments()
    gradient = pull_back(np.ones(acts.shape[1]), acts, *rest, blank=case.blank)
    assert_gradient(np.asarray(gradient).sum(axis=-1), np.zeros(acts.shape[:2]), scale=2)


@both_layouts
@pytest.mark.parametrize("garbage", [0, np.nan, np.inf, -np.inf, 1e30])
def test_gradient_is_exactly_zero_after_the_length(case, garbage, time_major):
    acts, labels, lengths, _ = case.arguments()
    after = np.arange(case.T)[:, None] >= lengths
    clean = pull_back(np.array([1, -2, 3]), acts, labels, lengths)
    acts[after] = garbage
    swapped = (0, 1, 2) if time_major else (1, 0, 2)
    gradient = pull_back(
        np.array([1, -2, 3]), acts.transpose(swapped), labels, lengths, time_major=time_major
    )
    gradient = np.asarray(gradient).transpose(swapped)
    assert not gradient[after].any()
    np.testing.assert_array_equal(gradient, clean)


@both_layouts
@pytest.mark.parametrize("fault", ["none", "infeasible", "NaN", "bad label", "no path"])
def test_a_masked_sequence_has_gradient_exactly_zero(case, fault):
    acts, labels, lengths, _ = case.arguments()
    if fault == "infeasible":
        lengths[1] = 1
    if fault == "NaN":
        acts[2, 1, 3] = np.nan
    if fault == "bad label":
        labels[1, 0] = 99
    if fault == "no path":
        acts[:, 1, 3] = -np.inf
    masked = jax.jit(pull_back)(np.array([1, 0, 1]), acts, labels, lengths)
    assert not np.asarray(masked)[:, 1].any()
    assert np.asarray(masked)[:, [0, 2]].any()


@both_layouts
def test_a_mask_multiplied_onto_the_costs_masks(case):
    """jnp.where, the way users write it; a product would make inf * 0 of an infeasible cost."""
    acts, labels, lengths, _ = case.arguments()
    lengths[1] = 1

    def total(acts):
        cost = jax_ctc.ctc(acts, labels, lengths)
        return jnp.where(jnp.isinf(cost), 0, cost).sum()

    value, gradient = jax.value_and_grad(total)(acts)
    truth = oracle.solve(acts, labels, lengths)
    assert np.isfinite(value)
    assert_gradient(gradient, truth.gradient)


@both_layouts
def test_gradient_of_one_sequence_needs_no_batch_axis(case, time_major):
    acts, labels, lengths, _ = case.arguments()
    truth = oracle.solve(acts, labels, lengths)
    for b in range(3):
        gradient = pull_back(1.0, acts[:, b], labels[b], lengths[b], time_major=time_major)
        assert_gradient(gradient, truth.gradient[:, b])


@both_layouts
def test_the_cost_is_the_same_with_and_without_its_gradient(case):
    acts, labels, lengths, _ = case.arguments()
    alone = jax_ctc.ctc(acts, labels, lengths)
    beside, _ = jax.vjp(lambda acts: jax_ctc.ctc(acts, labels, lengths), acts)
    if COMPILED:
        assert_same_bits(alone, beside)
    np.testing.assert_allclose(alone, beside, rtol=1e-6)


@both_layouts
def test_the_gradient_depends_on_nothing_but_the_values(case):
    """Cotangents of ones, scaled in place or not, and the same ones made by JAX."""
    acts, labels, lengths, _ = case.arguments()

    def total(acts):
        return jax_ctc.ctc(acts, labels, lengths).sum()

    assert_same_bits(jax.grad(total)(acts), pull_back(np.ones(3), acts, labels, lengths))
    twice = jax.grad(lambda acts: 2 * total(acts))(acts)
    assert_same_bits(twice, 2 * jax.grad(total)(acts))


def test_acts_are_left_as_they_were():
    acts, labels, lengths, _ = COMPACT.arguments()
    acts = jnp.asarray(acts)
    before = np.array(acts)
    value, vjp = jax.vjp(lambda acts: jax_ctc.ctc(acts, labels, lengths), acts)
    first, second = vjp(jnp.ones_like(value)), vjp(2 * jnp.ones_like(value))
    assert_same_bits(acts, before)
    assert_same_bits(second[0], 2 * first[0])
    assert_same_bits(vjp(jnp.ones_like(value))[0], first[0])


@both_layouts
def test_acts_are_kept_and_not_copied(case):
    acts, labels, lengths, _ = case.arguments()
    acts = jnp.asarray(acts)
    _, vjp = jax.vjp(lambda acts: jax_ctc.ctc(acts, labels, lengths), acts)
    kept = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(vjp)}
    assert acts.unsafe_buffer_pointer() in kept

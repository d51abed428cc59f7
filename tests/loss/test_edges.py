# SPDX-License-Identifier: Apache-2.0
"""The table of edges: what one odd sequence costs, and that its neighbours do not notice.

Every batch has four sequences, of which the second is made odd; V = 4 is kept by class,
V = 9 by label, and V = 40 is too many to go through a table on the CPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.results import assert_costs, assert_gradient, assert_same_bits
from support.runs import sampled

T, B, L, ODD = 9, 4, 4, 1
ONES = np.ones(B, np.float32)


def put(name, index, value):
    """An edit of one argument of the batch."""
    return lambda batch: batch[name].__setitem__(index, value)


def named(edits):
    return pytest.mark.parametrize("odd", edits.values(), ids=edits.keys())


INFEASIBLE = {
    "no frames for three labels": put("lengths", ODD, 0),
    "one frame for three labels": put("lengths", ODD, 1),
    "two frames for three labels": put("lengths", ODD, 2),
    "six frames for four labels and three repeats": lambda batch: (
        put("labels", ODD, 3)(batch),
        put("lengths", ODD, 6)(batch),
    ),
    "a needed class impossible": put("acts", np.s_[:, ODD, 3], -np.inf),
    "a needed class impossible until too late": put("acts", np.s_[:6, ODD, 3], -np.inf),
    "no way to start": put("acts", (0, ODD, [0, 3]), -np.inf),
    "no way to end": put("acts", (7, ODD, [0, 2]), -np.inf),
}

UNDEFINED = {
    "NaN in the first frame": put("acts", (0, ODD, 0), np.nan),
    "NaN in a label's class": put("acts", (4, ODD, 3), np.nan),
    "NaN in the last used frame": put("acts", (7, ODD, 2), np.nan),
    "NaN in the last class": put("acts", (3, ODD, -1), np.nan),
    "NaN everywhere": put("acts", np.s_[:, ODD], np.nan),
    "+inf in the first frame": put("acts", (0, ODD, 1), np.inf),
    "+inf in the blank": put("acts", (4, ODD, 0), np.inf),
    "+inf in the last class": put("acts", (7, ODD, -1), np.inf),
    "+inf throughout a frame": put("acts", np.s_[5, ODD], np.inf),
    "-inf throughout the first frame": put("acts", np.s_[0, ODD], -np.inf),
    "-inf throughout the last used frame": put("acts", np.s_[7, ODD], -np.inf),
    "-inf everywhere": put("acts", np.s_[:, ODD], -np.inf),
}

BAD = {
    "a label of 40": put("labels", (ODD, 0), 40),
    "a label of 41 after padding": put("labels", (ODD, 3), 41),
    "a label of 2**31 - 1": put("labels", (ODD, 1), 2**31 - 1),
    "a label of 2**32 + 1": put("labels", (ODD, 1), 2**32 + 1),
    "a label of 2**63 - 1": put("labels", (ODD, 3), 2**63 - 1),
    "a label that is the blank": put("labels", (ODD, 1), 0),
    "labels that are the blank": put("labels", ODD, 0),
    "a length of -1": put("lengths", ODD, -1),
    "a length of T + 1": put("lengths", ODD, T + 1),
    "a length of 2**31 - 1": put("lengths", ODD, 2**31 - 1),
    "a length of -2**31": put("lengths", ODD, -(2**31)),
    "a length of 2**32 + 8": put("lengths", ODD, 2**32 + 8),
    "a length of -2**32 + 8": put("lengths", ODD, -(2**32) + 8),
    "a label length of -1": put("label_lengths", ODD, -1),
    "a label length of L + 1": put("label_lengths", ODD, L + 1),
    "a label length of 2**31 - 1": put("label_lengths", ODD, 2**31 - 1),
    "a label length of 2**32 + 4": put("label_lengths", ODD, 2**32 + 4),
}

USUAL = {
    "padding of -2**31": put("labels", (ODD, 2), -(2**31)),
    "padding of -2**32 + 1": put("labels", (ODD, 2), -(2**32) + 1),
    "padding of -2**63": put("labels", (ODD, 2), -(2**63)),
    "no labels": put("labels", ODD, -1),
    "no labels by label length": put("label_lengths", ODD, 0),
    "garbage after the label length": lambda batch: (
        put("label_lengths", ODD, 2)(batch),
        put("labels", (ODD, [2, 3]), [99, 0])(batch),
    ),
    "NaN after the length": put("acts", np.s_[8:, ODD], np.nan),
    "+inf after the length": put("acts", np.s_[8:, ODD], np.inf),
    "-inf after the length": put("acts", np.s_[8:, ODD], -np.inf),
    "an impossible class in one frame": put("acts", (2, ODD, 2), -np.inf),
    "the blank impossible in one frame": put("acts", (4, ODD, 0), -np.inf),
    "a last class that is not needed and impossible": lambda batch: (
        put("labels", (ODD, 0), 2)(batch),
        put("acts", np.s_[:, ODD, 3:], -np.inf)(batch),
    ),
    "a logit 50,000 below the others": put("acts", (2, ODD), -5e4),
    "no frames and no labels": lambda batch: (
        put("lengths", ODD, 0)(batch),
        put("labels", ODD, -1)(batch),
    ),
}


def make_batch(V, odd):
    batch = {
        "acts": np.random.default_rng(V).normal(size=(T, B, V)).astype(np.float32),
        "labels": np.array([[1, 2, 3, 1], [3, 1, -1, 2], [2, 2, -1, -1], [-1, -1, -1, -1]]),
        "lengths": np.array([9, 8, 6, 5]),
        "label_lengths": np.array([4, 4, 4, 4]),
    }
    if odd is not None:
        odd(batch)
    return batch.values()


def cost_and_gradient(arguments, cotangent, time_major, zero_infinity):
    acts, *rest = arguments
    acts = jnp.asarray(acts) if time_major else jnp.swapaxes(acts, 0, 1)
    ctc = partial(jax_ctc.ctc, time_major=time_major, zero_infinity=zero_infinity)
    cost, vjp = jax.vjp(lambda acts: ctc(acts, *rest), acts)
    gradient = vjp(jnp.asarray(cotangent))[0]
    return cost, gradient if time_major else jnp.swapaxes(gradient, 0, 1)


class Setting:
    """V classes, one layout of acts; under jit, or by ctc called on concrete arrays."""

    compiled = staticmethod(jax.jit(cost_and_gradient, static_argnums=(2, 3)))

    def __init__(self, V, time_major, under_jit):
        self.V, self.time_major = V, time_major
        self.function = self.compiled if under_jit else cost_and_gradient

    def _run(self, odd, cotangent, zero_infinity):
        arguments = tuple(make_batch(self.V, odd))
        cost, gradient = self.function(arguments, cotangent, self.time_major, zero_infinity)
        return np.asarray(cost), np.asarray(gradient)

    def run(self, odd, cotangent=ONES, zero_infinity=False):
        """Cost and gradient of the odd sequence; the others must have their usual bits."""
        others = np.arange(B) != ODD
        cost, gradient = self._run(odd, cotangent, zero_infinity)
        usual_cost, usual_gradient = self._run(None, cotangent, zero_infinity)
        assert_same_bits(cost[others], usual_cost[others])
        assert_same_bits(gradient[:, others], usual_gradient[:, others])
        return cost[ODD], gradient[:, ODD]

    def truth(self, odd):
        truth = oracle.solve(*make_batch(self.V, odd))
        return truth.cost[ODD], truth.gradient[:, ODD]


@pytest.fixture(params=[4, 9, 40], ids=["dense", "compact", "wide"])
def V(request):
    return request.param


@pytest.fixture
def jitted(V, time_major):
    return Setting(V, time_major, under_jit=True)


@pytest.fixture(params=[True, False], ids=["jit", "eager"])
def setting(request, V, time_major):
    return Setting(V, time_major, request.param)


@named(INFEASIBLE)
@sampled(32)
def test_without_an_alignment_the_cost_is_infinite_and_the_gradient_zero(setting, odd):
    assert setting.truth(odd)[0] == np.inf
    cost, gradient = setting.run(odd)
    assert cost == np.inf
    assert not gradient.any()


@named(INFEASIBLE)
def test_without_an_alignment_zero_infinity_makes_the_cost_zero(jitted, odd):
    cost, gradient = jitted.run(odd, zero_infinity=True)
    assert cost == 0
    assert not gradient.any()


@named(UNDEFINED)
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_an_undefined_frame_makes_its_sequence_nan(setting, odd, zero_infinity):
    cost, gradient = setting.run(odd, zero_infinity=zero_infinity)
    assert np.isnan(cost)
    assert np.isnan(gradient[:8]).all()
    assert not gradient[8:].any()


@named(BAD)
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_a_bad_argument_under_jit_makes_the_cost_nan_and_the_gradient_zero(
    jitted, odd, zero_infinity
):
    cost, gradient = jitted.run(odd, zero_infinity=zero_infinity)
    assert np.isnan(cost)
    assert not gradient.any()


@named(BAD)
def test_a_bad_argument_counts_before_an_undefined_frame(jitted, odd):
    cost, gradient = jitted.run(lambda batch: (odd(batch), UNDEFINED["NaN everywhere"](batch)))
    assert np.isnan(cost)
    assert not gradient.any()


@named(USUAL)
def test_an_odd_sequence_that_is_in_order_costs_what_it_should(setting, odd):
    cost, gradient = setting.run(odd)
    expected_cost, expected_gradient = setting.truth(odd)
    assert np.isfinite(expected_cost)
    assert_costs(cost[None], expected_cost[None], T)
    assert_gradient(gradient, expected_gradient)
    assert not gradient[expected_gradient == 0].any()


@named(INFEASIBLE | UNDEFINED | BAD | USUAL)
def test_a_zero_cotangent_makes_the_gradient_zero(jitted, odd):
    _, gradient = jitted.run(odd, cotangent=np.array([1, 0, -2, 3], np.float32))
    assert not gradient.any()

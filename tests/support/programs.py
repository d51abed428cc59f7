# SPDX-License-Identifier: Apache-2.0
"""Programs that several test files run, and functions they differentiate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc
from support import oracle
from support.results import assert_costs, assert_gradient


@partial(jax.jit, static_argnames=["blank", "time_major", "zero_infinity"])
def cost_and_gradient(acts, labels, lengths, label_lengths=None, **options):
    """Costs (B,) and the gradient of their sum. One program for each shape."""

    def ctc(acts):
        return jax_ctc.ctc(acts, labels, lengths, label_lengths, **options)

    cost, pull_back = jax.vjp(ctc, acts)
    return cost, pull_back(jnp.ones_like(cost))[0]


def assert_solved(acts, labels, lengths):
    """Costs and gradients within the promise. Returns the oracle's."""
    cost, gradient = cost_and_gradient(acts, labels, lengths)
    truth = oracle.solve(np.asarray(acts, float), labels, lengths)
    assert_costs(cost, truth.cost, len(acts))
    assert_gradient(gradient, truth.gradient)
    return truth


def scalar(cost):
    """A function of all costs whose cotangents differ, and are not symbolic ones."""
    return lambda acts: jnp.sum(jnp.sin(cost(acts)))


def direction_like(acts, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=acts.shape), acts.dtype)

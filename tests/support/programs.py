# SPDX-License-Identifier: Apache-2.0
"""Programs that several test files run, and functions they differentiate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc


@partial(jax.jit, static_argnames=["blank", "time_major", "zero_infinity"])
def cost_and_gradient(acts, labels, lengths, label_lengths=None, **options):
    """Costs (B,) and the gradient of their sum. One program for each shape."""

    def ctc(acts):
        return jax_ctc.ctc(acts, labels, lengths, label_lengths, **options)

    cost, pull_back = jax.vjp(ctc, acts)
    return cost, pull_back(jnp.ones_like(cost))[0]


def scalar(cost):
    """A function of all costs whose cotangents differ, and are not symbolic ones."""
    return lambda acts: jnp.sum(jnp.sin(cost(acts)))


def direction_like(acts, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=acts.shape), acts.dtype)

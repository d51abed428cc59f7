# SPDX-License-Identifier: Apache-2.0
"""Problems whose V is sharded over eight devices, and the same costs computed in other ways."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.cases import Case

needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
T, B, L = 12, 8, 5


def mesh_of(data, model, axis_type=AxisType.Auto):
    devices = np.array(jax.devices()[:8]).reshape(data, model)
    return Mesh(devices, ("data", "model"), axis_types=(axis_type, axis_type))


@cache
def problem(V, T=T, B=B, spread=3, offset=0):
    """acts, labels, lengths, a direction, and what the oracle says of cost and gradient."""
    rng = np.random.default_rng(V)
    acts = (spread * rng.normal(size=(T, B, V)) + offset).astype(np.float32)
    labels = rng.integers(1, V, (B, L), dtype=np.int32)
    labels[0, 3] = labels[0, 0]
    labels[1, 1:3] = -1
    lengths = (T - np.arange(B) % 3).astype(np.int32)
    direction = rng.normal(size=acts.shape).astype(np.float32)
    cost, gradient = oracle.cost_and_gradient(acts, labels, lengths)
    return (acts, labels, lengths), direction, cost, gradient


@cache
def product_of(V):
    """What the oracle says of the Hessian times the direction of problem(V)."""
    arguments, direction, *_ = problem(V)
    return oracle.hessian_vector(*arguments, direction)


def hessian_vector(f, acts, direction):
    return jax.jvp(jax.grad(lambda acts: f(acts).sum()), (acts,), (direction,))[1]


@cache
def solution_of(f):
    """A program for all: cost and gradient of f(acts, labels, lengths)."""

    def solve(acts, *rest):
        cost, pull_back = jax.vjp(lambda acts: f(acts, *rest), acts)
        return cost, pull_back(jnp.ones_like(cost))[0]

    return jax.jit(solve)


def by_shard_map(mesh, acts_spec, batch_spec, labels, lengths, **options):
    def f(acts):
        ctc = partial(jax_ctc.ctc, vocab_axis="model", **options)
        specs = (acts_spec, batch_spec, batch_spec)
        mapped = jax.shard_map(ctc, mesh=mesh, in_specs=specs, out_specs=batch_spec)
        return mapped(acts, labels, lengths)

    return f


def on_one_device(acts, labels, lengths):
    return jax_ctc.ctc(acts, labels, lengths)


def hypothesis_of(acts, labels, lengths):
    """As one of many label sequences on the same acts: few classes too, on one device."""
    return jax.vmap(jax_ctc.ctc, (None, 0, None))(acts, labels[None], lengths)[0]


def over_eight(acts, labels, lengths, **options):
    spec = P(None, None, "model")
    return by_shard_map(mesh_of(1, 8), spec, P(), labels, lengths, **options)(acts)


def over_eight_with_a_blank(*arguments):
    return over_eight(*arguments, blank=Case.SHARED_BLANK)

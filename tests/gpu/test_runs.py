# SPDX-License-Identifier: Apache-2.0
"""The same bits on every run on a GPU, in a CUDA graph or not; gradients in the place of acts."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same_bits, needs_gpu
from test_against_cpu import problem

import jax_ctc

pytestmark = needs_gpu

SHAPES = [(60, 8, 33, 20), (400, 16, 32, 100), (300, 6, 1000, 40), (900, 4, 64, 300)]


def both(acts, labels, lengths):
    return jax.value_and_grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())(acts)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_twenty_times_the_same_bits(shape):
    args = problem(*shape)
    run = jax.jit(both)
    first = jax.tree.map(np.asarray, run(*args))
    for _ in range(20):
        jax.tree.map(assert_same_bits, run(*args), first)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_batch_gives_the_bits_of_its_sequences_alone(shape):
    acts, labels, lengths = problem(*shape)
    run = jax.jit(jax.vmap(jax.value_and_grad(jax_ctc.ctc), in_axes=(1, 0, 0), out_axes=(0, 1)))
    cost, gradient = run(acts, labels, lengths)
    for b in range(2):
        one = np.s_[b : b + 1]
        alone = run(acts[:, one], labels[one], lengths[one])
        assert_same_bits(alone[0], cost[one])
        assert_same_bits(alone[1], gradient[:, one])


def test_many_steps_in_one_program():
    """Each step's gradient takes the place of its acts."""
    acts, labels, lengths = problem(100, 8, 50, 20)

    def step(x, _):
        cost, gradient = both(x, labels, lengths)
        return x - 0.5 * gradient, cost

    _, costs = jax.jit(lambda x: jax.lax.scan(step, x, length=30))(acts)
    costs = np.asarray(costs)
    x = acts
    for cost in costs[:3]:
        value, gradient = both(x, labels, lengths)
        np.testing.assert_allclose(value, cost, rtol=1e-6)
        x = x - 0.5 * gradient
    assert costs[-1] < costs[0] / 2


def test_donated_acts_give_their_place():
    acts, labels, lengths = problem(400, 16, 1000, 60)
    acts = jnp.asarray(acts)
    wanted = jax.tree.map(np.asarray, jax.jit(both)(acts, labels, lengths))
    donated = jax.jit(both, donate_argnums=0)
    size = acts.size * 4
    assert (
        donated.lower(acts, labels, lengths).compile().memory_analysis().temp_size_in_bytes < size
    )
    jax.tree.map(assert_same_bits, donated(acts, labels, lengths), wanted)


PROGRAM = """
import sys
sys.path.insert(0, {tests!r}); sys.path.insert(0, {here!r})
import jax, numpy as np
from test_against_cpu import problem
from test_runs import both
value, gradient = jax.jit(both)(*problem(200, 8, 50, 30))
print(np.asarray(value).tobytes().hex(), hash(np.asarray(gradient).tobytes()))
"""


@pytest.mark.parametrize("flag", ["", "+CUSTOM_CALL", "FUSION"], ids=["none", "all", "fusions"])
def test_with_and_without_cuda_graphs(flag):
    here = os.path.dirname(__file__)
    outputs = []
    for value in (None, flag):
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        if value is not None:
            environment["XLA_FLAGS"] = f"--xla_gpu_enable_command_buffer={value}"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(here=here, tests=os.path.dirname(here))],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]

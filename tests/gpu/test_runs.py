# SPDX-License-Identifier: Apache-2.0
"""The same bits on every run on a GPU: in any batch, in a CUDA graph or not, one after another."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.results import assert_same_bits

from .problems import DEVICE, problem

# In the last two a sequence alone has more warps than in its batch: one strip, or several together.
SHAPES = [
    (60, 8, 33, 20), (400, 16, 32, 100), (300, 6, 1000, 40), (900, 4, 64, 300), (200, 140, 30, 60),
    (250, 80, 64, 140),
]  # fmt: skip


@jax.jit
def both(acts, labels, lengths):
    cost, pull = jax.vjp(lambda x: jax_ctc.ctc(x, labels, lengths), acts)
    return cost, pull(jnp.ones_like(cost))[0]


def placed(*shape, **options):
    return jax.device_put(problem(*shape, **options), DEVICE)


def bits(results):
    return jax.tree.map(np.asarray, results)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twenty_times_the_same_bits(shape, dtype):
    args = placed(*shape, dtype=dtype)
    first = bits(both(*args))
    for _ in range(20):
        jax.tree.map(assert_same_bits, both(*args), first)


def test_many_calls_at_once_do_not_disturb_each_other():
    batches = [placed(*shape, seed=k) for k in range(5) for shape in SHAPES]
    alone = [bits(both(*args)) for args in batches]
    together = [[both(*args) for args in batches] for _ in range(3)]  # without waiting
    for results in together:
        for result, expected in zip(results, alone, strict=True):
            jax.tree.map(assert_same_bits, result, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_batch_gives_the_bits_of_its_sequences_alone(shape):
    acts, labels, lengths = placed(*shape)
    cost, gradient = both(acts, labels, lengths)
    for one in (np.s_[:1], np.s_[1:2], np.s_[1:4]):
        alone = both(acts[:, one], labels[one], lengths[one])
        assert_same_bits(alone[0], cost[one])
        assert_same_bits(alone[1], gradient[:, one])


def test_many_steps_in_one_program():
    """Each step's gradient may take the place of its acts."""
    acts, labels, lengths = placed(100, 8, 50, 20)

    def step(x, _):
        cost, gradient = both(x, labels, lengths)
        return x - 0.5 * gradient, cost

    _, costs = jax.jit(lambda x: jax.lax.scan(step, x, length=30))(acts)
    x = acts
    for cost in np.asarray(costs)[:3]:
        value, gradient = both(x, labels, lengths)
        np.testing.assert_allclose(value, cost, rtol=2e-6)
        x = x - 0.5 * gradient
    assert np.sum(costs[-1]) < np.sum(costs[0]) / 2


# In a process of its own: XLA reads its flags once. Six steps in a row make a graph worth making.
PROGRAM = """
import hashlib, jax, jax_ctc, numpy as np
rng = np.random.default_rng(0)
x = rng.normal(size=(200, 8, 50)).astype("f")
labels, lengths = rng.integers(1, 50, (8, 30)), rng.integers(100, 201, 8)
@jax.jit
def steps(x):
    values = []
    for _ in range(6):
        value, x = jax.value_and_grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())(x)
        values.append(value)
    return jax.numpy.stack(values), x
for _ in range(3):
    values, slope = steps(x)
print(hashlib.sha256(np.asarray(values).tobytes() + np.asarray(slope).tobytes()).hexdigest())
"""
SETTINGS = {
    "no graphs": "",
    "custom calls alone": "CUSTOM_CALL",
    "fusions alone": "FUSION",
    "both": "FUSION,CUSTOM_CALL",
}


def test_with_and_without_cuda_graphs():
    printed = {}
    for name, value in SETTINGS.items():
        flags = os.environ.get("XLA_FLAGS", "")
        if jax.default_backend() == "gpu":
            flags += f" --xla_gpu_enable_command_buffer={value} --xla_gpu_graph_min_graph_size=1"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=os.path.dirname(__file__),
            env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        printed[name] = done.stdout.split()[-1] if done.returncode == 0 else done.stderr[-600:]
    assert len(set(printed.values())) == 1, printed
    assert len(printed["both"]) == 64, printed

# SPDX-License-Identifier: Apache-2.0
"""The kernels on a GPU against those on the CPU, which other tests hold against an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.cases import EDGES, WIDTHS
from support.oracle import cost_and_gradient
from support.results import assert_costs, assert_gradient

from .problems import CPU, DEVICE, ROUNDING, compare, problem

# Around 32 pairs of a blank and a label, which a warp sweeps, and around all warps of a block.
LABELS = (0, 1, 2, 31, 32, 33, 63, 64, 65, 130, 255, 256, 300, 700, 1100)
CLASSES = (1, 2, 5, 32, 33, 1000, 5001)
DTYPES = ("float32", "float64", "bfloat16", "float16")


@pytest.mark.parametrize("L", LABELS)
@pytest.mark.parametrize("V", [5, 1000])
def test_any_number_of_labels(L, V):
    compare(*problem(2 * L + 20, 5, V, L))


@pytest.mark.parametrize("L", [31, 32, 130, 300])
def test_any_number_of_labels_in_double_precision(L):
    compare(*problem(2 * L + 20, 3, 40, L, "float64"))


@pytest.mark.parametrize("V", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time_major", [True, False], ids=["TBV", "BTV"])
def test_any_number_of_classes(V, dtype, time_major):
    acts, labels, lengths = problem(70, 7, V, 20, dtype)
    acts = acts if time_major else np.swapaxes(acts, 0, 1)
    compare(acts, labels, lengths, time_major=time_major)


@pytest.mark.parametrize("blank", [1, 11])
@pytest.mark.parametrize("zero_infinity", [True, False])
def test_options(blank, zero_infinity):
    acts, labels, lengths = problem(40, 6, 12, 10)
    labels[labels == blank] = 0
    lengths[1] = 3  # too few
    compare(acts, labels, lengths, blank=blank, zero_infinity=zero_infinity)


def test_label_lengths():
    acts, labels, lengths = problem(40, 6, 12, 10)
    labels[:, 5:] = 99  # no class, nor looked at
    compare(acts, labels, lengths, label_lengths=np.array([5, 0, 3, 1, 4, 2], np.int32))


@pytest.mark.parametrize("V", [9, 40], ids=["dense", "compact"])
def test_everything_that_can_be_wrong(V):
    acts, labels, lengths = problem(40, 12, V, 10)
    acts[3, 0, 2], acts[4, 1, 3], acts[5, 2] = np.nan, np.inf, -np.inf
    acts[:, 3, 5] = -np.inf  # a class
    acts[:, 9] = -np.inf
    acts[:, 9, 1] = 0  # no blank, one label
    labels[4, 2], labels[5, 3], labels[10, 1] = V, np.iinfo(np.int32).max, 0
    lengths[6], lengths[7], lengths[8], lengths[11] = -1, 41, 3, 20
    acts[20:, 11] = np.nan  # behind the length
    compare(acts, labels, lengths)


@pytest.mark.parametrize("scale", [1, 30, 300, 3000])
def test_long_and_wide(scale):
    compare(*problem(5000, 3, 64, 100, scale=scale))


@pytest.mark.parametrize("case", EDGES + WIDTHS, ids=lambda case: case.name)
def test_every_case_against_the_oracle(case):
    given = jax.device_put(case.arguments(), DEVICE)

    @jax.jit
    def solve(acts, *rest):
        cost, pull = jax.vjp(lambda x: jax_ctc.ctc(x, *rest, blank=case.blank), acts)
        return cost, pull(jnp.ones_like(cost))[0]

    cost, gradient = solve(*given)
    exact, slope = cost_and_gradient(*case.arguments(), blank=case.blank)
    assert_costs(cost, exact, case.T)
    assert_gradient(gradient, slope)


@pytest.mark.parametrize("axes", [(0, 0, 0), (1, None, None), (3, 1, None), (None, 0, 1)], ids=str)
def test_vmap(axes):
    acts, labels, lengths = problem(30, 4, 20, 8)
    given = [
        x if axis is None else np.stack([np.roll(x, k, 0) for k in range(3)], axis)
        for x, axis in zip((acts, labels, lengths), axes, strict=True)
    ]
    one = jax.value_and_grad(lambda *args: jax_ctc.ctc(*args).sum())
    on_device, on_cpu = (
        jax.jit(jax.vmap(one, axes))(*jax.device_put(given, device)) for device in (DEVICE, CPU)
    )
    np.testing.assert_allclose(on_device[0], on_cpu[0], rtol=2e-6)
    np.testing.assert_allclose(on_device[1], on_cpu[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("T", "L"), [(70, 20), (90, 31), (600, 270)])
@pytest.mark.parametrize("V", [10, 40, 1000, 5001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_the_hessian(T, V, L, dtype):
    acts, labels, lengths = problem(T, 4, V, L, dtype)
    lengths[1] = 3  # too few
    direction = np.random.default_rng(9).normal(size=acts.shape).astype(acts.dtype)

    @jax.jit
    def product(x, u, labels, lengths):
        return jax.jvp(jax.grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum()), (x,), (u,))[1]

    on_device = np.asarray(product(*jax.device_put((acts, direction, labels, lengths), DEVICE)))
    wide = acts.astype(np.float64), direction.astype(np.float64), labels, lengths
    exact = np.asarray(product(*jax.device_put(wide, CPU)))
    assert on_device.dtype == acts.dtype
    scale = max(np.abs(exact).max(), np.abs(wide[1]).max())
    tolerance = (1e-10 if dtype == "float64" else 5e-6) * scale
    np.testing.assert_allclose(
        on_device.astype(np.float64), exact, rtol=ROUNDING[dtype], atol=tolerance
    )
    assert not on_device[:, 1].any()


def test_nothing_to_do():
    for T, B, V, L in ((0, 3, 5, 2), (5, 0, 5, 2), (5, 3, 5, 0), (0, 2, 3, 0)):
        lengths = jax.device_put(np.full(B, T, np.int32), DEVICE)
        acts = jax.device_put(np.zeros((T, B, V), np.float32), DEVICE)
        labels = np.ones((B, L), np.int32)
        cost, pull = jax.vjp(lambda x, y=labels, n=lengths: jax_ctc.ctc(x, y, n), acts)
        expected = T * np.log(V) if L == 0 else np.inf
        if T == 0 or L == 0:
            np.testing.assert_allclose(cost, np.full(B, expected), rtol=1e-6)
        assert pull(cost)[0].shape == (T, B, V)

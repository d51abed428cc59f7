# SPDX-License-Identifier: Apache-2.0
"""Rounding errors of frames that are alike do not add up in the CUDA kernels, on the emulator."""

import numpy as np
import pytest

from support import emulated, oracle
from support.alike import ALIKE, alike
from support.runs import sampled, sweep

pytestmark = emulated.NEEDED

each_problem = pytest.mark.parametrize(
    ("T", "V", "differences"), sweep(ALIKE[:4], ALIKE[1:4]), ids=str
)


@each_problem
@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize("last", [-3, 100], ids=["near", "far"])
@sampled(2)
def test_gradients(kernels, T, V, differences, time_axis, last):
    acts, labels, _ = alike(T, V, differences, last)
    two = np.repeat(acts, 2, axis=1), np.repeat(labels, 2, axis=0), np.array([T, T - 1], np.int32)
    answer = kernels.solve(np.moveaxis(two[0], 0, time_axis), *two[1:], time_axis=time_axis)
    found = np.moveaxis(answer.gradient, time_axis, 0)
    assert abs(found - oracle.solve(*two).gradient).max() < 8e-7


@pytest.mark.parametrize(("T", "V", "differences"), [ALIKE[1], ALIKE[3]], ids=str)
@sampled(1)
def test_products(kernels, T, V, differences):
    """Along the label's logits, which is where errors would add up."""
    problem = alike(T, V, differences)
    directions = np.zeros_like(problem[0])
    directions[..., 1] = 1e-2  # the cost is not quadratic over more
    expected = oracle.hessian_vector(
        problem[0].astype(float), *problem[1:], directions.astype(float)
    )
    found = kernels.hvp(*problem, directions)
    assert abs(found - expected).max() < 2e-6 * abs(expected).max()

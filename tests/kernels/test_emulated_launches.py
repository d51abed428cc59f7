# SPDX-License-Identifier: Apache-2.0
"""How the CUDA kernels are launched, by the emulator."""

import numpy as np
import pytest

from support import emulated
from support.emulated_problems import check
from support.results import assert_same_bits

pytestmark = emulated.NEEDED


@pytest.mark.parametrize("shared", [99 << 10, 227 << 10])  # two devices in a process
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_launch_takes_shared_memory_from_another_thread_s(kernels, shared, dtype):
    """The emulator ends the program where the limit of a kernel falls."""
    acts, lengths = np.zeros((2, 1, 3), dtype), np.array([2], np.int32)
    for L in (170, 70, 150):
        labels = np.full((1, L), -1, np.int32)
        labels[0, 7] = 1
        answer = kernels.solve(acts, labels, lengths, shared=shared)
        np.testing.assert_allclose(answer.cost, -np.log(3 / 9), rtol=1e-6)
        kernels.hvp(acts, labels, lengths, acts, shared=shared)


def rows_of_doubles(L, V):
    """Few frames, and few labels in a row of many."""
    acts = np.random.default_rng(L).normal(size=(3, 4, V))
    labels = np.full((4, L), -1, np.int32)
    labels[:, L // 2] = 5
    labels[1:, L - 1] = 7
    return acts, labels, np.array([3, 3, 2, 0], np.int32)


@pytest.mark.parametrize("L", [1500, 1600, 2046])
def test_a_gradient_in_the_place_of_doubles_fits_any_device(kernels, L):
    """What eight rows put aside is more than the 99 KiB of a block from L = 1585 on."""
    problem = rows_of_doubles(L, 2048)
    answer = kernels.solve(*problem, in_place=True, shared=99 << 10)
    check(answer, *problem)
    assert_same_bits(answer.gradient, kernels.solve(*problem).gradient)


def test_the_error_of_a_launch_is_reported_once(kernels):
    problem = rows_of_doubles(1000, 1100)
    device = (227 << 10) - 64  # where no kernel has been launched
    kernels.library.set_refusals(1)
    try:
        with pytest.raises(AssertionError):
            kernels.solve(*problem, in_place=True, shared=device)
    finally:
        kernels.library.set_refusals(0)
    check(kernels.solve(*problem, in_place=True, shared=device), *problem)

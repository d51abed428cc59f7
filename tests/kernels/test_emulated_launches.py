# SPDX-License-Identifier: Apache-2.0
"""How the CUDA kernels are launched, by the emulator."""

import numpy as np
import pytest

from support import emulated

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

# SPDX-License-Identifier: Apache-2.0
import pytest

from support import emulated


@pytest.fixture(scope="session")
def kernels():
    """The CUDA kernels on the emulator."""
    return emulated.kernels()

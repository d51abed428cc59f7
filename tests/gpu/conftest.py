# SPDX-License-Identifier: Apache-2.0
"""Skips all of these tests where there is no GPU to run them on, and says which part is missing.

JAX_CTC_GPU_TESTS=any in the environment runs them on whatever there is: for those who edit them.
"""

import os
from pathlib import Path

import jax
import pytest

import jax_ctc


def missing():
    if os.environ.get("JAX_CTC_GPU_TESTS"):
        return None
    if jax.default_backend() != "gpu":
        return f"JAX runs on {jax.default_backend()} here and not on a GPU"
    info = jax_ctc.build_info()
    if not info["cuda"]:
        return f"GPUs run pure JAX: {' '.join(info['notes'])}"
    return None


def pytest_collection_modifyitems(items):
    if reason := missing():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))

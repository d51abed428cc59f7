# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole suite, and the one place that says how close is close enough."""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

import jax_ctc

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")

ALL = os.environ.get("JAX_CTC_TEST_ALL", "") not in ("", "0")
only_all = pytest.mark.skipif(not ALL, reason="JAX_CTC_TEST_ALL=1 runs it: it takes long")


def sweep(everything, few):
    """Parameters of a test: all of them in `make test-all`, a few that differ in what matters in
    `make test`. `few` are some of the parameters, or names of some where `everything` is a dict."""
    if isinstance(everything, dict):
        return everything if ALL else {name: everything[name] for name in few}
    assert all(x in everything for x in few)
    return everything if ALL else few


DEVICE = "cpu" if jax.default_backend() == "cpu" else "cuda"
COMPILED = bool(jax_ctc.build_info()[DEVICE])
needs_gpu = pytest.mark.skipif(
    DEVICE == "cpu" or not COMPILED, reason="no NVIDIA GPU, or built without CUDA kernels"
)
TOLERANCE = {np.dtype("float32"): 1e-6 if COMPILED else 1e-4, np.dtype("float64"): 1e-11}


def assert_costs(costs, expected, T):
    """Within the promise: relative, or absolute in sqrt(T) for a cost near 0; inf, NaN exactly."""
    costs, expected = np.asarray(costs), np.asarray(expected).astype(float)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(costs[~finite], expected[~finite])
    assert (costs[finite] >= 0).all()
    scale = np.maximum(expected[finite], np.sqrt(max(T, 1)))
    errors = np.abs(costs[finite] - expected[finite]) / scale
    assert errors.max(initial=0) <= TOLERANCE[costs.dtype]


def assert_gradient(gradient, expected, scale=1):
    """Within the promise, which is absolute, for cotangents of at most `scale`; NaN exactly."""
    tolerance = scale * TOLERANCE[np.dtype(gradient.dtype)]
    np.testing.assert_allclose(gradient, np.asarray(expected, float), rtol=0, atol=tolerance)


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


def mesh_in_use(mesh):
    """A context in which `mesh` is the mesh (jax.set_mesh came with JAX 0.7.1)."""
    return (jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh)(mesh)


def run(*command, **environment):
    """A program with more in its environment; what it says, and how it ends."""
    return subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


FOLDER = "JAX_CTC_TEST_FOLDER"  # of files that the processes of a run share


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # xdist's workers are started later
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        os.environ[FOLDER] = folder.name
        config.add_cleanup(folder.cleanup)


def made_once(name, make):
    """A file that `make(path)` writes: once in a run, by the process that asks first."""
    path = Path(os.environ[FOLDER], name)
    with open(path.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f"{name}.unfinished")
            make(unfinished)
            unfinished.rename(path)
    return path


@pytest.fixture
def without_x64():
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(params=[True, False], ids=["time major", "batch major"])
def time_major(request):
    return request.param

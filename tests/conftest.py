# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole suite."""

import os
import tempfile

import hypothesis
import jax
import pytest

pytest.register_assert_rewrite("support.results")

import jax_ctc._primitives.ctc as primitives  # noqa: E402
from support.runs import FOLDER, without_most, without_optimisation  # noqa: E402

# Most of a run is XLA's compilation. test_backends.py runs on optimised programs what those may
# change.
os.environ["XLA_FLAGS"] = without_optimisation()

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Products of float32 are TF32 by default on an NVIDIA GPU, which loses what the tests look for.
jax.config.update("jax_default_matmul_precision", "highest")

primitives.most_bytes_of_copies = 0  # hypotheses of small problems too run on few classes

hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # xdist's workers are started later
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        os.environ[FOLDER] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(trylast=True)  # of what -k and -m leave
def pytest_collection_modifyitems(config, items):
    items[:], left_out = without_most(items)
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def without_x64():
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(params=[True, False], ids=["time major", "batch major"])
def time_major(request):
    return request.param

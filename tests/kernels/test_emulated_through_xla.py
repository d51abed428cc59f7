# SPDX-License-Identifier: Apache-2.0
"""Tests of the suite on the emulated kernels, through all that a GPU program has but the device.

That is the CUDA lowering, XLA's handlers with their scratch memory and aliases, and the kernels.
"""

import os
import re
import subprocess
import sys

import pytest

from support import emulated
from support.runs import only_all

pytestmark = emulated.NEEDED

# Files, and which of their tests.
THROUGH_XLA = {
    "edges": ("loss/test_edges.py", "not slow"),
    "transforms": ("derivatives/test_transforms.py", "not slow"),
    "sharding": ("sharding/test_sharding.py", "not slow"),
    "second order": ("derivatives/test_second_order.py", "slope or zero or reverse"),
    "alignment": ("loss/test_align.py sharding/test_align_sharding.py", "not slow"),
    "log-scores": ("loss/test_log_scores.py", "not numbers_of_no_use and not gathers_nothing"),
}


@only_all
@pytest.mark.slow
@pytest.mark.parametrize("part", THROUGH_XLA)
def test_the_suite_passes_through_everything_but_the_device(part):
    """The CUDA lowering, XLA's handlers with their scratch and aliases, the kernels."""
    files, some = THROUGH_XLA[part]
    tests = emulated.ROOT / "tests"
    paths = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "-p", "support.emulated_backend", *files.split(), "-m", "not slow", "-k", some],
        env={**os.environ, "PYTHONPATH": paths, "EMULATED_HANDLERS": str(emulated.handlers()),
             "JAX_CTC_TEST_ALL": ""},
        cwd=tests, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) kernels were launched", done.stdout).group(1)) > 50

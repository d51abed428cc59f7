# SPDX-License-Identifier: Apache-2.0
"""The examples that need no data run."""

import sys

import pytest

from support.runs import ROOT, only_all, run

pytestmark = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="not in a source tree")


@only_all
def test_intermediate_ctc_learns_and_says_what_it_needs():
    for needed in ("flax", "optax", "rapidfuzz", "tqdm"):
        pytest.importorskip(needed, reason="examples/requirements.txt is not installed")
    few = ["--steps", "120", "--batch", "16", "--words", "60"]
    done = run(sys.executable, ROOT / "examples" / "intermediate.py", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("label error rate")
    assert "memory of a step" in done.stdout

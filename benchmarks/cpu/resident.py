# SPDX-License-Identifier: Apache-2.0
"""How much the resident size of this process grows (Linux)."""

from collections.abc import Callable
from pathlib import Path

import jax


def growth(call: Callable[[], object]) -> float:
    """Returns by how many MB it grows at most during a call, until the results are there."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = _resident("VmRSS")
    jax.block_until_ready(call())
    return _resident("VmHWM") - before


def _resident(kind: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) / 1e3

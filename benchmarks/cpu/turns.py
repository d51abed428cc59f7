# SPDX-License-Identifier: Apache-2.0
"""Programs that take turns, because others may use the machine too."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

SECONDS = 2.0  # per row of a table


def taking_turns(programs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each program."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(program())
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}

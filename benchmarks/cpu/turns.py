# SPDX-License-Identifier: Apache-2.0
"""Programs that take turns, because others may use the machine too."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax


def taking_turns(
    programs: dict[str, Callable[[], Any]],
    seconds: float = 2.0,
    of_rounds: Callable[[Iterable[float]], float] = statistics.median,
) -> dict[str, float]:
    """Milliseconds of each program: the median of its rounds, or what `of_rounds` makes of them."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(program())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: of_rounds(values) for name, values in times.items()}

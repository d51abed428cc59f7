# SPDX-License-Identifier: Apache-2.0
"""What the machine would allow: one pass over memory, over the classes, over the lattice.

Each is a slope, from one size to twice the size, measured in the run it is compared in: what a
further element or pair of states costs with everything that does not grow with it taken away. The
limit of a shape is their sum, so a ratio of 1 means that rows, sequences, threads and JAX are free.
"""

import statistics
from typing import Any

from .problems import Shape, problem
from .worker import Worker

ROWS: tuple[Shape, Shape] = (400, 16, 512, 1), (400, 16, 1024, 1)
LATTICE: tuple[Shape, Shape] = (1200, 8, 32, 240), (1200, 8, 32, 480)
# From 100 MB on nothing of acts stays in a cache.
MEMORY: tuple[Shape, Shape] = (250, 8, 12_500, 1), (250, 8, 25_000, 1)


def work(shape: Shape) -> dict[str, float]:
    _, _, lengths, counts = problem(shape)
    classes = float(lengths.sum()) * shape[2]
    pairs = float((lengths.astype(float) * (counts + 1)).sum())
    return {"classes": classes, "pairs": pairs}


def measure(worker: Worker, rounds: int, seconds: float) -> dict[str, Any]:
    """Nanoseconds of wall time for a class or a pair of a frame, loss and loss with gradient."""
    found: dict[str, Any] = {}
    for training in (False, True):
        for name, unit, shapes in (
            ("rows", "classes", ROWS),
            ("lattice", "pairs", LATTICE),
            ("memory", "classes", MEMORY),
        ):
            best = []
            for shape in shapes:
                worker.ask(do="prepare", shape=shape, training=training)
                times = [worker.ask(do="time", seconds=seconds)["ms"] for _ in range(rounds)]
                best.append(statistics.median(min(block) for block in times))
            more = work(shapes[1])[unit] - work(shapes[0])[unit]
            found[f"{name} {'training' if training else 'loss'}"] = (best[1] - best[0]) * 1e6 / more
    return found


def limit(shape: Shape, training: bool, slopes: dict[str, Any]) -> float:
    """Milliseconds."""
    kind = "training" if training else "loss"
    large = shape[0] * shape[1] * shape[2] * 4 > 100e6 / 3
    row = slopes[f"{'memory' if large else 'rows'} {kind}"]
    amount = work(shape)
    return 1e-6 * (amount["classes"] * row + amount["pairs"] * slopes[f"lattice {kind}"])

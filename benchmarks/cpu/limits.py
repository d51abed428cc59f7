# SPDX-License-Identifier: Apache-2.0
"""The limits of a machine: the time of one more class, and of one more pair of states.

Each is a slope between one size and twice that size, measured in the same run as the times it is
compared with. So it contains nothing that does not grow with the size. The limit of a shape is the
sum over its classes and pairs. A ratio of 1 to this limit means that rows, sequences, threads and
JAX cost nothing.
"""

import statistics

from .problems import Shape, problem
from .worker import Worker

ROWS: tuple[Shape, Shape] = (400, 16, 512, 1), (400, 16, 1024, 1)
LATTICE: tuple[Shape, Shape] = (1200, 8, 32, 240), (1200, 8, 32, 480)
# From 100 MB on no part of acts stays in a cache.
MEMORY: tuple[Shape, Shape] = (250, 8, 12_500, 1), (250, 8, 25_000, 1)
# A shape whose acts have more bytes than this has the slope of MEMORY, and any other that of ROWS.
# ROWS has at most 26 MB. The shapes that are timed have at most 26 MB too, or at least 80 MB.
LARGE = 33e6


def work(shape: Shape) -> dict[str, float]:
    _, _, lengths, counts = problem(shape)
    classes = float(lengths.sum()) * shape[2]
    pairs = float((lengths.astype(float) * (counts + 1)).sum())
    return {"classes": classes, "pairs": pairs}


def measure(worker: Worker, rounds: int, seconds: float) -> dict[str, float]:
    """Nanoseconds of wall time per class, and per pair of states, of a frame. Empty where the
    worker died or answered with an error."""
    found: dict[str, float] = {}
    for training in (False, True):
        for name, unit, shapes in (
            ("rows", "classes", ROWS),
            ("lattice", "pairs", LATTICE),
            ("memory", "classes", MEMORY),
        ):
            best = []
            for shape in shapes:
                worker.ask(do="prepare", shape=shape, training=training)
                answers = [worker.ask(do="time", seconds=seconds) for _ in range(rounds)]
                if any("ms" not in answer for answer in answers):
                    return {}
                best.append(statistics.median(min(answer["ms"]) for answer in answers))
            more = work(shapes[1])[unit] - work(shapes[0])[unit]
            found[f"{name} {'training' if training else 'loss'}"] = (best[1] - best[0]) * 1e6 / more
    return found


def limit(shape: Shape, training: bool, slopes: dict[str, float]) -> float:
    """The limit of a shape in milliseconds."""
    kind = "training" if training else "loss"
    large = shape[0] * shape[1] * shape[2] * 4 > LARGE
    row = slopes[f"{'memory' if large else 'rows'} {kind}"]
    amount = work(shape)
    return 1e-6 * (amount["classes"] * row + amount["pairs"] * slopes[f"lattice {kind}"])

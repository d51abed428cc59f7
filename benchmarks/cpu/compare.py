# SPDX-License-Identifier: Apache-2.0
"""jax_ctc beside its peers on this machine: time, memory, compile time, and error of the gradient.

    make bench                                    # all of it, some 15 minutes
    python -m benchmarks --quick                  # two shapes, to see that it runs
    python -m benchmarks --shapes letters small --peers jax_ctc optax

Peers take turns in one run on the same inputs, each in a process of its own. A peer that is not
installed is skipped, and the output names it. The program writes a table, all numbers and a plot to
benchmarks/results/.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .. import ROOT, pictures, threads
from . import limits, report
from .peers import NEEDS, PEERS
from .problems import SHAPES, Shape
from .worker import Worker

# The sizes of one axis, and the shape for a size. TIMES are ms of loss + gradient, ERRORS are the
# largest errors of the gradient.
TIMES = {
    "T": ((100, 300, 1000, 3000), lambda n: (n, 8, 64, 40)),
    "B": ((4, 16, 64, 256), lambda n: (200, n, 64, 40)),
    "V": ((30, 300, 3000, 30_000), lambda n: (200, 8, n, 40)),
    "L": ((25, 50, 100, 200, 400), lambda n: (1000, 8, 64, n)),
}
ERRORS = {
    "T": ((100, 300, 1000, 3000, 10_000), lambda n: (n, 2, 40, 50)),
    "V": ((10, 100, 1000, 10_000, 100_000), lambda n: (200, 2, n, 20)),
}
Workers = dict[str, Worker]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of every peer (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="a turn (default: 0.3)")
    parser.add_argument("--no-sweeps", action="store_true", help="shapes only: no plot")
    parser.add_argument("--quick", action="store_true", help="two shapes, one round, no sweeps")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if options.rounds < 1 or not options.seconds > 0:
        parser.error("--rounds must be 1 or more, and --seconds more than 0")
    whole = ("shapes", "peers", "rounds", "seconds", "no_sweeps")
    everything = all(getattr(options, name) == parser.get_default(name) for name in whole)
    if options.quick:
        options.shapes, options.rounds, options.seconds = ["small", "one sequence"], 1, 0.1
        options.no_sweeps = True
    console = Console(width=None if sys.stdout.isatty() else 150)
    names = [p for p in options.peers if importlib.util.find_spec(NEEDS.get(p, "jax"))]
    everything = everything and set(names) >= set(PEERS) - {"warp-ctc"}  # that is built by hand
    for missing in set(options.peers) - set(names):
        console.print(f"{missing}: not installed ({NEEDS[missing]}), left out")
    workers = {name: Worker(name, threads()) for name in names}
    run: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(names),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "results": [],
    }
    try:
        with Progress(console=console) as progress:
            measure(run, workers, options, progress)
    finally:
        for worker in workers.values():
            worker.stop()
    # A run of a part does not overwrite the results of a whole one.
    save(run, options.output, "quick-" if options.quick else "" if everything else "partial-")
    show(run, console)


def machine(peers: list[str]) -> dict[str, Any]:
    packages = ["jax_ctc", "jax", "jaxlib", "numpy"]
    packages += [NEEDS[p] for p in peers if p in NEEDS]
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.*)", cpuinfo.read_text())):
        cpu = found[1]
    import jax_ctc

    return {
        "cpu": f"{cpu} ({jax_ctc.build_info()['cpu']})",
        "threads": threads(),
        "versions": {p: importlib.metadata.version(p) for p in packages},
    }


def measure(
    run: dict[str, Any], workers: Workers, options: argparse.Namespace, progress: Progress
) -> None:
    jobs = [(name, training) for name in options.shapes for training in (False, True)]
    sweeps = [] if options.no_sweeps else [*TIMES, *(f"error {k}" for k in ERRORS)]
    task = progress.add_task("", total=len(jobs) + len(sweeps) + 1)
    if "jax_ctc" in workers and not options.quick:
        progress.update(task, description="limits")
        if slopes := limits.measure(workers["jax_ctc"], options.rounds, options.seconds):
            run["limits"] = slopes
    progress.advance(task)
    for name, training in jobs:
        what = "loss + gradient" if training else "loss"
        progress.update(task, description=f"{name}, {what}")
        shape = SHAPES[name]
        peers = compare(workers, shape, training, options.rounds, options.seconds)
        result = {"name": name, "shape": shape, "training": training, "peers": peers}
        if "limits" in run:
            result["limit"] = limits.limit(shape, training, run["limits"])
        run["results"].append(result)
        progress.advance(task)
    for axis in TIMES if sweeps else ():
        progress.update(task, description=f"time against {axis}")
        sizes, shape_of = TIMES[axis]
        found = [compare(workers, shape_of(n), True, 2, options.seconds / 2) for n in sizes]
        run.setdefault("sweeps", {})[f"loss + gradient against {axis}"] = {
            "axis": axis, "unit": "ms", "x": sizes, "base": shape_of(0),
            "peers": {p: [at[p].get("low") for at in found] for p in workers},
        }  # fmt: skip
        progress.advance(task)
    for axis in ERRORS if sweeps else ():
        progress.update(task, description=f"error against {axis}")
        sizes, shape_of = ERRORS[axis]
        run["sweeps"][f"error of the gradient against {axis}"] = {
            "axis": axis, "unit": "largest error", "x": sizes, "base": shape_of(0),
            "peers": {
                p: [w.ask(do="error", shape=shape_of(n), spread=3).get("error_of") for n in sizes]
                for p, w in workers.items()
            },
        }  # fmt: skip
        progress.advance(task)


def compare(
    workers: Workers, shape: Shape, training: bool, rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Times of each peer for a shape. A peer whose cost differs from the median is not timed."""
    found: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        found[name] = worker.ask(do="prepare", shape=shape, training=training)
    costs = [f["cost"] for f in found.values() if "cost" in f]
    for f in found.values():
        if "cost" in f and abs(f["cost"] / statistics.median(costs) - 1) > 1e-3:
            f["error"] = f"costs {f['cost']}, the others {statistics.median(costs)}"
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            if "error" not in found[name]:
                answer = worker.ask(do="time", seconds=seconds)
                if "ms" in answer:
                    times[name].append(statistics.median(answer["ms"]))
                else:
                    found[name] |= answer
    for name, blocks in times.items():
        if blocks and "error" not in found[name]:
            middle = statistics.median(blocks)
            found[name] |= {"ms": middle, "low": min(blocks), "high": max(blocks)}
    return found


def show(run: dict[str, Any], console: Console) -> None:
    table = Table(*report.HEADER)
    for row in report.rows(run["results"]):
        table.add_row(*(cell.replace("; ", "\n") for cell in row))
    console.print(table)


def file_name(machine: dict[str, Any]) -> str:
    return re.sub(r"\W+", "-", machine["cpu"]).strip("-").lower()


def save(run: dict[str, Any], output: Path, prefix: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    stem = prefix + file_name(run["machine"])
    (output / f"{stem}.json").write_text(json.dumps(run, indent=1) + "\n")
    (output / f"{stem}.md").write_text(report.markdown(run))
    if "sweeps" in run:
        pictures.sweeps(run, output / stem)
    print(f"{output / stem}.*")

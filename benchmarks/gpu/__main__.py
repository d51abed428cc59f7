# SPDX-License-Identifier: Apache-2.0
"""Measures and tests the CUDA kernels on a GPU in one unattended run.

    python -m benchmarks.gpu                       # all sections, under 9 minutes
    python -m benchmarks.gpu --only speed machine  # some of them
    python -m benchmarks.gpu --tiny                # small shapes on any device: a quick check

Each section is a process of its own with a time limit, and writes each result at once. So a
section that does not finish loses only its own later results. The program prints a table at the
end, and writes it and all numbers to benchmarks/results/. jax_ctc must be installed with its CUDA
kernels. PyTorch, optax, pytest, hypothesis and compute-sanitizer are optional; the table says which
are missing.
"""

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .. import ROOT, import_what_is_installed
from .report import report

SECTIONS = {  # module and seconds of each; the last one also gets the seconds that are left
    "machine": ("machine", 40),
    "tests": ("tests", 90),
    "speed": ("speed", 190),
    "kernels": ("kernels", 75),
    "accuracy": ("accuracy", 30),
    "sanitizer": ("sanitizer", 45),
    "suite": ("tests", 50),
}
HIDDEN = {"sanitized": "sanitizer"}  # a section starts this in a further process
ALL_SECONDS, LEAST_SECONDS = 520, 10
STOPPED = "stopped from outside"


def run_section(name: str, seconds: float, tiny: bool, folder: Path) -> list[dict[str, Any]]:
    """The rows that a section wrote. The last row says how the section ended."""
    results, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--section", name]
    command += ["--json", str(results), "--seconds-per-section", str(seconds)]
    command += ["--tiny"] * tiny
    start = time.monotonic()
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
            ended = "done" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        except KeyboardInterrupt:
            ended = STOPPED
        finally:  # with all it has started
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    found = rows_in(results, name)
    last = {"section": name, "ended": ended, "seconds": round(time.monotonic() - start, 1)}
    if ended != "done":
        last["log"] = log.read_text(errors="replace")[-6000:]
    print(f"{name}: {ended}, {last['seconds']} s, {len(found)} results", flush=True)
    return [*found, last]


def environment() -> dict[str, str]:
    """JAX allocates memory as needed, so that several processes fit, and has the CPU too."""
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONFAULTHANDLER": "1", **os.environ}
    if env.get("JAX_PLATFORMS") in ("cuda", "gpu"):
        env["JAX_PLATFORMS"] = "cuda,cpu"
    return env


def rows_in(file: Path, section: str) -> list[dict[str, Any]]:
    """The rows in a file whose last line may be incomplete."""
    rows = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            rows.append({"section": section, **json.loads(line)})
        except ValueError:
            pass
    return rows


def in_this_process(name: str, file: Path, seconds: float, tiny: bool) -> None:
    deadline = time.monotonic() + seconds - 4
    module = importlib.import_module(f".{HIDDEN.get(name) or SECTIONS[name][0]}", __package__)
    with open(file, "a") as results:

        def write(**row: object) -> None:
            results.write(json.dumps(row, default=str) + "\n")
            results.flush()
            print(row, flush=True)

        getattr(module, name)(write, tiny, deadline)


FIND_DEVICE = """
import jax, jax_ctc
assert {tiny} or jax.default_backend() == "gpu", "JAX has no GPU here"
assert {tiny} or jax_ctc.build_info()["cuda"], "jax_ctc has no CUDA kernels here: " + " ".join(
    jax_ctc.build_info()["notes"])
print(jax.devices()[0].device_kind)
"""


def device_kind(tiny: bool) -> str:
    """Of JAX's default device. Ends the program where that is not a GPU, or runs no kernels."""
    found = subprocess.run(
        [sys.executable, "-c", FIND_DEVICE.format(tiny=tiny)],
        env=environment(), cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        sys.exit(f"{found.stderr[-2000:]}\n--tiny runs on any device.")
    return found.stdout.strip().splitlines()[-1]


def save(rows: list[dict[str, Any]], output: Path, stem: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{stem}.json").write_text(json.dumps(rows, indent=1) + "\n")
    (output / f"{stem}.md").write_text(report(rows, list(SECTIONS)) + "\n")


def file_name(device: str, tiny: bool, names: list[str]) -> str:
    """After the device and, where not all sections run, after those that do.

    So no run of some sections overwrites what another one found.
    """
    stem = re.sub(r"\W+", "-", device).strip("-").lower()
    return "-".join([*["tiny"] * tiny, stem, *([] if names == list(SECTIONS) else names)])


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds-per-section", type=float, help="instead of the limit of each")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any device")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--section", choices=[*SECTIONS, *HIDDEN], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = options.seconds_per_section
    if options.section:
        seconds = 60 if given is None else given
        return in_this_process(options.section, options.json, seconds, options.tiny)
    if given is not None and not given >= LEAST_SECONDS:
        parser.error(f"--seconds-per-section must be {LEAST_SECONDS} or more")

    signal.signal(signal.SIGTERM, stop)
    rows: list[dict[str, Any]] = []
    names = [name for name in SECTIONS if name in options.only]
    end = time.monotonic() + ALL_SECONDS
    stem = file_name(device_kind(options.tiny), options.tiny, names)
    unfinished = f"{stem}-unfinished"  # what is complete is not overwritten by what is not yet
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            for name in names:
                left = end - time.monotonic()
                seconds = left if name == "suite" else min(left, SECTIONS[name][1])
                seconds = seconds if given is None else given
                if seconds < LEAST_SECONDS:
                    rows.append({"section": name, "ended": "not begun: no time left", "seconds": 0})
                    continue
                rows += run_section(name, seconds, options.tiny, Path(folder))
                save(rows, options.output, unfinished)  # for a run that is killed
                if rows[-1]["ended"] == STOPPED:
                    break
            else:
                save(rows, options.output, stem)
                for kind in ("json", "md"):
                    (options.output / f"{unfinished}.{kind}").unlink(missing_ok=True)
    except KeyboardInterrupt:
        rows.append({"section": name, "ended": STOPPED, "seconds": 0})
    print(report(rows, list(SECTIONS), log_characters=1200))
    if rows and rows[-1]["ended"] == STOPPED:
        sys.exit(f"stopped from outside; the results until then: {options.output / unfinished}.*")


if __name__ == "__main__":
    import_what_is_installed()
    main()

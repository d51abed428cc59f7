# SPDX-License-Identifier: Apache-2.0
"""Runs the four tools of compute-sanitizer on a few tiny batches, all at the same time."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import ROOT

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SHAPES = (  # T, B, V, L; of the last one two strips sweep together
    (9, 2, 5, 3), (40, 2, 60, 33), (20, 2, 700, 4), (150, 1, 9, 70), (170, 1, 9, 140),
)  # fmt: skip


def sanitized(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    """The program that the tools watch. Its arrays come from the host, so few other kernels run."""
    import jax
    import numpy as np

    import jax_ctc

    for T, B, V, L in SHAPES:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(T, B, V)).astype(np.float32)
        labels = rng.integers(1, V, (B, L)).astype(np.int32)
        lengths = np.full(B, T, np.int32)

        def loss(
            x: jax.Array, labels: np.ndarray = labels, lengths: np.ndarray = lengths
        ) -> jax.Array:
            return jax_ctc.ctc(x, labels, lengths).sum()

        cost = jax.jit(loss)(x)
        value, gradient = jax.jit(jax.value_and_grad(loss))(x)
        tangent = jax.jit(lambda x: jax.jvp(loss, (x,), (x,))[1])(x)
        numbers = [float(cost), float(value), float(np.sum(gradient)), float(tangent)]
        numbers.append(float(np.sum(jax_ctc.ctc_align(x, labels, lengths).score)))
        write(shape=f"{T} {B} {V} {L}", numbers=numbers)


def sanitizer(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    places = [os.environ.get("PATH", ""), *(
        f"{os.environ.get(home, '/usr/local/cuda')}/bin" for home in ("CUDA_HOME", "CUDA_PATH")
    )]  # fmt: skip
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    if program is None:
        return write(tool="compute-sanitizer", result="not found")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        running = {tool: start(program, tool, Path(folder)) for tool in TOOLS}
        while running:
            for tool, process in list(running.items()):
                late = time.monotonic() > deadline
                if process.poll() is None and not late:
                    continue
                if late:
                    process.kill()
                process.wait()
                log = (Path(folder) / f"{tool}.log").read_text(errors="replace")
                write(tool=tool, **verdict(log, process.returncode, late))
                del running[tool]
            time.sleep(0.2)


def start(program: str, tool: str, folder: Path) -> "subprocess.Popen[bytes]":
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    command += [sys.executable, "-m", "benchmarks.gpu", "--section", "sanitized"]
    command += ["--json", str(folder / f"{tool}.jsonl")]
    # CUDA graphs are off, so that each kernel is launched by itself, under its own name.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
    with open(folder / f"{tool}.log", "w") as log:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log,
            env={**os.environ, "XLA_FLAGS": flags.strip()},
        )  # fmt: skip


def verdict(log: str, code: int, late: bool) -> dict[str, Any]:
    lines = log.splitlines()
    said = [line.strip("= ") for line in lines if line.startswith("=========")]
    summary = [line for line in said if "SUMMARY" in line]
    row = {
        "result": "no time left" if late else (summary or ["no summary"])[-1],
        "exit": code,
        "batches": f"{sum('numbers' in line for line in lines)} of {len(SHAPES)}",
    }
    kernels = sorted(set(re.findall(r"\w+_kernel", "\n".join(said))))
    if code != 0 or late:
        row |= {"kernels": " ".join(kernels), "log": "\n".join(said[:25] or lines[-15:])[:2000]}
    return row

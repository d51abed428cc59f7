# SPDX-License-Identifier: Apache-2.0
"""Runs one peer in a process of its own, so that peers share no threads, heap or caches.

The parent sends a line of JSON and gets one back (`serve`). Only one worker computes at a time.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ROOT, import_what_is_installed, with_x64
from .peers import PEERS, Prepared
from .problems import Shape, problem


class Worker:
    """The worker as the parent sees it."""

    def __init__(self, peer: str, threads: int) -> None:
        # The idle threads of a library must not spin, because they would slow the other peers.
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu.worker", peer],
            cwd=ROOT,
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        return json.loads(answer) if answer else {"error": "the process ended"}

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call, for at least `seconds`, after one call that is not counted."""
    call()
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def to_numpy(x: Any) -> np.ndarray:  # of JAX, of PyTorch
    return np.asarray(x.detach() if hasattr(x, "detach") else x, np.float64)


def gradient_error(peer: str, shape: Shape, spread: float) -> float:
    """Largest error of the gradient of the sum of costs, against jax_ctc's own float64, which the
    tests compare with an oracle."""
    import jax

    import jax_ctc

    acts, labels, lengths, counts = problem(shape, full=True)
    acts = (spread * acts).astype(np.float32)
    prepared = PEERS[peer](True, (acts, labels, lengths, counts))
    gradient = to_numpy(prepared.call()[1])
    if prepared.batch_major:
        gradient = gradient.swapaxes(0, 1)
    with with_x64():
        exact = jax.grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())(acts.astype(np.float64))
    return float(np.abs(gradient - np.asarray(exact)).max())


def serve(peer: str) -> None:
    prepared: Prepared | None = None
    # The C library keeps freed memory up to the size of the largest block freed so far. Freeing one
    # large block here makes that size the same for every peer. Otherwise some peers would be timed
    # with new pages in each call.
    block = np.ones(30 << 17)
    del block
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer: dict[str, Any]
            if question["do"] == "prepare":
                prepared = None
                gc.collect()
                arguments = problem(question["shape"])
                prepared = PEERS[peer](question["training"], arguments)
                value = prepared.call()
                cost = to_numpy(value[0] if question["training"] else value).sum()
                answer = {
                    "cost": float(cost),
                    "compile_seconds": prepared.compile_seconds,
                    "temporary_bytes": prepared.temporary_bytes,
                }
            elif question["do"] == "time":
                assert prepared is not None
                answer = {"ms": timed(prepared.call, question["seconds"])}
            else:
                answer = {"error_of": gradient_error(peer, question["shape"], question["spread"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    import_what_is_installed()
    serve(sys.argv[1])

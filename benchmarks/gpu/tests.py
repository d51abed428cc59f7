# SPDX-License-Identifier: Apache-2.0
"""Runs pytest so that a test that crashes, hangs or loses the device does not stop other tests.

A few processes share the tests, and tests/support/gpu_shards.py is a plugin in each. A process that
dies is started again with the tests that it had not begun. A process that is silent for too long is
stopped and started again.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import ROOT

TESTS = ROOT / "tests"
# Below tests/: what tests compilers, sources, the emulator, or the CPU alone.
NOT_OF_A_DEVICE = [
    *(f"kernels/test_{name}.py" for name in (
        "agreement", "align_backends", "backends", "beam_kernel", "cross", "cuda_build",
        "emulated*", "gpu_paper", "gpu_program", "gpus", "hand_over", "handlers",
        "instruction_sets", "instructions", "linear_program", "makefile", "planted_overruns",
        "program", "pure_build", "release", "sanitized", "sources",
    )),
    "loss/test_oracle.py", "gpu/*",
]  # fmt: skip
NEED_HYPOTHESIS = ["loss/test_properties.py", "derivatives/test_few_classes.py"]
SILENCE, RESTARTS, FAILURES = 60, 15, 40  # seconds, of each process, of all


def tests(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    """tests/gpu."""
    extra = {"JAX_CTC_GPU_TESTS": "any device"} if tiny else {}
    run_tests(write, ["gpu"], tiny, deadline, extra)


def suite(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    """The quick part of the ordinary tests, which run on JAX's default device."""
    has_hypothesis = importlib.util.find_spec("hypothesis") is not None
    others = NOT_OF_A_DEVICE + ([] if has_hypothesis else NEED_HYPOTHESIS)
    what = [".", "-m", "not slow", *(f"--ignore-glob={TESTS / name}" for name in others)]
    if tiny:
        what = ["loss/test_known_values.py"]
    run_tests(write, what, tiny, deadline, {})


def run_tests(
    write: Callable[..., None], what: list[str], tiny: bool, deadline: float, extra: dict[str, str]
) -> None:
    if importlib.util.find_spec("pytest") is None:
        return write(test="all", outcome="pytest is not installed")
    count = 1 if tiny else max(1, min(6, (os.cpu_count() or 1) // 2))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shards = [Shard(Path(folder), f"{k}/{count}", what, extra, write) for k in range(count)]
        while any(shard.goes_on() for shard in shards):
            failed = sum(shard.counts["failed"] + shard.counts["crashed"] for shard in shards)
            if time.monotonic() > deadline or failed > FAILURES:
                break
            time.sleep(0.3)
        for shard in shards:
            shard.end()
    counts = sum((shard.counts for shard in shards), Counter())
    seconds = Counter({k: v for shard in shards for k, v in shard.seconds.items()})
    left = sum(shard.collected or 0 for shard in shards) - sum(len(shard.done) for shard in shards)
    write(
        test="all",
        outcome=", ".join(f"{n} {outcome}" for outcome, n in counts.most_common()) or "none ran",
        not_run="an unknown number" if any(s.collected is None for s in shards) else left,
        slowest=", ".join(f"{k.split('::')[-1]} {v:.0f} s" for k, v in seconds.most_common(4)),
    )
    skips = sum((shard.skips for shard in shards), Counter())
    for reason, n in skips.most_common(6):
        write(test=f"{n} tests", outcome="skipped", message=reason)


class Shard:
    """A part of the tests, in one process after another."""

    def __init__(
        self,
        folder: Path,
        part: str,
        what: list[str],
        extra: dict[str, str],
        write: Callable[..., None],
    ) -> None:
        stem = part.replace("/", "-of-")
        self.said, self.log, self.skip = (folder / f"{stem}.{k}" for k in ("jsonl", "log", "skip"))
        self.part, self.what, self.extra, self.write = part, what, extra, write
        self.counts: Counter[str] = Counter()
        self.skips: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.done: set[str] = set()
        self.collected: int | None = None
        self.running: str | None = None
        self.read, self.restarts, self.ended = 0, 0, False
        self.start()

    def start(self) -> None:
        self.skip.write_text("\n".join(self.done))
        env = {**os.environ, **self.extra}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), env.get("PYTHONPATH")]))
        env["GPU_SHARD"] = json.dumps([self.part, str(self.said), str(self.skip)])
        command = [sys.executable, "-m", "pytest", "-q", "-p", "support.gpu_shards"]
        command += ["-p", "no:cacheprovider", "-W", "default", "--continue-on-collection-errors"]
        command += ["-o", f"faulthandler_timeout={SILENCE / 2}"]
        with open(self.log, "a") as log:
            # In tests/, because in the repository's root Python imports the sources of jax_ctc.
            self.process = subprocess.Popen(
                [*command, *self.what], cwd=TESTS, env=env, stdout=log, stderr=log
            )
        self.heard = time.monotonic()

    def goes_on(self) -> bool:
        """Reads new outcomes, and starts the process again if it has died."""
        if self.ended:
            return False
        code = self.process.poll()
        self.listen()
        if code is None:
            if time.monotonic() - self.heard < SILENCE:
                return True
            self.process.kill()
            self.process.wait()
            code = "silent"
        finished = self.collected is not None and len(self.done) >= self.collected
        if finished or code in (0, 1, 2, 3, 4, 5):  # pytest's own codes
            self.ended = True
            if not finished or code not in (0, 1, 5):
                self.counts["crashed"] += 1
                self.tell(f"pytest, part {self.part}", f"ended with {code}", self.tail())
            return False
        if self.running is not None:
            self.done.add(self.running)
            self.counts["crashed"] += 1
            self.tell(self.running, f"crashed ({code})", self.tail())
            self.running = None
        self.restarts += 1
        if self.restarts > RESTARTS or self.collected is None:
            self.ended = True
            self.counts["crashed"] += 1
            self.tell(f"pytest, part {self.part}", "given up", f"{code}: {self.tail()}")
            return False
        self.start()
        return True

    def listen(self) -> None:
        text = self.said.read_text() if self.said.exists() else ""
        lines = text[self.read :].splitlines(keepends=True)
        for line in lines:
            if not line.endswith("\n"):
                break
            self.read += len(line)
            self.heard = time.monotonic()
            self.hear(json.loads(line))

    def hear(self, row: dict[str, Any]) -> None:
        if "collected" in row:
            self.collected = self.collected or row["collected"]
        elif "begun" in row:
            self.running = row["begun"]
        elif "finished" in row:
            self.done.add(row["finished"])
            self.running = None
        else:
            test, outcome = row["test"], row["outcome"]
            self.counts[outcome] += 1
            self.seconds[test] = row.get("seconds", 0)
            if outcome == "failed":
                self.tell(test, outcome, row["message"])
            elif outcome == "skipped":
                self.skips[row["message"]] += 1

    def tell(self, test: str, outcome: str, message: str) -> None:
        self.write(test=test, outcome=outcome, message=message[-2500:])

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2500:]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.listen()
        if self.running is not None and not self.ended:
            self.tell(self.running, "was running when time was up", "")

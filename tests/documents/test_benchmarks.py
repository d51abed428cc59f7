# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/ report where a peer, or a part of the tests, dies."""

import importlib
import subprocess
import sys
import time

import pytest

from support.runs import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="not in a source tree")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])  # after the installed jax_ctc
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("ends", ["kill -9 $$", "echo no such file; exit 1", "exit 4"])
def test_tests_that_never_ran_did_not_pass(benchmarks, monkeypatch, ends):
    tests, report = benchmarks("gpu.tests"), benchmarks("gpu.report")
    start = subprocess.Popen

    def dies(command, **options):
        return start(["sh", "-c", ends], **options)

    monkeypatch.setattr(tests.subprocess, "Popen", dies)
    rows = []
    tests.run_tests(
        lambda **row: rows.append({"section": "tests", **row}),
        ["loss"], True, time.monotonic() + 60, {},
    )  # fmt: skip
    assert [row["outcome"] for row in rows if row["test"] == "all"] == ["1 crashed"]
    assert report.verdicts(rows)[0].startswith("- NO: all of tests/gpu pass. 1 crashed")


def test_a_peer_that_dies_says_so(benchmarks):
    worker = benchmarks("cpu.worker").Worker("scan", 1)
    worker.process.kill()
    worker.process.wait()
    answers = [worker.ask(do="time", seconds=1) for _ in range(2)]
    worker.stop()
    assert answers == [{"error": "the process ended"}] * 2


def test_the_table_has_the_shapes_that_were_timed(benchmarks):
    timed = {"ms": 2.0, "low": 1.0, "high": 3.0, "temporary_bytes": 4, "compile_seconds": 1.0}
    result = {"name": "small", "shape": (5, 1, 4, 2), "training": False}
    peers = [
        {"jax_ctc": timed, "optax": {"error": "the process ended"}, "torch": {**timed, "ms": 6.0}},
        {"jax_ctc": {"error": "the process ended"}, "optax": timed},
    ]
    rows = benchmarks("cpu.report").rows([{**result, "peers": found} for found in peers])
    assert [row[5:7] for row in rows] == [["torch 6 (3.0)", "3.0x"]]

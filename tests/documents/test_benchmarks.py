# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/ report where a peer, or a part of the tests, dies; and what they overwrite."""

import importlib
import importlib.util
import subprocess
import sys
import time
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("arguments", "not_installed", "prefix"),
    [
        ("", ["warpctc_pytorch"], ""),
        ("", ["torch"], "partial-"),
        ("--no-sweeps", [], "partial-"),
        ("--rounds 1", [], "partial-"),
        ("--seconds 0.1", [], "partial-"),
        ("--shapes small", [], "partial-"),
        ("--peers jax_ctc optax", [], "partial-"),
        ("--quick", [], "quick-"),
    ],
)
def test_a_comparison_of_a_part_has_a_file_of_its_own(
    benchmarks, monkeypatch, tmp_path, arguments, not_installed, prefix
):
    for needed in ("rich", "matplotlib"):
        pytest.importorskip(needed, reason="what the benchmarks need is not installed")
    compare = benchmarks("cpu.compare")
    monkeypatch.setattr(compare, "Worker", lambda *_: SimpleNamespace(stop=lambda: None))
    monkeypatch.setattr(compare, "measure", lambda *_: None)
    monkeypatch.setattr(
        compare, "machine", lambda _: {"cpu": "a cpu", "threads": 1, "versions": {}}
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name not in not_installed)
    monkeypatch.setattr(sys, "argv", ["", *arguments.split(), "--output", str(tmp_path)])
    compare.main()
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{prefix}a-cpu.json",
        f"{prefix}a-cpu.md",
    }


def test_without_a_time_of_ours_there_is_no_limit(benchmarks):
    worker = SimpleNamespace(ask=lambda **_: {"error": "the process ended"})
    assert benchmarks("cpu.limits").measure(worker, 1, 0.1) == {}


def test_all_sections_of_a_gpu_have_their_time(benchmarks):
    main = benchmarks("gpu.__main__")
    assert sum(seconds for _, seconds in main.SECTIONS.values()) <= main.ALL_SECONDS


@pytest.mark.parametrize("seconds", ["0", "-1", "9", "nan"])
def test_a_section_of_a_gpu_has_some_seconds(benchmarks, monkeypatch, capsys, seconds):
    monkeypatch.setattr(sys, "argv", ["", "--seconds-per-section", seconds])
    with pytest.raises(SystemExit):
        benchmarks("gpu.__main__").main()
    assert "--seconds-per-section must be 10 or more" in capsys.readouterr().err

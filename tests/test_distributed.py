# SPDX-License-Identifier: Apache-2.0
"""examples/distributed.py on one process and on two: the same costs; and no hang when one dies."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "examples" / "distributed.py"
NEEDED = ("flax", "optax", "sklearn", "matplotlib", "rapidfuzz", "tqdm")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM.is_file(), reason="not in a source tree"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)),
        reason="needs `pip install -r examples/requirements.txt`",
    ),
]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), "--batch", "8", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def costs_of(file, *arguments):
    program = start("--steps", 4, "--costs", file, *arguments)
    said, _ = program.communicate(timeout=300)
    assert program.returncode == 0, said
    return json.loads(file.read_text())


def test_two_processes_learn_as_one_does(tmp_path):
    alone = costs_of(tmp_path / "alone.json")
    together = costs_of(tmp_path / "together.json", "--here", 2)
    assert len(alone) == 4
    assert together == pytest.approx(alone, rel=1e-4)
    assert len(set(alone)) == 4


def two_processes():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = ("--steps", 100_000, "--coordinator", f"localhost:{port}", "--processes", 2)
    return [start(*common, "--process", i) for i in range(2)]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_an_error(victim):
    processes = two_processes()
    try:
        for line in processes[0].stdout:
            if re.match("step 2 ", line):
                break
        os.kill(processes[victim].pid, signal.SIGKILL)
        survivor = processes[1 - victim]
        said, _ = survivor.communicate(timeout=120)
        assert survivor.returncode != 0, said
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def children_of(pid):
    """Processes that name this one as their parent."""
    status = [path.read_text() for path in Path("/proc").glob("[0-9]*/status")]
    mine = [text for text in status if re.search(rf"^PPid:\t{pid}$", text, re.MULTILINE)]
    return [int(re.search(r"^Pid:\t(\d+)$", text, re.MULTILINE).group(1)) for text in mine]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for children in /proc")
def test_who_ends_the_starter_ends_all_it_has_started():
    starter = start("--steps", 100_000, "--here", 2)
    try:
        for line in starter.stdout:
            if re.match("step 2 ", line):
                break
        children = children_of(starter.pid)
        assert len(children) == 2
        starter.terminate()
        assert starter.wait(60) != 0
        for child in children:
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)
    finally:
        starter.kill()
        starter.stdout.close()


@pytest.mark.parametrize(
    "arguments", [("--here", -1), ("--steps", 0), ("--processes", 2), ("--process", 0)], ids=str
)
def test_arguments_that_make_no_sense_are_an_error(arguments):
    program = start(*arguments)
    said, _ = program.communicate(timeout=120)
    assert program.returncode == 2
    assert f"{arguments[0]}" in said


def test_a_failure_of_one_is_the_failure_of_all():
    """A batch of 9 does not divide by two."""
    program = start("--steps", 1, "--here", 2, "--batch", 9)
    said, _ = program.communicate(timeout=120)
    assert program.returncode == 1
    assert "--batch: expected a multiple of the 2 devices" in said

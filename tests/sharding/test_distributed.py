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
import time
from pathlib import Path

import pytest

from support.runs import ROOT, only_all

PROGRAM = ROOT / "examples" / "distributed.py"
NEEDED = ("flax", "optax", "sklearn", "matplotlib", "tqdm")

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


@only_all
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


@only_all
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


def status(pid):
    """Its fields in /proc, none where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = dict(re.findall(r"^(\w+):\t(.*)$", text, re.MULTILINE))
    return {} if fields["State"].startswith("Z") else fields  # its parent has not asked for it


def children_of(pid):
    """Processes that name this one as their parent."""
    processes = (status(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [int(fields["Pid"]) for fields in processes if fields.get("PPid") == str(pid)]


def costs_said(program, steps):
    """The costs of the first steps, which the program has just printed."""
    costs = []
    for line in program.stdout:
        if found := re.match(r"step \d+  cost (\S+) nats", line):
            costs.append(float(found[1]))
        if len(costs) == steps:
            break
    return costs


@pytest.fixture(scope="module")
def costs_alone():
    program = start("--steps", 100_000)
    try:
        return costs_said(program, 3)
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for children in /proc")
@only_all
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_two_workers_learn_as_one_does_until_their_launcher_is_killed(number, costs_alone):
    launcher = start("--steps", 100_000, "--here", 2)
    workers = []
    try:
        costs = costs_said(launcher, 3)
        assert len(costs) == len(set(costs)) == 3
        assert costs == pytest.approx(costs_alone, rel=1e-4)
        workers = children_of(launcher.pid)
        assert len(workers) == 2
        launcher.send_signal(number)
        assert launcher.wait(60) != 0
        deadline = time.monotonic() + 60
        while any(map(status, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(status, workers))
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        for worker in filter(status, workers):
            os.kill(worker, signal.SIGKILL)


BAD_ARGUMENTS = [("--here", -1), ("--steps", 0), ("--processes", 2), ("--process", 0)]


@only_all
@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_raise(arguments):
    program = start(*arguments)
    said, _ = program.communicate(timeout=120)
    assert program.returncode == 2
    assert f"{arguments[0]}" in said


@only_all
def test_a_worker_that_fails_makes_the_launcher_fail():
    """A batch of 9 does not divide by two."""
    program = start("--steps", 1, "--here", 2, "--batch", 9)
    said, _ = program.communicate(timeout=120)
    assert program.returncode == 1
    assert "--batch: expected a multiple of the 2 devices" in said

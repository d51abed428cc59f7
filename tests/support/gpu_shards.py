# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for benchmarks/gpu/tests.py: runs a part of the tests, and writes each outcome
at once."""

import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

PART, SAID, SKIP = json.loads(os.environ["GPU_SHARD"])
LOST = re.compile(  # after these errors no kernel runs in this process
    "ILLEGAL_ADDRESS|illegal memory access|LAUNCH_FAILED|unspecified launch failure|"
    "MISALIGNED_ADDRESS|misaligned address|ILLEGAL_INSTRUCTION|LAUNCH_TIMEOUT|device-side assert"
)

try:
    import hypothesis  # noqa: F401
except ImportError:  # conftest.py needs its settings; tests that use it are not run
    nothing = staticmethod(lambda *args, **options: None)
    settings = type("settings", (), {"register_profile": nothing, "load_profile": nothing})
    stand_in: Any = types.ModuleType("hypothesis")
    stand_in.settings = settings
    sys.modules["hypothesis"] = stand_in


def say(**row: Any) -> None:
    with open(SAID, "a") as file:
        file.write(json.dumps(row) + "\n")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    part, parts = map(int, PART.split("/"))
    done = set(Path(SKIP).read_text().splitlines())
    mine = items[part::parts]
    say(collected=len(mine))
    items[:] = [item for item in mine if item.nodeid not in done]


def pytest_collectreport(report: Any) -> None:
    if report.failed and PART.startswith("0/"):  # every part collects all files
        say(test=report.nodeid, outcome="failed", message=report.longreprtext[-2500:])


def pytest_runtest_logstart(nodeid: str) -> None:
    say(begun=nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    message = report.longreprtext
    if report.outcome == "skipped":
        message = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else message)
    say(
        test=report.nodeid,
        outcome=report.outcome,
        seconds=report.duration,
        message=message[-2500:],
    )
    if report.outcome == "failed" and LOST.search(message):
        say(finished=report.nodeid)
        sys.stdout.flush()
        os._exit(77)  # a new process runs the rest


def pytest_runtest_logfinish(nodeid: str) -> None:
    say(finished=nodeid)

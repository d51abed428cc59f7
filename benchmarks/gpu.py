# SPDX-License-Identifier: Apache-2.0
"""Everything that is to be known of the CUDA kernels on a GPU, in one run that needs no hand.

    python benchmarks/gpu.py                       # all sections, under 9 minutes
    python benchmarks/gpu.py --only speed machine  # some of them
    python benchmarks/gpu.py --tiny                # small shapes, any device: does it run at all

Each section is a process of its own with a time limit, and writes what it finds as it goes: what
one section does not finish, the others do not lose. Ends with a table; leaves it and all numbers in
benchmarks/results/. jax_ctc must be installed with its CUDA kernels; PyTorch, optax, pytest and
compute-sanitizer are used where they are found.
"""

import argparse
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

HERE = Path(__file__).parent
SECTIONS = {  # seconds
    "machine": 40,
    "tests": 120,
    "sanitizer": 70,
    "cycles": 40,
    "speed": 180,
    "accuracy": 40,
}


def run_section(name: str, seconds: float, tiny: bool, folder: Path) -> list[dict[str, Any]]:
    """What the section wrote, the last line being how it ended."""
    results = folder / f"{name}.jsonl"
    command = [sys.executable, str(HERE / "gpu_sections.py"), name, str(results)]
    command += ["--tiny"] * tiny
    start = time.monotonic()
    with open(folder / f"{name}.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(seconds)
            ended = "done" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"stopped after {seconds:.0f} s"
    found = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    last = {"section": name, "ended": ended, "seconds": round(time.monotonic() - start, 1)}
    if ended != "done":
        last["log"] = (folder / f"{name}.log").read_text()[-3000:]
    print(f"{name}: {ended}, {last['seconds']} s, {len(found)} results", flush=True)
    return [*found, last]


def number(x: Any) -> str:
    return f"{x:.3g}" if isinstance(x, float) else str(x)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each section, of the rows' own columns."""
    parts = []
    for section in SECTIONS:
        mine = [row for row in rows if row["section"] == section]
        found, ends = [r for r in mine if "ended" not in r], [r for r in mine if "ended" in r]
        if not mine:
            continue
        parts.append(f"## {section}: {ends[-1]['ended']}, {ends[-1]['seconds']} s\n")
        if ends[-1].get("log"):
            parts.append("```\n" + ends[-1]["log"] + "\n```\n")
        columns = list(dict.fromkeys(key for row in found for key in row if key != "section"))
        if columns:
            parts.append("| " + " | ".join(columns) + " |")
            parts.append("|" + "---|" * len(columns))
            parts += [
                "| " + " | ".join(number(row.get(c, "")) for c in columns) + " |" for row in found
            ]
            parts.append("")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any device")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            rows += run_section(name, SECTIONS[name], options.tiny, Path(folder))
            device = next((row["value"] for row in rows if row.get("what") == "device"), "gpu")
            stem = re.sub(r"\W+", "-", str(device)).strip("-").lower()
            stem = f"{'tiny-' if options.tiny else ''}{stem}"
            # After each section: a run that is cut off leaves what it has.
            (options.output / f"{stem}.json").write_text(json.dumps(rows, indent=1) + "\n")
            (options.output / f"{stem}.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

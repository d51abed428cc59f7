# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says: on the terminal as it comes, and in a file of benchmarks/results/."""

from rich.console import Console

from .. import ROOT


class Transcript:
    def __init__(self) -> None:
        self._console = Console(width=150, markup=False, highlight=False)
        self._lines: list[str] = []

    def say(self, line: str) -> None:
        self._console.print(line)
        self._lines.append(line)

    def write(self, name: str) -> None:
        path = ROOT / "benchmarks" / "results" / f"{name}.md"
        path.write_text("\n".join(self._lines) + "\n")

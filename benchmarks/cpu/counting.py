# SPDX-License-Identifier: Apache-2.0
"""How often each instruction of a program runs. callgrind counts on this processor, but knows no
AVX-512. Of the kernels for ARM qemu writes a log, which has the code of each block and its runs.

Both count within the functions `counted_...` of instructions.cpp.
"""

import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from .. import ROOT

FLAGS = (
    "-std=gnu++17 -O3 -DNDEBUG -g2 -Wno-psabi -fno-math-errno -fno-trapping-math -static".split()
)
COUNTED = {  # of instructions.cpp
    "loss": "counted_loss",
    "loss + gradient": "counted_training",
    "Hessian-vector product": "counted_product",
}
Frame = tuple[str, str]  # a function and its file


def found(*names: str | None) -> str | None:
    """The first of these programs that there is."""
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Processor(ABC):
    """What compiles for a processor, and counts what it runs."""

    counter: ClassVar[str]
    sets: ClassVar[dict[str, str]]  # what the kernels call each instruction set
    tools: ClassVar[dict[str, str | None]]  # where they are

    def missing(self) -> list[str]:
        return [name for name, path in self.tools.items() if path is None]

    def _run(
        self, tool: str, *arguments: object, input: str | None = None, isa: str | None = None
    ) -> str:
        command = [str(self.tools[tool]), *map(str, arguments)]
        environment = {**os.environ, "JAX_CTC_ISA": isa} if isa else None
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, input=input, env=environment
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr[-2000:]}")
        return done.stdout

    def version(self) -> str:
        return self._run("C++ compiler", "--version").splitlines()[0]

    def compiled(self, folder: Path) -> Path:
        program = folder / "instructions"
        sources = [
            ROOT / "benchmarks" / "cpu" / "instructions.cpp",
            *(ROOT / "kernels" / "cpu").glob("*.cpp"),
            *(ROOT / "kernels" / "cpu" / "simd").glob("*.cpp"),
        ]
        of_xla = {"ffi.cpp", "bindings.cpp"}
        objects = []
        for source in sources:
            if source.name not in of_xla:
                objects.append(folder / f"{source.stem}.o")
                self._run("C++ compiler", *FLAGS, "-c", source, "-o", objects[-1])
        self._run("C++ compiler", *FLAGS, *objects, "-o", program)
        return program

    def chains_of(self, program: Path, addresses: list[int]) -> Iterator[list[Frame]]:
        """The functions of an instruction, from the innermost outwards."""
        wanted = "\n".join(map(hex, addresses))
        said = self._run("addr2line", "-a", "-i", "-f", "-C", "-e", program, input=wanted)
        for block in re.split(r"^0x[0-9a-f]+\n", said, flags=re.MULTILINE)[1:]:
            lines = block.splitlines()
            yield [
                (function, place.rsplit("/", 1)[-1].split(":")[0])
                for function, place in zip(lines[::2], lines[1::2], strict=True)
            ]

    @abstractmethod
    def count(self, program: Path, file: Path, isa: str, counted: str) -> Counter[int]:
        """How often each instruction runs within the function `counted`, by its address."""


class ThisProcessor(Processor):
    counter = "callgrind"
    sets: ClassVar = {"avx2": "avx2", "baseline": "baseline"}
    tools: ClassVar = {
        "C++ compiler": found(os.environ.get("CXX"), "g++", "clang++"),
        "addr2line": found("addr2line"),
        "valgrind": found("valgrind"),
    }

    def count(self, program: Path, file: Path, isa: str, counted: str) -> Counter[int]:
        out = file.with_name("callgrind.out")
        said = self._run(
            "valgrind", "--tool=callgrind", f"--toggle-collect={counted}", "--dump-instr=yes",
            "--compress-pos=no", "--compress-strings=no", f"--callgrind-out-file={out}",
            program, file, isa=isa,
        )  # fmt: skip
        if not said.startswith(isa):
            raise RuntimeError(f"{isa} under callgrind: {said}")
        counts: Counter[int] = Counter()
        lines = iter(out.read_text().splitlines())
        for line in lines:
            if line.startswith("calls="):
                next(lines)  # what the callee took
            elif line.startswith("0x"):
                address, *_, count = line.split()
                counts[int(address, 16)] += int(count)
        return counts


class Arm(Processor):
    """Where a compiler for it is found: Debian has g++-aarch64-linux-gnu and qemu-user-static."""

    counter = "qemu"
    sets: ClassVar = {"neon": "baseline"}
    tools: ClassVar = {
        "C++ compiler": found("aarch64-linux-gnu-g++"),
        "addr2line": found("aarch64-linux-gnu-addr2line"),
        "qemu": found("qemu-aarch64-static", "qemu-aarch64"),
    }

    def count(self, program: Path, file: Path, isa: str, counted: str) -> Counter[int]:
        log = file.with_name("qemu.log")
        self._run("qemu", "-d", "in_asm,exec,nochain", "-D", log, program, file)
        with log.open() as lines:
            return counts_within(counted, blocks_that_ran(lines))


Block = tuple[str, list[int]]  # of instructions: the function, and their addresses


def counts_within(function: str, blocks: Iterable[Block]) -> Counter[int]:
    """From the first call of the function until it returns."""
    counts: Counter[int] = Counter()
    before: list[int] = []
    behind = None  # the instruction behind the call
    for name, addresses in blocks:
        if behind is None and name == function:
            behind = before[-1] + 4
        elif addresses[0] == behind:
            break
        if behind is not None:
            counts.update(addresses)
        before = addresses
    return counts


def blocks_that_ran(log: Iterable[str]) -> Iterator[Block]:
    """Of qemu's log, in the order of runs."""
    blocks: dict[int, list[int]] = {}  # by the first instruction
    block: list[int] = []
    for line in log:
        if line.startswith("IN:"):
            block = []
        elif line.startswith("0x"):
            block.append(int(line.split(":")[0], 16))
            blocks[block[0]] = block
        elif line.startswith("Trace"):
            yield line.split()[-1], blocks[int(line.split("/")[1], 16)]


PROCESSORS = [ThisProcessor(), Arm()]

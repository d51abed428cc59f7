# SPDX-License-Identifier: Apache-2.0
"""Instructions of the CPU kernels a row and a pair of states, which no noise can move.

`python -m benchmarks.cpu.instructions` (or `make instructions`) compiles the kernels into a program
of their own, runs the first two sequences of each shape under callgrind, and prints for each
instruction set and shape
  a row      all instructions / frames in use, of the loss and of loss + gradient
  a pair     the same / pairs of states of all frames in use
  and how many of a row are of which part: `rows` (the normalisers), `emissions`, `step` (the
  recursion), `posterior` (products of states, and what is kept), `gradient`, and the rest.
An instruction belongs to the innermost function that has one of these subjects (PARTS). callgrind
knows no AVX-512. Where llvm-mca and objdump are found, a table of what they expect of
the hottest loops follows.

Without valgrind, addr2line or a C++ compiler it says so, and the exit status is 0.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .problems import SHAPES, Shape, problem

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "kernels").is_dir())
RESULTS = ROOT / "benchmarks" / "results" / "instructions.md"
FLAGS = (
    "-std=gnu++17 -O3 -DNDEBUG -g2 -Wno-psabi -fno-math-errno -fno-trapping-math -static".split()
)
SETS = ("avx2", "baseline")
MACHINES = ("znver3", "skylake")  # as llvm-mca names them
COUNTED = ("counted_loss", "counted_training")  # of instructions.cpp
LOOPS = (SHAPES["letters"], SHAPES["word pieces"])  # a table of classes; rows by themselves
Frame = tuple[str, str]  # a function and its file

# The subject of a function, by its file. Files that all subjects use (lanes.h, scaled.h) have none.
PARTS = {
    "normaliser.h": "rows", "emissions.h": "emissions", "recursion.h": "step", "step.h": "step",
    "sweep.h": "step", "occupancy.h": "posterior", "forward.h": "posterior",
    "gradient.h": "gradient",
}  # fmt: skip
# In files of several subjects, by its name.
PARTS_OF_NAMES = {
    ("class_table.h", r"tabulate|read"): "rows",
    ("class_table.h", r"gather|transpose"): "emissions",
    ("class_table.h", r"scatter"): "posterior",
    ("rows.h", r"split"): "emissions",
    ("rows.h", r"softmax|minus|multiply"): "gradient",
}
NAMES = ("rows", "emissions", "step", "posterior", "gradient", "rest")


def part_of(chain: list[Frame]) -> str:
    """Of an instruction: its function, what that is inlined into, and so on."""
    for function, file in chain:
        if file in PARTS:
            return PARTS[file]
        for (of, pattern), part in PARTS_OF_NAMES.items():
            if file == of and re.search(pattern, function):
                return part
    return "rest"


def compiled(folder: Path, compiler: str) -> Path:
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
            command = [compiler, *FLAGS, "-c", str(source), "-o", str(objects[-1])]
            subprocess.run(command, check=True)
    subprocess.run([compiler, *FLAGS, *map(str, objects), "-o", str(program)], check=True)
    return program


def problem_file(folder: Path, shape: Shape) -> tuple[Path, int, int]:
    """Two sequences of the shape; with their frames, and pairs of states of all frames."""
    acts, labels, lengths, counts = problem(shape)
    acts, labels, lengths, counts = acts[:, :2], labels[:2], lengths[:2], counts[:2]
    file = folder / "problem"
    sizes = np.array([*acts.shape, labels.shape[1]], np.int64)
    file.write_bytes(
        b"".join(np.ascontiguousarray(x).tobytes() for x in (sizes, acts, labels, lengths))
    )
    return file, int(lengths.sum()), int((lengths * (counts + 1)).sum())


def counts_of(program: Path, file: Path, isa: str, counted: str) -> Counter[int]:
    """How often each instruction of the program runs within a function, by its address."""
    out = file.with_name("callgrind.out")
    command = ["valgrind", "--tool=callgrind", f"--toggle-collect={counted}", "--dump-instr=yes"]
    command += ["--compress-pos=no", "--compress-strings=no", f"--callgrind-out-file={out}"]
    done = subprocess.run(
        [*command, str(program), str(file)],
        env={**os.environ, "JAX_CTC_ISA": isa}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not done.stdout.startswith(isa):
        raise RuntimeError(f"{isa} under callgrind: {done.stdout}{done.stderr[-2000:]}")
    counts: Counter[int] = Counter()
    lines = iter(out.read_text().splitlines())
    for line in lines:
        if line.startswith("calls="):
            next(lines)  # what the callee took
        elif line.startswith("0x"):
            address, *_, count = line.split()
            counts[int(address, 16)] += int(count)
    return counts


def chains_of(program: Path, addresses: list[int]) -> Iterator[list[Frame]]:
    """The functions of an instruction, from the innermost outwards."""
    said = subprocess.run(
        ["addr2line", "-a", "-i", "-f", "-C", "-e", str(program)],
        input="\n".join(map(hex, addresses)), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for block in re.split(r"^0x[0-9a-f]+\n", said, flags=re.MULTILINE)[1:]:
        lines = block.splitlines()
        yield [
            (function, place.rsplit("/", 1)[-1].split(":")[0])
            for function, place in zip(lines[::2], lines[1::2], strict=True)
        ]


def by_part(program: Path, counts: Counter[int]) -> Counter[str]:
    addresses = sorted(counts)
    parts: Counter[str] = Counter()
    for address, chain in zip(addresses, chains_of(program, addresses), strict=True):
        parts[part_of(chain)] += counts[address]
    return parts


class Loop(NamedTuple):
    """An innermost loop of the machine code: the lines of objdump, and how often it is run."""

    part: str
    turns: int
    code: list[str]


def loops_of(program: Path, counts: Counter[int]) -> Iterator[Loop]:
    said = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(program)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.findall(r"^ +([0-9a-f]+):\t([^<#\n]*)", said, re.MULTILINE)
    code = [(int(address, 16), text.strip()) for address, text in found]
    place_of = {address: i for i, (address, _) in enumerate(code)}
    previous_end = 0
    for i, (address, text) in enumerate(code):
        jump = re.fullmatch(r"(j\w+) +([0-9a-f]+)", text)
        if jump is None or counts[address] == 0 or not previous_end <= (begin := int(jump[2], 16)):
            continue
        if begin > address or begin not in place_of:
            continue
        previous_end = address
        body = [line for _, line in code[place_of[begin] : i]]
        if any(re.match(r"j|call|ret", line) for line in body):
            continue  # not one straight line, which is all that llvm-mca knows
        (chain,) = chains_of(program, [code[(place_of[begin] + i) // 2][0]])
        yield Loop(part_of(chain), counts[address], body)


def report(program: Path, folder: Path, shape: Shape) -> Iterator[str]:
    """What llvm-mca expects of the hottest loop of each part, in cycles a turn."""
    file, _, _ = problem_file(folder, shape)
    counts = counts_of(program, file, "avx2", "counted_training")
    best: dict[str, Loop] = {}
    for loop in loops_of(program, counts):
        other = best.get(loop.part)
        if other is None or loop.turns * len(loop.code) > other.turns * len(other.code):
            best[loop.part] = loop
    of = ", ".join(map(str, shape))
    yield f"| hottest loop of {of} | instructions | {' | '.join(MACHINES)} |"
    yield "|---" * (2 + len(MACHINES)) + "|"
    for part in NAMES[:-1]:
        if part not in best:
            continue
        cycles = []
        for machine in MACHINES:
            said = subprocess.run(
                ["llvm-mca", f"-mcpu={machine}", "-iterations=1000"],
                input="\n".join(best[part].code), capture_output=True, text=True, check=False,
            )  # fmt: skip
            total = re.search(r"Total Cycles: +(\d+)", said.stdout)
            cycles.append(f"{int(total[1]) / 1000:.1f}" if total else "?")
        yield f"| {part} | {len(best[part].code) + 1} | {' | '.join(cycles)} |"


def table(program: Path, folder: Path, isa: str, shapes: dict[str, Shape]) -> Iterator[str]:
    yield f"| {isa}: T, B, V, L | of | a row | a pair | {' | '.join(NAMES)} |"
    yield "|---" * (4 + len(NAMES)) + "|"
    for shape in shapes.values():
        file, rows, pairs = problem_file(folder, shape)
        for counted in COUNTED:
            parts = by_part(program, counts_of(program, file, isa, counted))
            total = sum(parts.values())
            cells = [f"{total / rows:,.0f}", f"{total / pairs:.1f}"]
            cells += [f"{parts[name] / rows:,.0f}" for name in NAMES]
            what = "loss" if counted == "counted_loss" else "loss + gradient"
            yield f"| {', '.join(map(str, shape))} | {what} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small shape, nothing is written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    missing = [tool for tool in ("valgrind", "addr2line") if shutil.which(tool) is None]
    if missing or compiler is None:
        print(f"not found: {', '.join(missing) or 'a C++ compiler'}; nothing is counted")
        return
    shapes = {"small": SHAPES["small"]} if options.quick else SHAPES
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    lines = [f"Instructions of one thread, by callgrind; {version.stdout.splitlines()[0]}.", ""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = compiled(folder, compiler)
        for isa in SETS:
            for line in table(program, folder, isa, shapes):
                print(line, flush=True)
                lines.append(line)
            lines.append("")
        if shutil.which("llvm-mca") and shutil.which("objdump"):
            lines += ["Cycles a turn, as llvm-mca expects them; avx2.", ""]
            for shape in [SHAPES["small"]] if options.quick else LOOPS:
                for line in report(program, folder, shape):
                    print(line, flush=True)
                    lines.append(line)
                lines.append("")
    if not options.quick:
        options.output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()

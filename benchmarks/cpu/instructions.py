# SPDX-License-Identifier: Apache-2.0
"""Instructions of the CPU kernels a row and a pair of states, which no noise can move.

`python -m benchmarks.cpu.instructions` (or `make instructions`) compiles the kernels into a program
of their own, counts the instructions of the first two sequences of each shape (counting.py), and
prints for each instruction set and shape
  a row      all instructions / frames in use: of the loss, of loss + gradient, and of a
             Hessian-vector product from what these have kept
  a pair     the same / pairs of states of all frames in use
  and how many of a row are of which part: `rows` (the normalisers), `emissions`, `step` (the
  recursion), `posterior` (products of states, and what is kept), `gradient`, and the rest.
An instruction belongs to the innermost function that has one of these subjects (PARTS). Instruction
sets whose tools are missing are left out, and the exit status is 0. Where llvm-mca and objdump are
found, a table of what they expect of the hottest loops with AVX2 follows.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import ROOT
from . import counting
from .counting import COUNTED, Frame, Processor
from .problems import SHAPES, Shape, problem

RESULTS = ROOT / "benchmarks" / "results" / "instructions.md"
MACHINES = ("znver3", "skylake")  # as llvm-mca names them
OF_CYCLES = ("llvm-mca", "objdump")  # the tools
LOOPS = (SHAPES["letters"], SHAPES["word pieces"])  # a table of classes; rows by themselves

# The subject of a function, by its file. Files that all subjects use (lanes.h, scaled.h) have none.
PARTS = {
    "row_pieces.h": "rows", "row_sums.h": "rows", "normaliser.h": "rows",
    "emissions.h": "emissions", "recursion.h": "step", "step.h": "step",
    "sweep.h": "step", "occupancy.h": "posterior", "forward.h": "posterior",
    "sequence_rows.h": "emissions", "ratios.h": "emissions", "row_registers.h": "emissions",
    "group_step.h": "step", "group_sweep.h": "posterior", "stored_beta.h": "posterior",
    "band.h": "posterior", "group_products.h": "posterior", "class_sums.h": "posterior",
    "residuals.h": "posterior", "class_rows.h": "gradient", "class_gradient.h": "gradient",
    "directed_emissions.h": "emissions", "directed_ratios.h": "emissions", "dual.h": "step",
    "gradient.h": "gradient", "hvp.h": "gradient", "hvp_writer.h": "gradient",
    "group_hvp.h": "gradient", "ratio_base.h": "emissions", "dithered_ratios.h": "emissions",
}  # fmt: skip
# In files of several subjects, by its name.
PARTS_OF_NAMES = {
    ("class_table.h", r"tabulate|read"): "rows",
    ("class_table.h", r"gather"): "emissions",
    ("quads.h", r"transpose"): "emissions",
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


def by_part(processor: Processor, program: Path, counts: Counter[int]) -> Counter[str]:
    addresses = sorted(counts)
    parts: Counter[str] = Counter()
    for address, chain in zip(addresses, processor.chains_of(program, addresses), strict=True):
        parts[part_of(chain)] += counts[address]
    return parts


class Loop(NamedTuple):
    """An innermost loop of the machine code: the lines of objdump, and how often it is run."""

    part: str
    turns: int
    code: list[str]


def loops_of(processor: Processor, program: Path, counts: Counter[int]) -> Iterator[Loop]:
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
        (chain,) = processor.chains_of(program, [code[(place_of[begin] + i) // 2][0]])
        yield Loop(part_of(chain), counts[address], body)


def report(processor: Processor, program: Path, folder: Path, shape: Shape) -> Iterator[str]:
    """What llvm-mca expects of the hottest loop of each part, in cycles a turn."""
    file, _, _ = problem_file(folder, shape)
    counts = processor.count(program, file, "avx2", COUNTED["loss + gradient"])
    best: dict[str, Loop] = {}
    for loop in loops_of(processor, program, counts):
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


def table(
    processor: Processor, program: Path, folder: Path, isa: str, shapes: dict[str, Shape]
) -> Iterator[str]:
    yield f"| {isa}: T, B, V, L | of | a row | a pair | {' | '.join(NAMES)} |"
    yield "|---" * (4 + len(NAMES)) + "|"
    for shape in shapes.values():
        file, rows, pairs = problem_file(folder, shape)
        for what, counted in COUNTED.items():
            counts = processor.count(program, file, processor.sets[isa], counted)
            parts = by_part(processor, program, counts)
            total = sum(parts.values())
            cells = [f"{total / rows:,.0f}", f"{total / pairs:.1f}"]
            cells += [f"{parts[name] / rows:,.0f}" for name in NAMES]
            yield f"| {', '.join(map(str, shape))} | {what} | {' | '.join(cells)} |"


def tables(processor: Processor, folder: Path, shapes: dict[str, Shape]) -> Iterator[str]:
    program = processor.compiled(folder)
    for isa in processor.sets:
        yield from table(processor, program, folder, isa, shapes)
        yield ""
    if "avx2" in processor.sets and all(map(shutil.which, OF_CYCLES)):
        yield from ("Cycles a turn, as llvm-mca expects them; avx2.", "")
        for shape in LOOPS:
            if shape in shapes.values():
                yield from report(processor, program, folder, shape)
                yield ""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu.instructions", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one small shape, nothing is written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    shapes = {"small": SHAPES["small"]} if options.quick else SHAPES
    if not options.quick:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    # A run of a part does not overwrite the results of a whole one.
    partial = options.output.with_name(f"partial-{options.output.name}")
    lines, output = [], options.output
    if missing := [tool for tool in OF_CYCLES if shutil.which(tool) is None]:
        print(f"cycles: not found: {', '.join(missing)}")
        output = partial
    for processor in counting.PROCESSORS:
        if missing := processor.missing():
            print(f"{', '.join(processor.sets)}: not found: {', '.join(missing)}")
            output = partial
            continue
        lines += [f"Instructions of one thread, by {processor.counter}; {processor.version()}.", ""]
        print(lines[-2], flush=True)
        with tempfile.TemporaryDirectory() as name:
            for line in tables(processor, Path(name), shapes):
                print(line, flush=True)
                lines.append(line)
    if lines and not options.quick:
        output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()

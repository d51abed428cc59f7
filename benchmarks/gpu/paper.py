# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels should take on an H100 and an H200, on paper: no GPU is needed.

`python -m benchmarks.gpu.paper` (or `make gpu-paper`) prints a row for each kernel of each shape.
  instructions  of a warp for a frame of the lattice, with its share of what a tile costs; or of a
                window of 56 pairs, whose states the occupancies compute again; read off the
                machine code for sm_90, as are the registers of a thread
  MB            moved between kernel and memory, if no cache holds what a kernel before has written;
                of all kernels: read and written together
  blocks, waves that one multiprocessor holds at a time; blocks of the launch / blocks of all
  H100, H200    microseconds predicted: the larger of memory and of instructions, and a launch
  floor         as in speed.py, on an H200
  measured      on an H200 (benchmarks/results/nvidia-h200.md): a kernel by the profiler, the whole
                by a loop, which has launches of its own
The exit status is 1 if a number is over its bound (BOUNDS) or a kernel spills registers.

float32. Without nvcc and nvdisasm the bounds stand in for what they would say.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from math import ceil
from pathlib import Path

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "kernels").is_dir())
RESULTS = ROOT / "benchmarks" / "results" / "nvidia-h200.md"
BANDWIDTH = {"H100": 3.0e6, "H200": 4.1e6}  # bytes a microsecond that a copy reaches
PROCESSORS, CLOCK = 132, 1980  # multiprocessors, cycles a microsecond: of both
CHUNK, WINDOW = 8, 56  # frames of which one has its states kept; pairs computed again by a warp
CHAIN = 46  # cycles of a frame's dependent instructions
HOP = 1.0  # microseconds from one block to the next through global memory, assumed
LAUNCH = 2.5  # microseconds from a kernel's start to the next one's, by the profiler, with no work
CYCLES = 2  # of a scheduler for an instruction of the lattice: most are of integers, at half rate
ALONE, NEIGHBOUR = 2.5, 3  # the same with all waits, measured on an H200: of one warp that has a
# scheduler to itself, and of some that wait for each other
ROW_CYCLES = 1.25  # the same for rows, 32-bit floats and loads among them
COPIED = 0.85  # of the bandwidth of a copy, by kernels that do some arithmetic besides

# What a change may not exceed without a reason: what there is today, and a little.
INSTRUCTIONS = {  # of a warp a frame, (training, pairs a lane, frames a tile, strips together)
    (False, 1, 16, False): 34, (True, 1, 16, False): 35,  # 1 or 2 more than there are
    (False, 1, 8, False): 34, (True, 1, 8, False): 34,
    (False, 1, 8, True): 34, (True, 1, 8, True): 34,
    (False, 2, 8, False): 72, (True, 2, 8, False): 72, "occupancy": 172,
}  # fmt: skip
REGISTERS = {  # rows, gradient: 1024 threads on a multiprocessor; the lattice: lattice.cu says why
    "rows": 64, "gradient": 64, **dict.fromkeys(INSTRUCTIONS, 168), "occupancy": 96,
    (False, 2, 8, False): 96, (True, 2, 8, False): 96,
}  # fmt: skip
GIGABYTES = {(1600, 256, 128, 200): 3}  # of training, of which emissions are 1.7 and states 0.7
MICROSECONDS = {  # of T, B, V, L: the loss, training, on an H200. 5 % more than is predicted today
    (32, 64, 80, 12): (6.6, 14.3), (200, 1, 32, 30): (10.2, 20), (150, 64, 28, 40): (12.4, 28.2),
    (400, 16, 32, 100): (18.5, 42), (400, 16, 1024, 60): (24.9, 63.5),
    (250, 8, 10_000, 50): (36.6, 98.5), (1000, 64, 5000, 100): (434, 1323),
    (5000, 2, 64, 800): (160, 372), (1600, 256, 128, 200): (468, 1620),
}  # fmt: skip
SHAPES = list(MICROSECONDS)


@dataclass
class Kernel:
    """A launch. Bytes are moved to or from memory; threads and shared memory are of a block."""

    name: str
    read: int
    written: int
    blocks: int
    threads: int
    shared: int
    cycles: float = 0  # of a scheduler, if each block had a multiprocessor to itself
    warps: int = 0  # of a block, that work all the time
    key: object = None  # of the machine code


def launches(shape, training, instructions=None):
    """The kernels of the loss, or of training where cotangents are 1, as kernels/cuda launches
    them."""
    T, B, V, L = shape
    frames, columns, dense = T * B, L + 1, V <= L + 1
    group = 32 if V <= 2048 else 128 if V <= 8192 else 256
    threads = 256 if group == 32 else group
    row_blocks = ceil(frames / 8) if group == 32 else frames
    parts, warps, shared, whole = occupancy_plan(T, frames, L)
    by_class = dense and whole  # a row has an emission for each class, else for each label
    emitted, kept = (V if by_class else columns), 4 * frames * (V if dense else columns)
    emissions, states = 8 * frames * emitted, 2 * 16 * B * ceil(T / CHUNK) * columns

    # 60 an emission, as was measured where they were of labels, at V = 128, L = 200.
    row = 150 + (7.4 * V + 60 * emitted + (60 * V if dense and not by_class else 0)) / group
    rows = Kernel(
        "rows", 4 * frames * V, emissions + 8 * frames, B + row_blocks, threads, group // 32 * 12,
        ROW_CYCLES * row * (threads // 32) / 4, threads // 32, ("rows", group),
    )  # fmt: skip
    if strips_with_schedulers(B, L) > 1:
        rows.written += 16 * frames  # edges of no strip yet
    if training:
        rows.written += 0 if by_class else kept if dense else 8 * frames

    strips = strips_with_schedulers(B, L)
    pairs, tile = (1, 16) if L < 32 else (1, 8) if strips > 0 else (2, 8)
    together = strips if L >= 32 and strips > 1 else 1
    of_warp = 32 * pairs
    fed = pairs == 1  # by a warp for each that sweeps, two tiles ahead
    memory = (3 * tile * (of_warp + 4) if fed else 2 * tile * (of_warp + 2) + 2 * tile) * 8
    all_warps = ceil(columns / of_warp)
    sweeping = min(ceil(all_warps / together), 15)
    directions = 2 if sweeping == 1 else 1
    serial = ceil(columns / (together * sweeping * of_warp))
    # An edge is passed on a turn after it is there, and taken a turn before it is needed.
    turns = ceil((T if training else T / 2) / tile) + sweeping - 1
    turns += (together - 1) * (sweeping + 2)
    key = training, pairs, tile, together > 1
    of_one = CYCLES if not fed else ALONE if sweeping == 1 else NEIGHBOUR
    cycles = serial * turns * tile * (instructions or INSTRUCTIONS)[key] * of_one
    lattice = Kernel(
        "lattice", (2 if training else 1) * emissions + 8 * frames, states if training else 0,
        2 // directions * B * together, 32 * ((2 if fed else 1) * directions * sweeping + 1),
        16 + directions * sweeping * memory, cycles + HOP * CLOCK * (together - 1),
        directions * sweeping, key,
    )  # fmt: skip
    if not training:
        return [rows, lattice]

    windows = ceil(columns / WINDOW)
    # Those of a frame beside its windows: counted in the machine code, chains of four equal labels.
    a_frame = 150 + 60 * ceil(columns / 32)
    a_frame += (19 if by_class else 7) * ceil((V if dense else columns) / 32)
    a_frame += windows * (instructions or INSTRUCTIONS)["occupancy"] * CYCLES / ROW_CYCLES
    occupancy = Kernel(
        "occupancy", emissions + states + (kept if dense and not by_class else 0), kept, B * parts,
        32 * warps, shared, ROW_CYCLES * a_frame * T / parts / 4, warps, "occupancy",
    )  # fmt: skip
    moved = 0 if dense else 4 * frames * V  # dense: the gradient is there
    gradient = Kernel(
        "gradient", moved and moved + kept + 8 * frames, moved, row_blocks, threads,
        0 if dense else 4 * columns * (8 if group == 32 else 1), key=("gradient", group),
    )  # fmt: skip
    return [rows, lattice, occupancy, gradient]


def strips_with_schedulers(sequences, L):
    """Of kernels/cuda/tuning.h, and of how many strips sweep together: blocks of a direction whose
    warps have a pair a lane and a scheduler each; 0 if they would have to share."""
    strips = ceil(ceil((L + 1) / 32) / 4)
    return strips if strips <= 8 and 2 * sequences * strips <= PROCESSORS else 0


def occupancy_plan(T, frames, L):
    """Of kernels/cuda/tuning.h: blocks of a sequence; warps and shared memory of a block; whether
    the products of all pairs wait in it."""

    def shared(together, pitch, whole=True):
        slots = 8 * (2 * CHUNK * pitch * together + 2) + 4 * CHUNK * together
        return slots + (8 * L if whole else 8 * CHUNK**2)

    limit, windows = 227 << 10, ceil((L + 1) / WINDOW)
    chunks = 1 if frames < 4096 else max(1, 4 // windows) if frames < 32768 else 8
    pitch = 2 * ceil((L + 1) / 2)
    parts = ceil((T + 2 * CHUNK - 2) // CHUNK / chunks)
    if shared(1, pitch) > limit:
        return parts, 16, shared(1, 16 * WINDOW, whole=False), False
    if shared(1, pitch) > limit // 2:
        return parts, 16, shared(1, pitch), True
    warps = 4 if windows <= 4 else 8
    together = min(max(1, warps // windows), chunks)
    return parts, warps, shared(together, pitch), True


def blocks_at_once(kernel, registers):
    """That one multiprocessor has room for."""
    by_registers = 65536 // (ceil(registers / 8) * 8 * kernel.threads)
    by_memory = (228 << 10) // (kernel.shared + 1024)
    return max(1, min(32, 2048 // kernel.threads, by_registers, by_memory))


def microseconds(kernel, registers, device):
    memory = (kernel.read + kernel.written) / (BANDWIDTH[device] * COPIED)
    room = blocks_at_once(kernel, registers)
    waves = kernel.blocks / (room * PROCESSORS)
    if kernel.name == "lattice":  # a block lasts as long as its sweep
        resident = min(room, ceil(kernel.blocks / PROCESSORS))
        busy = kernel.cycles * max(1, resident * kernel.warps / 4) * max(1, ceil(waves)) / CLOCK
    else:
        busy = kernel.cycles * kernel.blocks / PROCESSORS / CLOCK
    return max(memory, busy) + LAUNCH


def floor(shape, training, device="H200"):
    T, B, V, _ = shape
    memory = 4 * T * B * V * (3 if training else 1) / BANDWIDTH[device]
    return max(memory, CHAIN * T * (1 if training else 0.5) / CLOCK)


# ---- the machine code --------------------------------------------------------------------------


def tool(name):
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), str(wheels)]))


def compiled_file(file, folder):
    """Its machine code for sm_90, and what ptxas said."""
    cubin = Path(folder) / f"{file}.cubin"
    command = [tool("nvcc"), "-std=c++17", "--expt-relaxed-constexpr", "-arch=sm_90", "-cubin"]
    cuda = ROOT / "kernels" / "cuda"
    command += ["-I", cuda / "nvidia", "-Xptxas", "-v", cuda / f"{file}.cu", "-o", cubin]
    return cubin, subprocess.run(command, capture_output=True, text=True, check=True).stderr


def compiled(folder):
    """For each kernel its (registers, spilled bytes), and instructions a frame; by its key."""
    files = {
        "rows": [(("rows", g), rf"rows_kernelIfLi{g}E") for g in (32, 128, 256)],
        "gradient": [(("gradient", g), rf"gradient_kernelIfLi{g}E") for g in (32, 128, 256)],
        "occupancy": [("occupancy", "occupancy_kernelINS_6ScaledIfE")],
        "lattice": [
            ((bool(t), p, n, bool(together)), f"ScaledIfEELi{p}ELi{n}ELb{together}ELb{t}E")
            for t in (0, 1) for p, n, together in ((1, 16, 0), (1, 8, 0), (1, 8, 1), (2, 8, 0))
        ],
    }  # fmt: skip
    resources, instructions = {}, {}
    for file, kernels in files.items():
        cubin, said = compiled_file(file, folder)
        parts = re.split(r"Compiling entry function '(\w+)'", said)[1:]
        for key, name in kernels:
            (text,) = (
                t for n, t in zip(parts[::2], parts[1::2], strict=True) if re.search(name, n)
            )
            spilled = sum(map(int, re.findall(r"(\d+) bytes spill", text)))
            resources[key] = int(re.findall(r"Used (\d+) registers", text)[0]), spilled
        if file in ("lattice", "occupancy"):
            code = subprocess.run(
                [tool("nvdisasm"), "-c", cubin], capture_output=True, text=True, check=True
            ).stdout
            parts = re.split(r"\.section\s+\.text\.(\w+)", code)[1:]
            for key, name in kernels:
                (text,) = (t for n, t in zip(parts[::2], parts[1::2], strict=True) if name in n)
                if file == "occupancy":
                    instructions[key] = of_a_window(text)
                else:
                    instructions[key] = of_a_frame(text, tile=key[2])
    return resources, instructions


def of_a_frame(assembly, tile):
    """Instructions of a turn, which is the smallest loop with a barrier and with shuffles, for each
    of its frames. Loops in it are of short tiles and not counted, but for one over 8 frames."""
    code, loops = code_and_loops(assembly)
    sweeps = [x for x in loops if count(code, x, "SHFL.UP") and count(code, x, "BAR.SYNC")]
    turn = min(sweeps, key=lambda x: x[1] - x[0])
    total = turn[1] - turn[0]
    for loop in loops:
        if loop != turn and turn[0] <= loop[0] and loop[1] <= turn[1]:
            times = tile / 8 if count(code, loop, "SHFL.UP") >= 16 else 0
            total += (loop[1] - loop[0]) * (times - 1)
    return total / tile


def of_a_window(assembly):
    """Those of a window's chunk, for each of its frames: of the smallest loop with the shuffles of
    7 frames of alpha and of beta. Loops in it are of short chunks."""
    code, loops = code_and_loops(assembly)
    windows = [x for x in loops if count(code, x, "SHFL.UP") >= 2 * 2 * (CHUNK - 1)]
    window = min(windows, key=lambda x: x[1] - x[0])
    short = [x for x in loops if window[0] <= x[0] and x[1] <= window[1] and x != window]
    return (window[1] - window[0] - sum(x[1] - x[0] for x in short)) / CHUNK


def count(code, loop, word):
    return sum(word in x for x in code[slice(*loop)])


def code_and_loops(assembly):
    """A kernel's instructions, and where loops begin and end in it."""
    code, labels, loops = [], {}, []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        if instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", instruction[1])
            if target and target[1] in labels:
                loops.append((labels[target[1]], len(code) + 1))
            code.append(instruction[1])
    return code, loops


# ---- the table ---------------------------------------------------------------------------------


def measured():
    """Microseconds on an H200 of (shape, what, kernel); kernel "all" is the whole."""
    text = RESULTS.read_text() if RESULTS.is_file() else ""
    loops = r"^\| ([\d ]+) \| float32 \| (loss\S*) \| (\S+) \|"
    profiles = r"^\| ([\d ]+) (loss\S*) \| [^|]*\| (\w+)_kernel \| (\S+) \|"
    found = {(*x[:2], "all"): float(x[2]) for x in re.findall(loops, text, re.MULTILINE)}
    found |= {x[:3]: float(x[3]) for x in re.findall(profiles, text, re.MULTILINE)}
    return found


def main():
    resources, instructions = {}, INSTRUCTIONS
    if tool("nvcc") and tool("nvdisasm"):
        with tempfile.TemporaryDirectory() as folder:
            resources, instructions = compiled(folder)
    else:
        print("no nvcc or no nvdisasm: registers and instructions are the bounds\n")
    missed = [f"{key} spills {n} bytes" for key, (_, n) in resources.items() if n > 0]
    for key, (used, _) in resources.items():
        most = REGISTERS[key[0] if isinstance(key[0], str) and len(key) == 2 else key]
        missed += [f"{key} has {used} registers, bound {most}"] if used > most else []
    for key, n in instructions.items():
        missed += [f"{key}: {n:.1f} instructions"] if n > INSTRUCTIONS[key] else []
    known = measured()
    show("T, B, V, L", "what", "kernel", "instructions", "MB read", "MB written", "registers",
         "blocks", "waves", "H100", "H200", "floor", "measured")  # fmt: skip
    show(*["---"] * 13)
    for shape in SHAPES:
        for training in (False, True):
            name, what = " ".join(map(str, shape)), "loss+grad" if training else "loss"
            total, moved = {"H100": 0.0, "H200": 0.0}, 0
            for k in launches(shape, training, instructions):
                used = (
                    resources[k.key][0] if resources else REGISTERS.get(k.key) or REGISTERS[k.name]
                )
                room = blocks_at_once(k, used)
                times = {device: microseconds(k, used, device) for device in total}
                total = {device: total[device] + times[device] for device in total}
                moved += k.read + k.written
                show(name, what, k.name, instructions.get(k.key, ""), k.read / 1e6, k.written / 1e6,
                     used, room, k.blocks / room / PROCESSORS, *times.values(), "",
                     known.get((name, what, k.name), ""))  # fmt: skip
            bound = MICROSECONDS[shape][training]
            missed += [f"{name} {what}: {total['H200']:.1f} us"] if total["H200"] > bound else []
            if training and moved > GIGABYTES.get(shape, 1e9) * 1e9:
                missed += [f"{name} {what}: {moved / 1e9:.2f} GB"]
            show(name, what, "all", "", moved / 1e6, "", "", "", "", *total.values(),
                 floor(shape, training), known.get((name, what, "all"), ""))  # fmt: skip
    print("\n" + "\n".join(f"over its bound: {x}" for x in missed) if missed else "\nwithin bounds")
    return 1 if missed else 0


def show(*cells):
    print("| " + " | ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in cells) + " |")


if __name__ == "__main__":
    from .. import no_options

    no_options("gpu.paper", __doc__)
    sys.exit(main())

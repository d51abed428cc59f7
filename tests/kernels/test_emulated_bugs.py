# SPDX-License-Identifier: Apache-2.0
"""The sanitizers on the emulated CUDA kernels, and whether the tests would notice a bug in them."""

import subprocess
import sys

import numpy as np
import pytest
from test_sanitized import ADDRESSES, address_objects, compile_to

from support import emulated
from support.emulated_problems import check, check_product, directions_like, wrong_problems
from support.runs import ALL, only_all

pytestmark = emulated.NEEDED


@only_all
@pytest.mark.slow
def test_no_input_makes_a_kernel_leave_its_arrays(tmp_path):
    program = tmp_path / "sanitized"
    sanitizers = ["-fsanitize=address", *(["-fsanitize=undefined"] if ALL else [])]
    # In `make test` it takes longer to optimise the program than to run it.
    flags = [*emulated.FLAGS, "-fno-trapping-math", "-O1" if ALL else "-O0", "-g1", *sanitizers]
    compile_to(
        tmp_path / "o", *flags, "-fno-sanitize-recover=all", f"-I{emulated.EMULATOR}",
        "-c", emulated.SOURCES / "sanitized_cuda.cpp",
    )  # fmt: skip
    # The CPU kernels are what is compared with: test_sanitized.py is for their own faults.
    compile_to(program, *ADDRESSES, tmp_path / "o", *address_objects().values())
    rounds = 40 if ALL else 3
    result = subprocess.run([program, str(rounds)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert result.stdout == f"{rounds} rounds\n"


BUGS = {
    "copies are not waited for": ("feed.cuh", "copy_wait<kAhead - 1>();", ""),
    "the copies of a turn are not waited for": (
        "feed.cuh",
        "start(turn);\n      wait();",
        "start(turn);",
    ),
    "tiles are copied to where others are worked on": (
        "feed.cuh",
        "copied = 0, slot = 0,",
        "copied = 0, slot = 1,",
    ),
    "the states where the recursions meet are those of a tile later": (
        "sweep.cuh",
        "if (first == half) leave(at, used, k);",
        "if (first == half + kTile) leave(at, used, k);",
    ),
    "warps do not wait for their left neighbour": (
        "strip.cuh",
        "      barrier<1>(threads);",
        "      __syncwarp();",
    ),
    "the edge is taken after the frame": (
        "sweep.cuh",
        "edge_out.store_if(tile.goes_out, 2 * d, at[kPairs - 1].label);",
        "edge_out.store_if(tile.goes_out, 2 * d, emit(at[0], now.blank, now.label[0]).label);",
    ),
    "nobody waits for the sweeps": (
        "lattice.cu",
        "  if (both)\n    __syncthreads();",
        "  if (both)\n    __syncwarp();",
    ),
    "the block that ends first decides": (
        "lattice.cu",
        "blocks, 2 * a.strips);",
        "blocks, 1);",
    ),
    "a lane's second pair sees the first one after the frame": (
        "sweep.cuh",
        "at[i > 0 ? i - 1 : 0].label",
        "before[i > 0 ? i - 1 : 0].label",
    ),
    "alpha has too few pairs to its left": (
        "chunk.cuh",
        "first - kChunk + 2 * lane_index();",
        "first - (kChunk - 2) + 2 * lane_index();",
    ),
    "beta has one pair too few to its right": (
        "chunk.cuh",
        "count - first - (kWindow - 1)",
        "count - first - (kWindow - 2)",
    ),
    "a chunk begins with the states of another": (
        "chunk.cuh",
        "ws.states_of(recursion, index)",
        "ws.states_of(recursion, index ^ 1)",
    ),
    "alpha is kept after its emission": (
        "sweep.cuh",
        "== kAlpha, state + i, before[i].blank, before[i].label);",
        "== kAlpha, state + i, at[i].blank, at[i].label);",
    ),
    "a row is worked on before all windows are": (
        "occupancy.cu",
        "      }\n      __syncthreads();\n    };",
        "      }\n    };",
    ),
    "corrections are read after the row was overwritten": (
        "gradient.cu",
        "    group_barrier<G>();\n  }\n  transform",
        "  }\n  transform",
    ),
    "corrections are overwritten": (
        "gradient.cu",
        "  group_barrier<G>();\n  for_each_column",
        "  for_each_column",
    ),
    "equal labels are not added up": ("occupancy.cu", "i >= 0; i = next_of(i))", "i >= 0; i = -1)"),
    "a product has the softmax of another row": (
        "hvp.cu",
        "directed.shift = in.rows[2 * r],",
        "directed.shift = in.rows[0],",
    ),
    "a product forgets the softmax's mean": (
        "hvp.cu",
        "directed.mean = of_softmax - (directed.centre - base);",
        "directed.mean = 0;",
    ),
    "the derivative of an emission is forgotten": (
        "hvp.cu",
        "y.e == kDead ? F(0) :",
        "y.e != kDead ? F(0) :",
    ),
    "a product is written before its row is": (
        "hvp.cu",
        "  group_barrier<G>();\n  if (!alive) {",
        "  if (!alive) {",
    ),
    "a class has the emission of another": (
        "labels.cuh",
        "ws.column[k] = place_of_class(ws.value[k], blank);",
        "ws.column[k] = ws.value[k];",
    ),
    "a class has the softmax of another": (
        "occupancy.cu",
        "emissions + place_of_class(v, a.blank)",
        "emissions + v",
    ),
    "a strip waits for the one before the last": (
        "feed.cuh",
        "stamp_of(number - 1)",
        "stamp_of(number - 2)",
    ),
    "a strip waits for itself": ("feed.cuh", "stamp_of(number - 1)", "stamp_of(number)"),
    "edges go to the frame after": (
        "feed.cuh",
        "outgoing[slot_of(j)][lane_index()]",
        "outgoing[slot_of(j)][max_of(lane_index() - 1, 0)]",
    ),
    "edges are passed on a turn early": (
        "feed.cuh",
        "turn > warp) pass_on(turn - 1 - warp);",
        "turn >= warp) pass_on(turn - warp);",
    ),
    "every skip is allowed": (
        "labels.cuh",
        "value[k] = label,",
        "value[k] = label + int(i),",
    ),
}


def test_bugs_have_a_place_in_the_source():
    emulated.assert_each_has_a_place(BUGS)


@only_all
@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, tmp_path):
    result = emulated.run_alone(__file__, emulated.planted(tmp_path, *BUGS[bug]))
    assert result.returncode != 0
    assert "AssertionError" in result.stderr or "emulator: block" in result.stderr


@pytest.mark.slow
@only_all
def test_nothing_is_caught_where_no_bug_is(tmp_path):
    result = emulated.run_alone(__file__, emulated.sound(tmp_path / "emulated.so"))
    assert result.returncode == 0, result.stderr


if __name__ == "__main__":
    kernels = emulated.load(sys.argv[1])
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(1, 40, (2, 70)).astype(np.int32))
    acts = rng.normal(size=(150, 2, 700)).astype(np.float32)
    problem = acts, labels, np.array([150, 130], np.int32)
    # Few frames for labels that all differ from their neighbours: paths advance at almost each.
    labels = (np.arange(2 * 70) % 7).reshape(2, 70).astype(np.int32)
    tight = acts[:80, :, :8], labels + (labels >= 4), np.array([80, 78], np.int32)
    check(kernels.solve(*tight, blank=4), *tight, blank=4)
    labels = (1 + np.arange(140) % 8)[None].astype(np.int32)
    long = acts[:, :1, :9], labels, np.array([149], np.int32)
    for seed in range(2):  # two strips, a block each
        check(kernels.solve(*long, seed=seed), *long)
    for seed in range(6):
        pairs = {"multiprocessors": 1 + 131 * (seed % 2)}  # two a lane, or one
        check(kernels.solve(*problem, seed=seed, in_place=True, **pairs), *problem)
        check(kernels.solve(*wrong_problems(), seed=seed), *wrong_problems())
        directions = directions_like(acts)
        check_product(kernels.hvp(*problem, directions, seed=seed), *problem, directions)

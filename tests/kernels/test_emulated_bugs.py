# SPDX-License-Identifier: Apache-2.0
"""The sanitizers on the emulated CUDA kernels, and whether the tests would notice a bug in them."""

import subprocess
import sys

import numpy as np
import pytest
from test_sanitized import ADDRESSES, address_objects, compile_to

from support import emulated
from support.emulated_problems import check, check_product, directions_like, wrong_problems
from support.runs import only_all

pytestmark = emulated.NEEDED


@only_all
@pytest.mark.slow
def test_no_input_makes_a_kernel_leave_its_arrays(tmp_path):
    program = tmp_path / "sanitized"
    flags = [*emulated.FLAGS, "-fno-trapping-math", "-O1", "-g1", "-fsanitize=address,undefined"]
    compile_to(
        tmp_path / "o", *flags, "-fno-sanitize-recover=all", f"-I{emulated.EMULATOR}",
        "-c", emulated.SOURCES / "sanitized_cuda.cpp",
    )  # fmt: skip
    # The CPU kernels are what is compared with: test_sanitized.py is for their own faults.
    compile_to(program, *ADDRESSES, tmp_path / "o", *address_objects().values())
    rounds = 15
    result = subprocess.run([program, str(rounds)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert result.stdout == f"{rounds} rounds\n"


BUGS = {
    "copies are not waited for": (
        "feed.cuh",
        "copy_wait<kAhead - 1>();",
        "if (!BUG) copy_wait<kAhead - 1>();",
    ),
    "the copies of a turn are not waited for": (
        "feed.cuh",
        "start(turn);\n      wait();",
        "start(turn);\n      if (!BUG) wait();",
    ),
    "tiles are copied to where others are worked on": (
        "feed.cuh",
        "copied = 0, slot = 0,",
        "copied = 0, slot = BUG,",
    ),
    "the states where the recursions meet are those of a tile later": (
        "sweep.cuh",
        "if (first == half) leave(at, used, k);",
        "if (first == half + BUG * kTile) leave(at, used, k);",
    ),
    "warps do not wait for their left neighbour": (
        "strip.cuh",
        "      barrier<1>(threads);",
        "      BUG ? __syncwarp() : barrier<1>(threads);",
    ),
    "the edge is taken after the frame": (
        "sweep.cuh",
        "edge_out.store_if(tile.goes_out, 2 * d, at[kPairs - 1].label);",
        "edge_out.store_if(tile.goes_out, 2 * d,\n"
        "BUG ? emit(at[0], now.blank, now.label[0]).label : at[kPairs - 1].label);",
    ),
    "nobody waits for the sweeps": (
        "lattice.cu",
        "  if (both)\n    __syncthreads();",
        "  if (both && !BUG)\n    __syncthreads();",
    ),
    "the block that ends first decides": (
        "lattice.cu",
        "blocks, 2 * a.strips);",
        "blocks, BUG ? 1 : 2 * a.strips);",
    ),
    "a lane's second pair sees the first one after the frame": (
        "sweep.cuh",
        "at[i > 0 ? i - 1 : 0].label",
        "(BUG ? before : at)[i > 0 ? i - 1 : 0].label",
    ),
    "alpha has too few pairs to its left": (
        "chunk.cuh",
        "first - kChunk + 2 * lane_index();",
        "first - (kChunk - 2 * BUG) + 2 * lane_index();",
    ),
    "beta has one pair too few to its right": (
        "chunk.cuh",
        "count - first - (kWindow - 1)",
        "count - first - (kWindow - 1 - BUG)",
    ),
    "a chunk begins with the states of another": (
        "chunk.cuh",
        "ws.states_of(recursion, index)",
        "ws.states_of(recursion, index ^ BUG)",
    ),
    "alpha is kept after its emission": (
        "sweep.cuh",
        "== kAlpha, state + i, before[i].blank, before[i].label);",
        "== kAlpha, state + i, before[i].blank, (BUG ? at : before)[i].label);",
    ),
    "a row is worked on before all windows are": (
        "occupancy.cu",
        "      }\n      __syncthreads();\n    };",
        "      }\n      if (!BUG) __syncthreads();\n    };",
    ),
    "corrections are read after the row was overwritten": (
        "gradient.cu",
        "    group_barrier<G>();\n  }\n  transform",
        "    if (!BUG) group_barrier<G>();\n  }\n  transform",
    ),
    "corrections are overwritten": (
        "gradient.cu",
        "  group_barrier<G>();\n  for_each_column",
        "  if (!BUG) group_barrier<G>();\n  for_each_column",
    ),
    "equal labels are not added up": (
        "occupancy.cu",
        "i >= 0; i = next_of(i))",
        "i >= 0; i = BUG ? -1 : next_of(i))",
    ),
    "a product has the softmax of another row": (
        "hvp.cu",
        "directed.shift = in.rows[2 * r],",
        "directed.shift = in.rows[BUG ? 0 : 2 * r],",
    ),
    "a product forgets the softmax's mean": (
        "hvp.cu",
        "directed.mean = of_softmax - (directed.centre - base);",
        "directed.mean = BUG ? 0 : of_softmax - (directed.centre - base);",
    ),
    "the derivative of an emission is forgotten": (
        "hvp.cu",
        "y.e == kDead ? F(0) :",
        "(BUG ? y.e != kDead : y.e == kDead) ? F(0) :",
    ),
    "a product is written before its row is": (
        "hvp.cu",
        "  group_barrier<G>();\n  if (!alive) {",
        "  if (!BUG) group_barrier<G>();\n  if (!alive) {",
    ),
    "a class has the emission of another": (
        "labels.cuh",
        "ws.column[k] = place_of_class(ws.value[k], blank);",
        "ws.column[k] = BUG ? ws.value[k] : place_of_class(ws.value[k], blank);",
    ),
    "a class has the softmax of another": (
        "occupancy.cu",
        "emissions + place_of_class(v, a.blank)",
        "emissions + (BUG ? v : place_of_class(v, a.blank))",
    ),
    "a strip waits for the one before the last": (
        "feed.cuh",
        "stamp_of(number - 1)",
        "stamp_of(number - 1 - BUG)",
    ),
    "a strip waits for itself": (
        "feed.cuh",
        "has_stamp(coming.e, stamp);",
        "has_stamp(coming.e, BUG ? stamp_of(number) : stamp);",
    ),
    "edges go to the frame after": (
        "feed.cuh",
        "outgoing[slot_of(j)][lane_index()]",
        "outgoing[slot_of(j)][max_of(lane_index() - BUG, 0)]",
    ),
    "edges are passed on a turn early": (
        "feed.cuh",
        "turn > warp) pass_on(turn - 1 - warp);",
        "turn > warp - BUG) pass_on(turn - 1 + BUG - warp);",
    ),
    "every skip is allowed": (
        "labels.cuh",
        "value[k] = label,",
        "value[k] = label + int(i * BUG),",
    ),
}


def test_bugs_have_a_place_in_the_source(tmp_path):
    emulated.assert_each_has_a_place(tmp_path, BUGS)


@only_all
@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug):
    emulated.assert_caught(__file__, BUGS, bug)


@pytest.mark.slow
@only_all
def test_nothing_is_caught_where_no_bug_is():
    emulated.assert_nothing_caught(__file__, BUGS)


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

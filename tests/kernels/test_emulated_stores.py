# SPDX-License-Identifier: Apache-2.0
"""All CUDA kernels where a store is seen by other threads only after what orders it, by the
emulator: a __syncwarp in the warp, a barrier in the block, a fence in other blocks."""

import sys

import numpy as np
import pytest

from support import emulated
from support.emulated_problems import FEW_WARPS
from support.results import assert_same_bits
from support.runs import only_all, sweep

pytestmark = emulated.NEEDED

# T, V, L: both directions in a block; a block each, of several warps; strips, one after another
# where there is little shared memory, or together; a warp to a row, or a block.
SHAPES = {
    "dense": (25, 9, 20),
    "warps": (90, 90, 70),
    "strips": (160, 30, 140),
    "together": (150, 30, 129),
    "compact": (9, 700, 3),
    "block": (5, 2600, 3),
}


def options_for(name, size=4):
    """`size`: bytes of a number."""
    few = {"shared": FEW_WARPS * (size // 4), "multiprocessors": 1}
    return few if name == "strips" else {}


def assert_same_results(kernels, expected, name, dtype=np.float32, seed=1, **options):
    """Of every kernel: loss, training, tangents, a gradient in the place of acts, a product."""
    T, V, L = SHAPES[name]
    rng = np.random.default_rng(T)
    acts, directions = (rng.normal(size=(T, 3, V)).astype(dtype) for _ in range(2))
    acts[3, 1] = np.nan
    labels = rng.integers(1, V, (3, L)).astype(np.int32)
    labels[:, 1] = labels[:, 0]
    labels[0, T // 2 :] = labels[1, T // 3 :] = -1
    problem = acts, labels, np.array([T, T - 1, T], np.int32)

    def results(of, **options):
        answer = of.solve(*problem, directions=directions, in_place=True, **options)
        kept = answer.rows, answer.columns
        product = of.hvp(*problem, directions, kept=kept, **options)
        return answer.alone, answer.cost, *kept, answer.gradient, answer.tangent, product

    right = results(expected)
    assert np.isfinite(right[0][2])  # the sequence with all its labels has an alignment
    for found, wanted in zip(results(kernels, seed=seed, **options), right, strict=True):
        assert_same_bits(found, wanted)


@pytest.mark.parametrize("dtype", sweep([np.float32, np.float64], [np.float32]))
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "strips"])
@only_all
def test_what_one_thread_stores_is_ordered_before_another_reads_it(name, dtype):
    kernels = emulated.kernels_that_buffer_stores()
    for seed in sweep((1, 2), (1,)):
        assert_same_results(kernels, emulated.kernels(), name, dtype, seed)


@pytest.mark.parametrize(
    ("name", "dtype"),
    sweep(
        [("strips", np.float32), ("warps", np.float32), ("warps", np.float64)],
        [("strips", np.float32)],
    ),
)
@only_all
def test_strips_pass_their_edges_on_in_order(name, dtype):
    kernels = emulated.kernels_that_buffer_stores()
    options = options_for("strips", np.dtype(dtype).itemsize)
    assert_same_results(kernels, emulated.kernels(), name, dtype, **options)


VOTE = "__ballot_sync(kAllLanes, 1);"  # lanes wait for each other, but no store is ordered
BUGS = {
    "rows are worked on by warps that only vote": (
        "occupancy.cu",
        "      }\n      __syncthreads();\n    };",
        f"      }}\n      if (BUG) {VOTE} else __syncthreads();\n    }};",
    ),
    "beta reads what alpha has left after a vote": (
        "chunk.cuh",
        "    });\n    __syncwarp();",
        f"    }});\n    if (BUG) {VOTE} else __syncwarp();",
    ),
    "corrections wait for a vote": (
        "gradient.cu",
        "  group_barrier<G>();\n  for_each_column",
        f"  if (BUG) {VOTE} else group_barrier<G>();\n  for_each_column",
    ),
    "warps do not wait for their left neighbour": (
        "strip.cuh", "barrier<1>(threads);", "BUG ? __syncwarp() : barrier<1>(threads);",
    ),
    "nobody waits for the sweeps": (
        "lattice.cu",
        "  if (both)\n    __syncthreads();",
        "  if (both && !BUG)\n    __syncthreads();",
    ),
}  # fmt: skip


def test_bugs_have_a_place_in_the_source(tmp_path):
    emulated.assert_each_has_a_place(tmp_path, BUGS)


@pytest.mark.slow
@only_all
@pytest.mark.parametrize("bug", BUGS)
def test_stores_that_nothing_orders_are_caught(bug):
    emulated.assert_caught(__file__, BUGS, bug, buffers_stores=True)


@pytest.mark.slow
@only_all
def test_nothing_is_caught_where_no_bug_is():
    emulated.assert_nothing_caught(__file__, BUGS, buffers_stores=True)


if __name__ == "__main__":
    kernels = emulated.load(sys.argv[1])
    for name in SHAPES:
        for seed in range(3):
            assert_same_results(kernels, emulated.kernels(), name, seed=seed, **options_for(name))

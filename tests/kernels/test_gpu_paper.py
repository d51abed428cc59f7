# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/gpu/paper.py takes for granted: how kernels are launched, and what they move."""

import numpy as np
import pytest
from test_cuda_build import compiled

from support import emulated
from support.paper import FILE, load
from support.runs import only_all

pytestmark = pytest.mark.skipif(FILE is None, reason="not in a source tree")
needs_compiler = pytest.mark.skipif(not emulated.COMPILER, reason="no C++ compiler")


@pytest.fixture(scope="module")
def paper():
    return load()


@needs_compiler
@pytest.mark.parametrize(
    "V_L", [(80, 12), (32, 30), (28, 40), (32, 100), (1024, 60), (10_000, 50), (5000, 100),
            (64, 800), (128, 200)],
)  # fmt: skip
def test_kernels_are_launched_as_the_table_has_it(paper, V_L):
    """With the classes and labels of its shapes. The labels need more frames than there are."""
    shape = T, B, V, L = 9, 2, *V_L
    labels, lengths = np.ones((B, L), np.int32), np.full(B, T, np.int32)
    kernels = emulated.kernels()
    kernels.solve(
        np.zeros((T, B, V), np.float32), labels, lengths, in_place=True,
        multiprocessors=paper.PROCESSORS,
    )  # fmt: skip
    expected = [k for training in (False, True) for k in paper.launches(shape, training)]
    assert kernels.last_launches().tolist() == [[k.blocks, k.threads, k.shared] for k in expected]


def test_the_table_shares_schedulers_where_the_launch_does(paper, monkeypatch):
    """A batch that has two pairs a lane."""
    kernels, (T, B, V, L) = emulated.kernels(), (3, 67, 3, 40)
    labels, lengths = np.ones((B, L), np.int32), np.full(B, T, np.int32)
    for multiprocessors in (133, 134):
        monkeypatch.setattr(paper, "PROCESSORS", multiprocessors)
        kernels.solve(
            np.zeros((T, B, V), np.float32), labels, lengths, in_place=True,
            multiprocessors=multiprocessors,
        )  # fmt: skip
        _, k = paper.launches((T, B, V, L), False)
        assert k.key[1] == (2 if multiprocessors == 133 else 1)
        assert kernels.last_launches()[1].tolist() == [k.blocks, k.threads, k.shared]


@needs_compiler
def test_emissions_and_states_are_as_large_as_the_table_has_them(paper):
    """What grows with frames times labels: 8 bytes of emissions, 4 of states for training."""

    def per_frame_and_label(operation):
        def size(T, L):
            return emulated.kernels().library.scratch_bytes(operation, 0, T, L)

        return (size(160, 160) - size(160, 80) - size(80, 160) + size(80, 80)) / 80**2

    assert [per_frame_and_label(operation) for operation in (0, 1)] == [8, 8 + 4]
    T, B, _, L = shape = (96, 7, 5000, 60)
    rows, lattice, occupancy, _ = paper.launches(shape, True)
    assert rows.written == T * B * (8 * (L + 1) + 8 + 8)  # sums; shift and scale
    assert lattice.written == 4 * T * B * (L + 1)
    assert occupancy.read == (4 + 8) * T * B * (L + 1)


def test_training_moves_less_than_3_gigabytes_at_the_largest_shape(paper):
    shape = 1600, 256, 128, 200
    kernels = paper.launches(shape, True)
    moved = {k.name: round((k.read + k.written) / 1e6) for k in kernels}
    assert moved == {"rows": 632, "lattice": 1171, "occupancy": 958, "gradient": 0}
    assert sum(moved.values()) * 1e6 < paper.GIGABYTES[shape] * 1e9


def test_a_number_over_its_bound_is_told_and_ends_with_1(paper, monkeypatch, capsys):
    """By the bounds on machine code, in its place."""
    monkeypatch.setattr(paper, "tool", lambda name: None)
    assert paper.main() == 0
    assert "within bounds" in capsys.readouterr().out
    monkeypatch.setitem(paper.GIGABYTES, (1600, 256, 128, 200), 2)
    monkeypatch.setitem(paper.MICROSECONDS, (200, 1, 32, 30), (5, 100))
    assert paper.main() == 1
    said = capsys.readouterr().out
    assert "over its bound: 1600 256 128 200 loss+grad: 2.76 GB" in said
    assert "over its bound: 200 1 32 30 loss: 9" in said
    assert said.count("over its bound") == 2


@only_all
@pytest.mark.slow
def test_the_compiled_kernels_are_within_bounds(paper, monkeypatch, capsys):
    if not (paper.tool("nvcc") and paper.tool("nvdisasm")):
        pytest.skip("no nvcc or no nvdisasm")
    compile_one = paper.compiled_file

    def of_this_run(file, folder):
        if file == "occupancy":
            return compile_one(file, folder)
        made = compiled(file, 90)
        return made / f"{file}.cubin", (made / "said").read_text()

    monkeypatch.setattr(paper, "compiled_file", of_this_run)
    assert paper.main() == 0
    assert "within bounds" in capsys.readouterr().out

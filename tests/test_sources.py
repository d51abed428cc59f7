# SPDX-License-Identifier: Apache-2.0
"""What can be read off the sources and what a compiler makes of them."""

import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import run

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "kernels"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++17", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]

pytestmark = pytest.mark.skipif(not KERNELS.is_dir(), reason="not in a source tree")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_no_instruction_set_leaks_into_functions_that_others_may_call(isa, tmp_path):
    """The linker may pick any weak symbol for everybody: one made for AVX-512 would be fatal."""
    built = run(
        COMPILER, *FLAGS, "-O3", "-fPIC", "-c", KERNELS / "cpu" / f"{isa}.cpp", "-o", tmp_path / "o"
    )
    assert built.returncode == 0, built.stderr
    symbols = run("nm", "-C", tmp_path / "o").stdout.splitlines()
    assert [s for s in symbols if re.search(" [WVu] ", s)] == []
    assert sum(" k" in s or "::k" in s for s in symbols if re.search(" [DRB] ", s)) == 1, symbols


# Which file may include which: knowledge flows one way.
INCLUDES = {
    "lattice.h": set(),
    "batch.h": {"lattice.h"},
    "scaled.h": {"lattice.h"},
    "emission.h": {"scaled.h"},
    "dual.h": {"scaled.h"},
    "recursion.h": {"scaled.h"},
    "decode.h": {"batch.h", "xla/ffi/api/ffi.h"},
    "cpu/lanes.h": {"emission.h"},
    "cpu/rows.inl": {"lanes.h"},
    "cpu/sweep.inl": {"dual.h", "recursion.h", "lanes.h"},
    "cpu/convert.inl": {"scaled.h", "task.h"},
    "cpu/stream.inl": {"arena.h", "convert.inl", "rows.inl"},
    "cpu/table.inl": {"rows.inl", "sweep.inl"},
    "cpu/frames.inl": {"arena.h", "convert.inl", "table.inl"},
    "cpu/lattice.inl": {"frames.inl"},
    "cpu/sequence.inl": {"lattice.inl", "stream.inl"},
    "cpu/product.inl": {"lattice.inl"},
    "cpu/kernels.inl": {"product.inl", "sequence.inl"},
    "cpu/arena.h": {"task.h"},
    "cpu/tested.h": set(),
    "cpu/task.h": {"lattice.h", "tested.h"},
    "cpu/dispatch.h": {"task.h"},
    "cpu/parallel.h": set(),
    "cpu/ctc.h": {"batch.h", "parallel.h", "task.h"},
    "cpu/ctc.cpp": {"ctc.h", "dispatch.h"},
    "cpu/ffi.cpp": {"ctc.h", "ffi.h", "decode.h"},
    "cuda/cell.h": {"dual.h"},
    "cuda/device.cuh": {"cell.h", "emulator.h"},
    "cuda/scratch.h": {"cell.h", "recursion.h"},
    "cuda/tuning.h": set(),
    "cuda/rows.cuh": {"batch.h", "emission.h", "device.cuh"},
    "cuda/labels.cuh": {"device.cuh", "scratch.h"},
    "cuda/sweep.cuh": {"device.cuh", "scratch.h"},
    "cuda/ctc.h": {"batch.h"},
    "cuda/kernels.h": {"ctc.h"},
    "cuda/rows.cu": {"rows.cuh", "kernels.h", "labels.cuh"},
    "cuda/lattice.cu": {"kernels.h", "sweep.cuh", "tuning.h"},
    "cuda/gradient.cu": {"kernels.h", "rows.cuh"},
    "cuda/product.cu": {"kernels.h", "labels.cuh", "rows.cuh"},
    "cuda/ctc.cpp": {"ctc.h", "kernels.h", "scratch.h"},
    "cuda/ffi.cpp": {"ctc.h", "ffi.h", "decode.h"},
}


@pytest.mark.parametrize("file", INCLUDES)
def test_a_kernel_file_knows_only_what_its_room_may_know(file):
    included = re.findall(r'#include "(?:\.\./)?([^"]+)"', (KERNELS / file).read_text())
    assert set(included) == INCLUDES[file]


IMPORTS = {
    "_kernels": {"__version__"},
    "_axes": set(),
    "_mesh": set(),
    "_shapes": set(),
    "_values": {"_shapes"},
    "_arguments": {"_mesh", "_shapes", "_values"},
    "_verdict": {"_mesh", "_values"},
    "_scaled": set(),
    "_problem": {"_axes"},
    "_lattice": {"_problem", "_scaled"},
    "_reference": {"_axes", "_lattice", "_problem"},
    "_lowering": {"_axes", "_kernels"},
    "_jet": set(),
    "_product": {"_jet", "_mesh"},
    "_define": {"_axes", "_jet", "_lowering", "_mesh"},
    "_sums": {"_axes", "_define", "_problem", "_product"},
    "_compact": {"_define", "_mesh", "_product", "_sums"},
    "_primitives": {"_compact", "_define", "_lowering", "_product", "_reference"},
    "_vocabulary": {"_arguments", "_compact", "_mesh", "_primitives"},
    "_check": {"_shapes", "_values", "_verdict", "_vocabulary"},
    "_loss": {"_arguments", "_primitives", "_shapes", "_vocabulary"},
    "_export": {"_lowering"},
    "_occupancy": {"_arguments", "_axes", "_primitives"},
}


@pytest.mark.parametrize("module", IMPORTS)
def test_a_module_knows_only_what_its_room_may_know(module):
    source = (ROOT / "jax_ctc" / f"{module}.py").read_text()
    lines = re.findall(r"^ *from \. import (.+)$", source, re.MULTILINE)
    names = {name.strip() for line in lines for name in line.split(",")}
    names |= set(re.findall(r"^ *from \.(\w+) import", source, re.MULTILINE))
    assert names == IMPORTS[module]


def test_modules_only_know_those_that_stand_before_them():
    modules = list(IMPORTS)
    assert set(modules) == {path.stem for path in (ROOT / "jax_ctc").glob("_[a-z]*.py")}
    for i, module in enumerate(modules):
        assert IMPORTS[module] - {"__version__"} <= set(modules[:i])


def test_no_flag_breaks_infinities_or_ties_a_build_to_its_machine():
    text = (ROOT / "CMakeLists.txt").read_text()
    code = "\n".join(line.split("#")[0] for line in text.splitlines())
    assert not re.search("fast-math|march=native|openmp|Ofast", code, re.IGNORECASE)

# SPDX-License-Identifier: Apache-2.0
"""What can be read off the sources and what a compiler makes of them."""

import ast
import os
import re
import shutil
from pathlib import Path

import pytest

from support.runs import ROOT, only_all, run

KERNELS = ROOT / "kernels"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++17", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]

pytestmark = pytest.mark.skipif(not KERNELS.is_dir(), reason="not in a source tree")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@only_all
def test_no_instruction_set_leaks_into_functions_that_others_may_call(isa, tmp_path):
    """The linker may pick any weak symbol for everybody: one made for AVX-512 would be fatal."""
    built = run(
        COMPILER,
        *FLAGS,
        "-O1",
        "-fPIC",
        "-c",
        KERNELS / "cpu" / "simd" / f"{isa}.cpp",
        "-o",
        tmp_path / "o",
    )
    assert built.returncode == 0, built.stderr
    symbols = run("nm", "-C", tmp_path / "o").stdout.splitlines()
    assert [s for s in symbols if re.search(" [WVu] ", s)] == []
    assert sum(" k" in s or "::k" in s for s in symbols if re.search(" [DRB] ", s)) == 1, symbols


# Which file may include which: knowledge flows one way.
INCLUDES = {
    "common/platform.h": set(),
    "common/problem.h": {"common/platform.h"},
    "common/batch.h": {"common/problem.h"},
    "common/scaled.h": {"common/platform.h"},
    "common/dual.h": {"common/scaled.h"},
    "common/occupancy.h": {"common/dual.h"},
    "common/dither.h": {"common/scaled.h"},
    "common/emission.h": {"common/dither.h"},
    "common/ffi_decode.h": {"common/batch.h", "xla/ffi/api/ffi.h"},
    "common/ffi_targets.h": {"common/ffi_decode.h"},
    "common/handlers.h": set(),
    "common/bindings.h": {"common/handlers.h"},
    "common/best_path.h": {"common/platform.h"},
    "common/recursion.h": {"common/problem.h", "common/scaled.h"},
    "cpu/tested.h": set(),
    "cpu/simd/interface.h": {"common/problem.h", "cpu/tested.h"},
    "cpu/simd/arena.h": {"cpu/simd/interface.h"},
    "cpu/simd/target.h": {"cpu/simd/interface.h"},
    "cpu/simd/half.h": {"common/scaled.h", "cpu/simd/interface.h"},
    "cpu/simd/lanes.h": {"common/emission.h", "cpu/simd/target.h"},
    "cpu/simd/exp.h": {"cpu/simd/lanes.h"},
    "cpu/simd/row_pieces.h": {"cpu/simd/half.h", "cpu/simd/target.h"},
    "cpu/simd/row_sums.h": {"cpu/simd/exp.h", "cpu/simd/row_pieces.h"},
    "cpu/simd/normaliser.h": {"cpu/simd/row_sums.h"},
    "cpu/simd/rows.h": {"cpu/simd/normaliser.h"},
    "cpu/simd/step.h": {"common/occupancy.h", "common/recursion.h", "cpu/simd/lanes.h"},
    "cpu/simd/quads.h": {"cpu/simd/lanes.h"},
    "cpu/simd/ratio_base.h": {"cpu/simd/quads.h"},
    "cpu/simd/dithered_ratios.h": {"cpu/simd/ratio_base.h"},
    "cpu/simd/class_table.h": {
        "cpu/simd/dithered_ratios.h",
        "cpu/simd/rows.h",
        "cpu/simd/step.h",
    },
    "cpu/simd/row_registers.h": {"cpu/simd/class_table.h"},
    "cpu/simd/sequence_rows.h": {
        "cpu/simd/arena.h",
        "cpu/simd/class_table.h",
        "cpu/simd/half.h",
    },
    "cpu/simd/emissions.h": {"cpu/simd/sequence_rows.h"},
    "cpu/simd/sweep.h": {"cpu/simd/emissions.h"},
    "cpu/simd/group_numbers.h": {"common/dual.h", "cpu/simd/class_table.h"},
    "cpu/simd/group_step.h": {"cpu/simd/arena.h", "cpu/simd/group_numbers.h"},
    "cpu/simd/group_products.h": {
        "cpu/simd/arena.h",
        "cpu/simd/group_numbers.h",
        "cpu/simd/step.h",
    },
    "cpu/simd/stored_beta.h": {"cpu/simd/group_step.h"},
    "cpu/simd/band.h": {"cpu/simd/stored_beta.h"},
    "cpu/simd/ratios.h": {
        "cpu/simd/group_step.h",
        "cpu/simd/row_registers.h",
        "cpu/simd/sequence_rows.h",
    },
    "cpu/simd/group_sweep.h": {
        "cpu/simd/band.h",
        "cpu/simd/sweep.h",
    },
    "cpu/simd/class_sums.h": {"cpu/simd/arena.h", "cpu/simd/class_table.h"},
    "cpu/simd/class_rows.h": {"cpu/simd/class_sums.h", "cpu/simd/group_products.h"},
    "cpu/simd/class_gradient.h": {"cpu/simd/class_rows.h", "cpu/simd/ratios.h"},
    "cpu/simd/residuals.h": {
        "cpu/simd/class_sums.h",
        "cpu/simd/group_products.h",
        "cpu/simd/sequence_rows.h",
    },
    "cpu/simd/forward.h": {
        "cpu/simd/class_gradient.h",
        "cpu/simd/group_sweep.h",
        "cpu/simd/residuals.h",
    },
    "cpu/simd/directed_emissions.h": {"cpu/simd/emissions.h"},
    "cpu/simd/directed_ratios.h": {"cpu/simd/ratios.h"},
    "cpu/simd/hvp_writer.h": {"cpu/simd/sequence_rows.h"},
    "cpu/simd/group_hvp.h": {
        "cpu/simd/class_rows.h",
        "cpu/simd/directed_ratios.h",
        "cpu/simd/group_sweep.h",
        "cpu/simd/hvp_writer.h",
    },
    "cpu/simd/hvp.h": {
        "cpu/simd/class_sums.h",
        "cpu/simd/directed_emissions.h",
        "cpu/simd/forward.h",
        "cpu/simd/group_hvp.h",
        "cpu/simd/hvp_writer.h",
        "cpu/simd/sweep.h",
    },
    "cpu/simd/slice_sums.h": {"cpu/simd/arena.h", "cpu/simd/half.h", "cpu/simd/rows.h"},
    "cpu/simd/top_class.h": {"cpu/simd/class_table.h"},
    "cpu/simd/best_classes.h": {"cpu/simd/arena.h", "cpu/simd/half.h", "cpu/simd/normaliser.h"},
    "cpu/simd/gradient.h": {"cpu/simd/arena.h", "cpu/simd/half.h", "cpu/simd/rows.h"},
    "cpu/simd/align_emissions.h": {
        "common/best_path.h",
        "cpu/simd/arena.h",
        "cpu/simd/class_table.h",
        "cpu/simd/half.h",
    },
    "cpu/simd/align.h": {"common/best_path.h", "cpu/simd/align_emissions.h"},
    "cpu/simd/table.h": {
        "cpu/simd/align.h",
        "cpu/simd/best_classes.h",
        "cpu/simd/forward.h",
        "cpu/simd/gradient.h",
        "cpu/simd/hvp.h",
        "cpu/simd/slice_sums.h",
        "cpu/simd/top_class.h",
    },
    "cpu/simd/avx2.cpp": {"cpu/simd/table.h", "cpu/simd/target.h"},
    "cpu/simd/avx512.cpp": {"cpu/simd/table.h", "cpu/simd/target.h"},
    "cpu/simd/baseline.cpp": {"cpu/simd/table.h"},
    "cpu/dispatch.h": {"cpu/simd/interface.h"},
    "cpu/bindings.cpp": {"common/bindings.h", "cpu/dispatch.h"},
    "cpu/parallel.h": set(),
    "cpu/ctc.h": {"common/batch.h", "cpu/parallel.h", "cpu/simd/interface.h"},
    "cpu/memory.h": {"common/problem.h", "cpu/simd/interface.h"},
    "cpu/labels.h": {"common/batch.h", "cpu/memory.h"},
    "cpu/schedule.h": {"cpu/ctc.h", "cpu/labels.h", "cpu/memory.h"},
    "cpu/corrections.h": {"cpu/labels.h", "cpu/simd/interface.h"},
    "cpu/scores.h": {"common/batch.h", "cpu/memory.h", "cpu/simd/half.h"},
    "cpu/sequence.h": {"cpu/labels.h", "cpu/memory.h"},
    "cpu/rows_ahead.h": {"cpu/dispatch.h", "cpu/memory.h", "cpu/schedule.h"},
    "cpu/ctc.cpp": {
        "cpu/corrections.h",
        "cpu/ctc.h",
        "cpu/dispatch.h",
        "cpu/labels.h",
        "cpu/memory.h",
        "cpu/rows_ahead.h",
        "cpu/schedule.h",
        "cpu/scores.h",
        "cpu/sequence.h",
    },
    "cpu/align.cpp": {
        "cpu/ctc.h",
        "cpu/dispatch.h",
        "cpu/labels.h",
        "cpu/memory.h",
        "cpu/rows_ahead.h",
        "cpu/schedule.h",
        "cpu/sequence.h",
    },
    "cpu/slice_sums.cpp": {"cpu/ctc.h", "cpu/dispatch.h", "cpu/memory.h", "cpu/schedule.h"},
    "cpu/top_class.cpp": {"cpu/ctc.h", "cpu/dispatch.h", "cpu/memory.h", "cpu/schedule.h"},
    "cpu/prefix_tree.h": set(),
    "cpu/beam.cpp": {
        "cpu/ctc.h",
        "cpu/dispatch.h",
        "cpu/memory.h",
        "cpu/prefix_tree.h",
        "cpu/schedule.h",
    },
    "cpu/cpuid.h": set(),
    "cpu/dispatch.cpp": {"cpu/cpuid.h", "cpu/dispatch.h"},
    "cpu/ffi.cpp": {"common/ffi_targets.h", "common/handlers.h", "cpu/ctc.h"},
    "cpu/parallel.cpp": {"cpu/parallel.h"},
    "cuda/ctc.h": {"common/batch.h"},
    "cuda/cell.h": {"common/dual.h"},
    "cuda/launchers.h": {"cuda/ctc.h"},
    "cuda/workspace.h": {"common/recursion.h", "cuda/cell.h"},
    "cuda/align_workspace.h": {"cuda/workspace.h"},
    "cuda/bindings.cpp": {"common/bindings.h", "cuda/align_workspace.h", "cuda/ctc.h"},
    "cuda/ctc.cpp": {
        "cuda/align_workspace.h",
        "cuda/ctc.h",
        "cuda/launchers.h",
        "cuda/workspace.h",
    },
    "cuda/nvidia/machine.cuh": {"cuda/cell.h"},
    # machine.cuh: that of nvcc or of the emulator, as the include path says.
    "cuda/launch.cuh": {"machine.cuh"},
    "cuda/numbers.cuh": {"machine.cuh"},
    "cuda/warp.cuh": {"machine.cuh"},
    "cuda/ffi.cpp": {"common/ffi_targets.h", "common/handlers.h", "cuda/ctc.h"},
    "cuda/rows.cuh": {
        "common/batch.h",
        "common/emission.h",
        "cuda/numbers.cuh",
        "cuda/warp.cuh",
        "cuda/workspace.h",
    },
    "cuda/gradient.cu": {"cuda/launch.cuh", "cuda/launchers.h", "cuda/rows.cuh"},
    "cuda/labels.cuh": {"cuda/warp.cuh", "cuda/workspace.h"},
    "cuda/hvp.cu": {"cuda/labels.cuh", "cuda/launch.cuh", "cuda/launchers.h", "cuda/rows.cuh"},
    "cuda/tuning.h": set(),
    "cuda/strip.cuh": {"cuda/warp.cuh", "cuda/workspace.h"},
    "cuda/feed.cuh": {"cuda/strip.cuh", "cuda/tuning.h"},
    "cuda/sweep.cuh": {"cuda/feed.cuh"},
    "cuda/lattice.cu": {
        "cuda/launch.cuh",
        "cuda/launchers.h",
        "cuda/numbers.cuh",
        "cuda/sweep.cuh",
        "cuda/tuning.h",
    },
    "cuda/chunk.cuh": {"common/occupancy.h", "cuda/warp.cuh", "cuda/workspace.h"},
    "cuda/products.cuh": {
        "common/batch.h",
        "cuda/chunk.cuh",
        "cuda/launch.cuh",
        "cuda/tuning.h",
    },
    "cuda/occupancy.cu": {
        "cuda/launch.cuh",
        "cuda/launchers.h",
        "cuda/products.cuh",
        "cuda/rows.cuh",
    },
    "cuda/rows.cu": {
        "cuda/labels.cuh",
        "cuda/launch.cuh",
        "cuda/launchers.h",
        "cuda/products.cuh",
        "cuda/rows.cuh",
    },
    "cuda/align_rows.cu": {
        "common/best_path.h",
        "cuda/align_workspace.h",
        "cuda/labels.cuh",
        "cuda/launch.cuh",
        "cuda/launchers.h",
        "cuda/rows.cuh",
    },
    "cuda/align_sweep.cuh": {
        "common/best_path.h",
        "cuda/align_workspace.h",
        "cuda/numbers.cuh",
        "cuda/warp.cuh",
    },
    "cuda/align.cu": {"cuda/align_sweep.cuh", "cuda/launch.cuh", "cuda/launchers.h"},
}


def included_by(file):
    """Names below kernels/ of its own files, others as they stand."""
    names = re.findall('#include "([^"]+)"', (KERNELS / file).read_text())
    paths = [Path(os.path.normpath(KERNELS / Path(file).parent / name)) for name in names]
    return {
        path.relative_to(KERNELS).as_posix() if path.is_file() and KERNELS in path.parents else name
        for name, path in zip(names, paths, strict=True)
    }


@pytest.mark.parametrize("file", INCLUDES)
def test_a_kernel_file_knows_only_what_its_room_may_know(file):
    assert included_by(file) == INCLUDES[file]


def test_kernel_files_only_know_those_that_stand_before_them():
    files = list(INCLUDES)
    sources = {".h", ".cpp", ".cu", ".cuh"}
    found = [path for path in KERNELS.rglob("*") if path.suffix in sources]
    assert set(files) == {path.relative_to(KERNELS).as_posix() for path in found}
    for i, file in enumerate(files):
        assert INCLUDES[file] & set(files) <= set(files[:i])


# A package stands for the module that it takes its names from.
IMPORTS = {
    "_gpus": set(),
    "_kernels": {"_gpus"},
    "_operands": set(),
    "_mesh": set(),
    "_results": set(),
    "_static": set(),
    "_arrays": {"_static"},
    "_shapes": {"_arrays", "_mesh", "_static"},
    "_values": {"_arrays", "_shapes", "_static"},
    "_arguments": {"_arrays", "_mesh", "_shapes", "_values"},
    "_verdict": {"_mesh", "_values"},
    "_reference.problem": {"_mesh", "_operands"},
    "_reference.scaled": set(),
    "_reference.emission": {"_reference.scaled"},
    "_reference.sweep": {"_reference.scaled"},
    "_reference.lattice": {
        "_reference.emission",
        "_reference.problem",
        "_reference.scaled",
        "_reference.sweep",
    },
    "_reference.batch": {"_operands"},
    "_reference.align": {"_reference.batch", "_reference.problem"},
    "_reference.ctc": {
        "_operands",
        "_reference.batch",
        "_reference.lattice",
        "_reference.problem",
    },
    "_reference.beam": {"_mesh", "_operands"},
    "_primitives.custom_call": {"_kernels", "_mesh", "_operands"},
    "_primitives.taylor": set(),
    "_primitives.family": {"_mesh", "_operands", "_primitives.custom_call", "_primitives.taylor"},
    "_primitives.zero_product": {"_mesh", "_primitives.family", "_primitives.taylor"},
    "_primitives.row_sums": {
        "_mesh",
        "_operands",
        "_primitives.custom_call",
        "_primitives.family",
        "_primitives.zero_product",
        "_reference.problem",
    },
    "_primitives.top_class": {
        "_mesh",
        "_operands",
        "_primitives.family",
        "_primitives.row_sums",
        "_primitives.zero_product",
    },
    "_primitives.few_classes": {
        "_mesh",
        "_operands",
        "_primitives.family",
        "_primitives.row_sums",
        "_primitives.zero_product",
    },
    "_primitives.ctc": {
        "_mesh",
        "_operands",
        "_primitives.family",
        "_primitives.few_classes",
        "_primitives.zero_product",
        "_reference",
    },
    "_primitives.beam": {"_primitives.family", "_reference"},
    "_primitives.align": {
        "_mesh",
        "_operands",
        "_primitives.family",
        "_primitives.few_classes",
        "_primitives.zero_product",
        "_reference",
    },
    "_primitives.tile_function": set(),
    "_primitives.tile_loops": {"_operands", "_primitives.tile_function"},
    "_primitives.tile_transformations": {"_primitives.tile_function"},
    "_primitives.tiles": {
        "_mesh",
        "_primitives.family",
        "_primitives.taylor",
        "_primitives.tile_function",
        "_primitives.tile_loops",
        "_primitives.tile_transformations",
    },
    "_primitives.wide_product": {"_mesh", "_primitives.family", "_primitives.taylor"},
    "_primitives.linear_sums": {
        "_mesh",
        "_primitives.family",
        "_primitives.few_classes",
        "_primitives.row_sums",
        "_primitives.tile_function",
        "_primitives.tiles",
        "_primitives.wide_product",
    },
    "_split_classes": {"_arguments", "_mesh", "_primitives", "_primitives.few_classes"},
    "_align": {"_arguments", "_arrays", "_primitives.align", "_results", "_static"},
    "_spans": {
        "_align",
        "_arrays",
        "_mesh",
        "_operands",
        "_primitives.top_class",
        "_primitives.zero_product",
        "_results",
        "_static",
    },
    "_loss": {"_arguments", "_arrays", "_primitives", "_split_classes", "_static"},
    "_linear": {
        "_arguments",
        "_arrays",
        "_loss",
        "_mesh",
        "_primitives.few_classes",
        "_primitives.linear_sums",
        "_primitives.tile_function",
        "_split_classes",
        "_static",
    },
    "_check": {"_arrays", "_linear", "_shapes", "_split_classes", "_values", "_verdict"},
    "_export": {"_primitives.custom_call"},
    "_occupancy": {"_arguments", "_arrays", "_operands", "_primitives", "_static"},
    "_greedy": {
        "_arguments",
        "_arrays",
        "_mesh",
        "_operands",
        "_primitives.top_class",
        "_primitives.zero_product",
        "_results",
        "_static",
    },
    "_beam": {"_arrays", "_greedy", "_primitives.beam", "_static"},
    "_error_rate": {"_arrays", "_greedy", "_mesh", "_results", "_values"},
    "compat._names": {"_shapes"},
}
PACKAGES = {"_primitives": "_primitives.ctc", "_reference": "_reference.ctc"}


def module_file(module):
    return (ROOT / "jax_ctc").joinpath(*module.split(".")).with_suffix(".py")


def imported_by(module):
    """Modules of jax_ctc, by their names below it."""
    found = set()
    for node in ast.walk(ast.parse(module_file(module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = module.split(".")[: -node.level] + (node.module or "").split(".")
            path = [part for part in base if part]
            if module_file(".".join(path)).is_file():
                found.add(".".join(path))
            else:
                found |= {".".join([*path, name.name]) for name in node.names}
    return found - {"__version__"}


@pytest.mark.parametrize("module", IMPORTS)
def test_a_module_knows_only_what_its_room_may_know(module):
    assert imported_by(module) == IMPORTS[module]


def test_modules_only_know_those_that_stand_before_them():
    modules = list(IMPORTS)
    paths = (ROOT / "jax_ctc").rglob("_[a-z]*.py")
    inner = [path for name in PACKAGES for path in (ROOT / "jax_ctc" / name).glob("[a-z]*.py")]
    assert {module_file(module) for module in modules} == {*paths, *inner}
    for i, module in enumerate(modules):
        known = {PACKAGES.get(name, name) for name in IMPORTS[module]}
        assert known <= set(modules[:i])


def test_no_flag_breaks_infinities_or_ties_a_build_to_its_machine():
    text = (ROOT / "CMakeLists.txt").read_text()
    code = "\n".join(line.split("#")[0] for line in text.splitlines())
    code = code.replace("-fno-fast-math", "")  # takes back what CXXFLAGS says
    assert not re.search("fast-math|march=native|openmp|Ofast", code, re.IGNORECASE)

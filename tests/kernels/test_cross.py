# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels on platforms that are not at hand: zig compiles for them, qemu runs ARM's code.

`.venv/bin/pip install --group cross` brings zig, and Debian's package qemu-user-static brings qemu.
"""

import importlib.util
import platform
import shutil
import sys
from collections import defaultdict

import jax
import numpy as np
import pytest
from test_sources import COMPILER, FLAGS, KERNELS, needs_compiler

from support.runs import ROOT, made_once, only_all, run

ZIG = [sys.executable, "-m", "ziglang"]
QEMU = {  # by architecture
    name: shutil.which(f"qemu-{name}-static") or shutil.which(f"qemu-{name}")
    for name in ("aarch64", "x86_64")
}
SETS = ("baseline", "avx2", "avx512")
OF_BATCHES = ("ctc", "align", "slice_sums", "top_class", "beam", "parallel", "dispatch", "ffi")
PARTS = [KERNELS / "cpu" / f"{name}.cpp" for name in OF_BATCHES]
PARTS += [KERNELS / "cpu" / "simd" / f"{name}.cpp" for name in SETS]

pytestmark = [
    only_all,
    pytest.mark.slow,
    pytest.mark.skipif(not KERNELS.is_dir(), reason="not in a source tree"),
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None,
        reason="no zig: `.venv/bin/pip install --group cross`",
    ),
]
needs_qemu = pytest.mark.skipif(not QEMU["aarch64"], reason="no qemu-aarch64")


def zig(*arguments, cwd=None):
    built = run(*ZIG, *arguments, cwd=cwd)
    assert built.returncode == 0, built.stderr[-4000:]


MAGIC = {  # how an object file begins
    "aarch64-linux-gnu.2.17": b"\x7fELF",
    "aarch64-macos.11.0": b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01",
    "x86_64-macos.11.0": b"\xcf\xfa\xed\xfe\x07\x00\x00\x01",
    "x86_64-windows-gnu": b"\x64\x86",
}


@pytest.mark.parametrize("target", MAGIC)
def test_every_source_compiles_for_another_platform(target, tmp_path):
    """All but the bindings, which need that platform's Python."""
    headers = ["-isystem", jax.ffi.include_dir()]
    for part in PARTS:
        file = tmp_path / f"{part.stem}.o"
        zig("c++", "-target", target, *FLAGS, "-O1", *headers, "-c", part, "-o", file)
        assert file.read_bytes().startswith(MAGIC[target])


def test_clang_cl_takes_the_options_that_cmake_gives_it(tmp_path):
    """An unknown option would be a warning there, and the kernels another program."""
    text = (ROOT / "CMakeLists.txt").read_text()
    assert 'set(CMAKE_CXX_FLAGS_RELEASE "${clang}-O3 -DNDEBUG")' in text
    assert "set(warnings /W4 -Wno-psabi)" in text
    (tmp_path / "x.cpp").write_text("double f(double x) { return __builtin_sqrt(x); }\n")
    ours = ["/clang:-O3", "-DNDEBUG", "/W4", "-Wno-psabi", "/clang:-fno-math-errno"]
    ours += ["/clang:-fno-trapping-math", "/WX"]
    cl = ["clang", "--driver-mode=cl", "--target=x86_64-pc-windows-msvc", "-std:c++17"]
    zig(*cl, *ours, "/c", "x.cpp", "/Fox.obj", cwd=tmp_path)
    assert (tmp_path / "x.obj").read_bytes().startswith(MAGIC["x86_64-windows-gnu"])


MAIN = ROOT / "tests" / "kernels" / "cross.cpp"
SOURCES = [MAIN, *(part for part in PARTS if part.stem in ("ctc", "parallel", "dispatch", *SETS))]


def solved(text):
    """The instruction set, and numbers by dtype and kind."""
    isa, *lines = text.splitlines()
    numbers = defaultdict(list)
    for line in lines:
        dtype, kind, number = line.split()
        numbers[dtype, kind].append(float.fromhex(number))
    return isa, {key: np.array(x) for key, x in numbers.items()}


def cross_compiled(architecture):
    """A program of cross.cpp without shared libraries, as qemu has none."""
    target = ["-target", f"{architecture}-linux-musl"]

    def make(path):
        zig("c++", *target, *FLAGS, "-O3", "-static", *SOURCES, "-o", path)

    return made_once(f"cross-{architecture}", make)


@needs_qemu
@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares ARM's numbers with x86-64's")
def test_arm_computes_the_costs_of_x86_to_the_bit(tmp_path):
    program = tmp_path / "here"
    built = run(COMPILER, *FLAGS, "-O3", "-pthread", *SOURCES, "-o", program)
    assert built.returncode == 0, built.stderr
    isa, here = solved(run(program, JAX_CTC_ISA="baseline").stdout)
    assert isa == "baseline"
    said = run(QEMU["aarch64"], cross_compiled("aarch64"))
    assert said.returncode == 0, said.stderr
    isa, arm = solved(said.stdout)
    assert isa == "baseline"
    assert here.keys() == arm.keys()
    for (dtype, kind), expected in here.items():
        found = arm[dtype, kind]
        if (dtype, kind) in (("f32", "cost"), ("f32", "loss")):
            np.testing.assert_array_equal(found, expected)
        elif kind == "gradient":
            most = np.abs(found - expected).max()
            print(f"{dtype} {kind}: {most:.1e}")
            assert most < (5e-7 if dtype == "f32" else 1e-14)
        else:
            print(f"{dtype} {kind}: {np.abs(found / expected - 1).max():.1e}")
            np.testing.assert_allclose(found, expected, rtol=1e-14)


MODELS = {"Nehalem": "baseline", "IvyBridge": "baseline", "Haswell": "avx2"}


@pytest.mark.skipif(not QEMU["x86_64"], reason="no qemu-x86_64")
@pytest.mark.parametrize("model", MODELS)
def test_a_build_by_zig_finds_the_instruction_set_of_the_processor(model):
    """Its runtime library has no __builtin_cpu_supports. qemu has no AVX-512."""
    said = run(QEMU["x86_64"], "-cpu", model, cross_compiled("x86_64"))
    assert said.returncode == 0, said.stderr
    assert solved(said.stdout)[0] == MODELS[model]

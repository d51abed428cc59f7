# SPDX-License-Identifier: Apache-2.0
"""Which instruction sets the kernels find on a machine."""

import platform
from pathlib import Path

import pytest
from test_sources import COMPILER, KERNELS, needs_compiler

from jax_ctc import _kernels
from support.runs import run

x86_64 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="CPUID is of x86-64"
)

AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512vl", "avx512dq", "avx512bw"}


@x86_64
def test_they_are_those_that_the_system_names():
    info = Path("/proc/cpuinfo")
    if not info.is_file() or _kernels.cpu is None:
        pytest.skip("no /proc/cpuinfo, or no compiled kernels")
    (line, *_) = (x for x in info.read_text().splitlines() if x.startswith("flags"))
    flags = set(line.split())
    expected = ["baseline"] + ["avx2"] * (flags >= AVX2) + ["avx512"] * (flags >= AVX512)
    assert _kernels.cpu.instruction_sets() == expected


# ecx of leaf 1, ebx of leaf 7, XCR0. FMA, XGETBV, AVX and F16C; AVX2; F, DQ, BW and VL.
LEAF1, WIDE, WIDEST = 0x38001000, 0x20, 0xC0030020
MACHINES = {
    "all": (LEAF1, WIDEST, 0xE7, "avx2 avx512"),
    "AVX2 alone": (LEAF1, WIDE, 0x7, "avx2"),
    "none": (0, 0, 0, ""),
    "no FMA": (LEAF1 & ~0x1000, WIDEST, 0xE7, ""),
    "no F16C": (LEAF1 & ~(1 << 29), WIDEST, 0xE7, ""),
    "no AVX2": (LEAF1, WIDEST & ~WIDE, 0xE7, ""),
    "no VL": (LEAF1, WIDEST & ~(1 << 31), 0xE7, "avx2"),
    "a system that saves XMM alone": (LEAF1, WIDEST, 0x3, ""),
    "a system that saves no ZMM": (LEAF1, WIDEST, 0x7, "avx2"),
    "a system that saves half of each ZMM": (LEAF1, WIDEST, 0x67, "avx2"),
}
PROGRAM = """
#include <cstdio>
#include <initializer_list>
#include "cpu/cpuid.h"
int main() {
  for (jax_ctc::Cpuid machine : {MACHINES})
    std::printf("%s%s\\n", machine.avx2() ? "avx2" : "", machine.avx512() ? " avx512" : "");
}
"""


@x86_64
@needs_compiler
@pytest.mark.skipif(not KERNELS.is_dir(), reason="not in a source tree")
def test_a_feature_counts_only_if_the_system_saves_its_registers(tmp_path):
    words = [f"jax_ctc::Cpuid{{{a:#x}, {b:#x}, {c:#x}}}" for a, b, c, _ in MACHINES.values()]
    (tmp_path / "program.cpp").write_text(PROGRAM.replace("MACHINES", ", ".join(words)))
    built = run(
        COMPILER, "-std=c++17", "-I", KERNELS, tmp_path / "program.cpp", "-o", tmp_path / "program"
    )
    assert built.returncode == 0, built.stderr
    said = run(tmp_path / "program").stdout.splitlines()
    assert dict(zip(MACHINES, said, strict=True)) == {
        name: expected for name, (*_, expected) in MACHINES.items()
    }

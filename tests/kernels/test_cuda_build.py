# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA kernels, and CMake of a machine with or without it. No GPU."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jaxlib
import pytest

import jax_ctc
from support.paper import load
from support.runs import ROOT, made_once, only_all, run, sweep

CUDA = ROOT / "kernels" / "cuda"
WHEELS = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"  # PyPI's nvidia-cuda-nvcc


def tool(name):
    places = [os.environ.get("PATH", ""), str(WHEELS)]
    places += [
        f"{os.environ[home]}/bin" for home in ("CUDA_HOME", "CUDA_PATH") if home in os.environ
    ]
    return shutil.which(name, path=os.pathsep.join(places))


NVCC, DISASSEMBLER, CMAKE = tool("nvcc"), tool("nvdisasm"), shutil.which("cmake")
FILES = ["rows", "lattice", "occupancy", "gradient", "hvp", "align_rows", "align"]
ARCHITECTURES = [80, 90, 100, 120]
# Lattice kernels: the loss and training with two pairs a lane, the same with one, a product.
LOOPS = {  # shuffles of a frame, frames of a tile
    "ScaledIfEELi2ELi8ELb0ELb0E": (2, 8), "ScaledIfEELi2ELi8ELb0ELb1E": (2, 8),
    "ScaledIfEELi1ELi8ELb0ELb1E": (2, 8), "ScaledIfEELi1ELi16ELb0ELb0E": (2, 16),
    "ScaledIfEELi1ELi16ELb0ELb1E": (2, 16), "DualIfEELi1ELi16ELb0ELb1E": (3, 16),
}  # fmt: skip
FRAMES = {  # instructions between a tile's first shuffle and its last, of a frame
    80: (64, 71, 37, 37, 38, 51), 90: (47, 52, 30, 30, 30, 44),
    100: (53, 46, 30, 30, 31, 44), 120: (67, 60, 37, 38, 38, 52),
}  # fmt: skip
INSTRUCTIONS = {  # of a frame with its share of a turn; 0.6 to 2 more than there are
    80: (89, 90, 42, 44, 44, 67), 90: (72, 73, 34, 34, 35, 58),
    100: (73.6, 73, 33, 35, 35, 58), 120: (86, 86, 41, 43, 43, 64),
}  # fmt: skip
# Of a thread. The lattice's kernels leave registers for their own blocks only (lattice.cu).
MOST_REGISTERS = {
    "lattice f": 168, "lattice d": 255, "occupancy f": 168, "occupancy d": 255,
    "rows d": 128, "rows f": 64, "align f": 168, "align d": 255,
}  # fmt: skip

pytestmark = pytest.mark.skipif(not CUDA.is_dir(), reason="not in a source tree")
needs_nvcc = pytest.mark.skipif(not NVCC, reason="no nvcc: no toolkit and no nvidia-cuda-nvcc")


each_file = pytest.mark.parametrize("file", sweep(FILES, ["occupancy"]))
each_architecture = pytest.mark.parametrize("architecture", sweep(ARCHITECTURES, [90]))


def compiled(file, architecture):
    """Where nvcc has left `file`.ptx and `file`.cubin, and what it said; compiled once in a run."""

    def compile_into(folder):
        folder.mkdir(exist_ok=True)
        built = run(
            NVCC, "-std=c++17", "--expt-relaxed-constexpr", "-I", CUDA / "nvidia",
            f"-arch=sm_{architecture}", "-cubin",
            "--keep", "--keep-dir", folder, "-Xptxas", "-v", CUDA / f"{file}.cu",
            "-o", folder / f"{file}.cubin",
        )  # fmt: skip
        assert built.returncode == 0, built.stderr[-4000:]
        (folder / "said").write_text(built.stderr)

    return made_once(f"{file}-{architecture}", compile_into)


def kernels_of(report):
    """ptxas's words on each kernel, by name: spilled bytes, stack, registers."""
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    return {name: tuple(map(int, numbers)) for name, *numbers in found}


@pytest.mark.slow
@needs_nvcc
@each_architecture
@each_file
def test_no_kernel_spills_or_takes_more_registers_than_planned(file, architecture):
    said = (compiled(file, architecture) / "said").read_text()
    assert "warning" not in said
    kernels = kernels_of(said)
    planned = {"rows": 12, "lattice": 8, "occupancy": 4, "gradient": 26, "hvp": 24}
    planned |= {"align_rows": 12, "align": 4}
    assert len(kernels) >= planned[file]
    for name, (stack, stored, loaded, registers) in kernels.items():
        assert (stack, stored, loaded) == (0, 0, 0), name
        kind = file if file in ("lattice", "occupancy", "align") else "rows"
        computed = "d" if re.search(r"_kernelI(NS_\d[A-Za-z]+I)?d", name) else "f"
        assert registers <= MOST_REGISTERS[f"{kind} {computed}"], name


@pytest.mark.slow
@needs_nvcc
@each_file
def test_no_sum_depends_on_the_order_of_threads(file):
    """No atomic operation on floats. One on integers counts which of two blocks ends last, and a
    barrier says so to all threads."""
    code = (compiled(file, 90) / f"{file}.ptx").read_text()
    atomics = set(re.findall(r"\b(?:atom|red)\.\S+", code))
    counts = {"atom.global.add.u32", "atom.add.u32", "red.or.pred"}
    assert atomics <= (counts if file == "lattice" else set())


def texts(assembly):
    """Of each kernel of a disassembled file, by its name."""
    parts = re.split(r"\.section\s+\.text\.(\w+)", assembly)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def instructions(text):
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", text)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.skipif(not DISASSEMBLER, reason="no nvdisasm (PyPI: nvidia-cuda-nvdisasm)")
@each_architecture
@only_all
def test_a_frame_of_the_lattice_is_few_instructions_and_no_exp_or_log(architecture):
    binary = compiled("lattice", architecture) / "lattice.cubin"
    kernels = texts(run(DISASSEMBLER, "-c", binary).stdout)
    bounds = zip(FRAMES[architecture], INSTRUCTIONS[architecture], strict=True)
    for (name, (each, tile)), (most, of_turn) in zip(LOOPS.items(), bounds, strict=True):
        (text,) = (text for kernel, text in kernels.items() if name in kernel)
        # All of a turn: compilers move what a tile costs in between its frames.
        needed = load().of_a_frame(text, tile)
        assert needed <= of_turn, f"{needed:.1f} instructions a frame, of a turn"
        code = instructions(text)
        shuffles = [i for i, line in enumerate(code) if re.search(r"\bSHFL\.UP\b", line)]
        # 8 frames, unrolled; a loop for the short tile before or after them.
        frames = max(
            (shuffles[i : i + 8 * each] for i in range(len(shuffles) - 8 * each + 1)),
            key=lambda few: few[0] - few[-1],
        )
        loop = code[frames[0] : frames[-1]]
        assert len(loop) / 7.5 <= most, f"{len(loop) / 7.5:.1f} instructions a frame"
        forbidden = r"\b(MUFU|LDL|STL|CALL|BAR|LDG|I2F|F2I|DFMA|DMUL|BRA.DIV)\b"
        assert [line for line in loop if re.search(forbidden, line)] == []


@pytest.mark.slow
@needs_nvcc
@pytest.mark.skipif(not DISASSEMBLER, reason="no nvdisasm (PyPI: nvidia-cuda-nvdisasm)")
@each_architecture
@only_all
def test_a_frame_of_an_alignment_is_few_instructions(architecture):
    """The frames of a tile, of floats: two shuffles each."""
    binary = compiled("align", architecture) / "align.cubin"
    kernels = texts(run(DISASSEMBLER, "-c", binary).stdout)
    (code,) = (
        instructions(text) for kernel, text in kernels.items() if "align_kernelIfE" in kernel
    )
    shuffles = [i for i, line in enumerate(code) if re.search(r"\bSHFL\.UP\b", line)]
    loop = [line for line in code[shuffles[0] : shuffles[14]] if line.strip() != "NOP"]
    assert len(loop) / 7 <= 54, f"{len(loop) / 7:.1f} instructions a frame"
    assert [line for line in loop if re.search(r"\b(MUFU|LDL|STL|CALL|BAR|LDG)\b", line)] == []


@needs_nvcc
def test_the_module_needs_no_driver_to_be_imported():
    if not jax_ctc.build_info()["cuda"]:
        pytest.skip("installed without CUDA kernels")
    from jax_ctc import _cuda

    libraries = run("ldd", _cuda.__file__).stdout
    assert "libc.so" in libraries
    assert not re.search(r"libcuda|libcudart", libraries)
    assert set(_cuda.targets()) == {"jax_ctc_align_v2"} | {
        f"jax_ctc_{op}{of}_v1"
        for op in ("loss", "forward", "tangent", "cotangent", "hvp")
        for of in ("", "_of_scores")
    }


# ---- with and without a compiler ---------------------------------------------------------------


def nvcc_that(folder, *lines):
    """A compiler of that name, which does what the lines of shell say."""
    folder.mkdir()
    (folder / "nvcc").write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / "nvcc").chmod(0o755)
    return folder / "nvcc"


def configure(build, *options, **environment):
    """CMake's first half."""
    pybind11 = pytest.importorskip("pybind11")
    defaults = {**os.environ, "JAX_CTC_CUDA": ""}  # `make test` may have been called with it
    environment = {**defaults, **{name: str(value) for name, value in environment.items()}}
    command = [
        CMAKE, "-S", ROOT, "-B", build, f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DXLA_FFI_INCLUDE_DIR={Path(jaxlib.__file__).parent / 'include'}", *options,
    ]  # fmt: skip
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )


needs_cmake = pytest.mark.skipif(not CMAKE, reason="no cmake")


@needs_cmake
def test_without_a_compiler_that_works_the_cpu_kernels_are_built_alone(tmp_path):
    broken = nvcc_that(tmp_path / "bin", "echo nv/target: no such file >&2", "exit 1")
    result = configure(tmp_path / "build", CUDACXX=broken)
    assert result.returncode == 0, result.stderr
    assert "no CUDA compiler works here, building the CPU kernels only" in result.stdout
    assert "nv/target: no such file" in result.stdout
    assert "nvidia-cuda-cccl" in result.stdout


@needs_cmake
def test_cuda_asked_for_without_a_compiler_is_an_error_that_says_what_to_do(tmp_path):
    result = configure(tmp_path, "-DJAX_CTC_CUDA=ON", CUDACXX=tmp_path / "nothing")
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "JAX_CTC_CUDA=ON, but no CUDA compiler works here. Install a CUDA toolkit" in message


@only_all
@needs_cmake
@needs_nvcc
def test_a_broken_compiler_does_not_hide_one_that_works(tmp_path):
    broken = nvcc_that(tmp_path / "bin", "exit 1")
    path = os.pathsep.join([str(broken.parent), str(Path(NVCC).parent), os.environ["PATH"]])
    result = configure(tmp_path / "build", PATH=path, CUDACXX="")
    assert result.returncode == 0, result.stderr
    assert f"{broken} does not build" in result.stdout
    assert "building CUDA kernels for 80-real;90-real;100-real;120 with" in result.stdout


@only_all
@needs_cmake
@needs_nvcc
def test_a_compiler_that_does_not_know_the_newest_gpus_builds_for_the_others(tmp_path):
    """No architectures are all, as `make JAX_CTC_CUDA=AUTO` asks for them."""
    old = nvcc_that(
        tmp_path / "bin", 'case "$*" in *_100*|*_120*) exit 1;; esac', f'exec {NVCC} "$@"'
    )
    result = configure(tmp_path / "build", "-DCMAKE_CUDA_ARCHITECTURES=", CUDACXX=old)
    assert result.returncode == 0, result.stderr
    assert "building CUDA kernels for 80-real;90 with" in result.stdout
    assert "JAX_CTC_CUDA=OFF in the environment leaves them out" in result.stdout


@needs_cmake
def test_the_environment_can_switch_the_cuda_kernels_off(tmp_path):
    result = configure(tmp_path, JAX_CTC_CUDA="OFF")
    assert result.returncode == 0, result.stderr
    assert "CUDA" not in result.stdout


@needs_cmake
@pytest.mark.parametrize("place", ["option", "environment"])
def test_an_unknown_value_of_JAX_CTC_CUDA_is_an_error(place, tmp_path):
    options = ["-DJAX_CTC_CUDA=MAYBE"] if place == "option" else []
    environment = {} if place == "option" else {"JAX_CTC_CUDA": "MAYBE"}
    result = configure(tmp_path, *options, **environment)
    assert result.returncode != 0
    assert "expected AUTO, ON or OFF, but got MAYBE" in " ".join(result.stderr.split())

# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels under the address, undefined-behaviour and thread sanitizers."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

import jax_ctc
from support.runs import ALL, ROOT, made_once, only_all, run

KERNELS = ROOT / "kernels"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++17", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math", "-O1", "-g1"]
FLAGS += ["-pthread", "-DJAX_CTC_TEST"]
# All of -fsanitize=undefined makes the compiler take twice as long as these parts of it do.
UNDEFINED = "alignment,bounds,float-cast-overflow,integer-divide-by-zero,return,shift,"
UNDEFINED += "signed-integer-overflow,unreachable"
FEWER = [f"-fsanitize=address,{UNDEFINED}", "-fno-sanitize-recover=all"]
ADDRESSES = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
if COMPILER and os.path.basename(COMPILER) == "g++":
    for flags in FEWER, ADDRESSES:  # calls of checks compile in two thirds of the time
        flags += ["--param", "asan-instrumentation-with-call-threshold=0"]
RACES = ["-fsanitize=thread"]
SETS = jax_ctc.build_info()["cpu_available"]
ONE_SET = SETS[min(1, len(SETS) - 1)]  # tables need 8 floats

pytestmark = [
    pytest.mark.skipif(not KERNELS.is_dir(), reason="not in a source tree"),
    pytest.mark.skipif(not COMPILER, reason="no C++ compiler"),
]


def compile_to(output, *arguments):
    built = run(COMPILER, *FLAGS, *arguments, "-o", output)
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("this compiler comes without sanitizers")
    assert built.returncode == 0, built.stderr[-4000:]
    return output


INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
OF_BATCHES = ("ctc", "align", "slice_sums", "top_class", "beam", "parallel", "dispatch")
PARTS = [KERNELS / "cpu" / "simd" / f"{name}.cpp" for name in INSTRUCTION_SETS]
PARTS += [KERNELS / "cpu" / f"{name}.cpp" for name in OF_BATCHES]
PROBLEMS = ROOT / "tests" / "kernels" / "sanitized.cpp"


def objects(folder, sanitizers):
    """Of all parts; instruction sets that are not here without sanitizers."""
    plain = set(INSTRUCTION_SETS) - set(SETS)

    def flags(part):
        return ["-O0"] if part.stem in plain else sanitizers

    def compiled(part):
        return compile_to(folder / f"{part.stem}.o", *flags(part), "-c", part)

    # Another process of the suite may wait for these, and leaves a core idle.
    with ThreadPoolExecutor(2) as pool:
        names = [part.stem for part in PARTS]
        return dict(zip(names, pool.map(compiled, PARTS), strict=True))


def address_objects():
    """Objects under ADDRESSES, by name. Made once in a run."""

    def make(folder):
        folder.mkdir(exist_ok=True)
        objects(folder, ADDRESSES)

    folder = made_once("sanitized-objects", make)
    return {part.stem: folder / f"{part.stem}.o" for part in PARTS}


def problems(folder, sanitizers, parts):
    def make(path):
        compile_to(path, *sanitizers, "-c", PROBLEMS)

    main = made_once(f"problems{sanitizers[0]}.o", make)
    return compile_to(folder / "sanitized", *sanitizers, main, *parts.values())


def assert_rounds(program, rounds, isa):
    result = run(program, rounds, JAX_CTC_ISA=isa)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert result.stdout == f"{rounds} rounds on {isa}\n"


@pytest.mark.slow
@only_all
def test_no_input_makes_a_kernel_leave_its_arrays(tmp_path):
    """Nor forged residuals, nor a failed allocation; several threads and callers, all blocks."""
    program = problems(tmp_path, ADDRESSES, address_objects())
    for isa in SETS:
        assert_rounds(program, 500, isa)


@pytest.mark.slow
@only_all
def test_threads_and_callers_share_nothing_unguarded(tmp_path):
    program = problems(tmp_path, RACES, objects(tmp_path, RACES))
    for isa in SETS:
        assert_rounds(program, 150, isa)


@pytest.mark.slow
def test_an_exception_in_a_thread_reaches_the_caller_when_all_are_done(tmp_path):
    sources = ROOT / "tests" / "kernels" / "parallel_for.cpp", KERNELS / "cpu" / "parallel.cpp"
    program = compile_to(tmp_path / "parallel_for", *RACES, *sources)
    result = run(program, 20 if ALL else 3)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]

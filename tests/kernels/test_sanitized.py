# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels under the address, undefined-behaviour and thread sanitizers.

`JAX_CTC_TEST_ALL=1` adds the long variants: more problems, races in the kernels themselves, and
overruns planted one after the other, each of which has to be found.
"""

import os
import shutil

import pytest

import jax_ctc
from support.runs import ALL, ROOT, made_once, only_all, run, sweep, with_bug

KERNELS = ROOT / "kernels"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++17", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math", "-O1", "-g1"]
FLAGS += ["-pthread", "-DJAX_CTC_TEST"]
# All of -fsanitize=undefined makes the compiler take twice as long as these parts of it do.
UNDEFINED = "alignment,bounds,float-cast-overflow,integer-divide-by-zero,return,shift,"
UNDEFINED += "signed-integer-overflow,unreachable"
ADDRESSES = [f"-fsanitize=address,{'undefined' if ALL else UNDEFINED}", "-fno-sanitize-recover=all"]
if not ALL and COMPILER and os.path.basename(COMPILER) == "g++":
    # Calls of checks compile in two thirds of the time.
    ADDRESSES += ["--param", "asan-instrumentation-with-call-threshold=0"]
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
OF_BATCHES = ("ctc", "align", "slice_sums", "beam", "parallel", "dispatch")
PARTS = [KERNELS / "cpu" / f"{name}.cpp" for name in OF_BATCHES]
PARTS += [KERNELS / "cpu" / "simd" / f"{name}.cpp" for name in INSTRUCTION_SETS]
PROBLEMS = ROOT / "tests" / "kernels" / "sanitized.cpp"


def objects(folder, sanitizers, sets=SETS):
    """Of all parts; instruction sets that are not among `sets` without sanitizers."""
    plain = set(INSTRUCTION_SETS) - set(sets)

    def flags(part):
        return ["-O0"] if part.stem in plain else sanitizers

    return {x.stem: compile_to(folder / f"{x.stem}.o", *flags(x), "-c", x) for x in PARTS}


def address_objects():
    """Objects under ADDRESSES, by name: in `make test` of one instruction set. Made once in a run.
    Instruction sets that are not sanitized are there too."""

    def make(folder):
        folder.mkdir(exist_ok=True)
        objects(folder, ADDRESSES, sweep(SETS, [ONE_SET]))

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
def test_no_input_makes_a_kernel_leave_its_arrays(tmp_path):
    """Nor forged residuals, nor a failed allocation; several threads and callers, all blocks."""
    sets = sweep(SETS, [ONE_SET])
    program = problems(tmp_path, ADDRESSES, address_objects())
    for isa in sets:
        assert_rounds(program, 1500 if ALL else 40, isa)


@pytest.mark.slow
@only_all
def test_threads_and_callers_share_nothing_unguarded(tmp_path):
    program = problems(tmp_path, RACES, objects(tmp_path, RACES))
    for isa in SETS:
        assert_rounds(program, 300, isa)


@pytest.mark.slow
def test_an_exception_in_a_thread_reaches_the_caller_when_all_are_done(tmp_path):
    sources = ROOT / "tests" / "kernels" / "parallel_for.cpp", KERNELS / "cpu" / "parallel.cpp"
    program = compile_to(tmp_path / "parallel_for", *RACES, *sources)
    result = run(program, 20 if ALL else 3)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]


# Each of them one element too many, in an array of the scratch memory; or a check left out.
PLANTED = {
    "emissions": (
        "emissions.h",
        "store_parts(y + k * frame_size(), width(), dead);",
        "y[k * frame_size() + frame_size()] = 0;",
    ),
    "shifts": ("sequence_rows.h", "shift[t] = n.shift", "shift[t + 1] = n.shift"),
    "labels of a table": (
        "sequence_rows.h",
        "by_table && i < pairs; ++i) places[i]",
        "by_table && i <= pairs; ++i) places[i]",
    ),
    "logits of the labels": (
        "sequence_rows.h",
        "i < pairs + N; ++i) raw[i] = logit_behind",
        "i <= pairs + N; ++i) raw[i] = logit_behind",
    ),
    "ratios": (
        "ratios.h",
        "store(y + k * frame_size(), Vec{})",
        "store(y + (k + 1) * frame_size(), Vec{})",
    ),
    "growths of ratios": (
        "ratios.h",
        "growths[begin / kFrames] =",
        "growths[begin / kFrames + 1] =",
    ),
    "slots of groups": (
        "group_step.h",
        "i < kParts * pairs; ++i) blank[i] = label[i] = 0",
        "i <= kParts * pairs; ++i) blank[i] = label[i] = 0",
    ),
    "checkpoints of groups": (
        "group_sweep.h",
        "beta.copy_to(checkpoints + k * Beta",
        "beta.copy_to(checkpoints + (k + 1) * Beta",
    ),
    "states of groups": (
        "stored_beta.h",
        "to = labels_of(t), *const",
        "to = labels_of(t + 1), *const",
    ),
    "blanks of groups": (
        "stored_beta.h",
        "blanks = blanks_of(t);",
        "blanks = blanks_of(t + kTogether);",
    ),
    "blanks of frames": (
        "stored_beta.h",
        "to = blanks_of(t);",
        "to = blanks_of(t + kTogether);",
    ),
    "units of groups": (
        "stored_beta.h",
        "k < kDoubles; ++k) to[pairs + k]",
        "k <= kDoubles; ++k) to[pairs + k]",
    ),
    "products of groups": (
        "group_products.h",
        "store_narrowed(to + row, products)",
        "store_narrowed(to + row + pairs, products)",
    ),
    "the rest of a group": (
        "stored_beta.h",
        "labels_of(t)[i] = 0",
        "labels_of(t + 1)[i] = 0",
    ),
    "ratios of classes": (
        "ratios.h",
        "table.p = kept + (begin - block_begin) *",
        "table.p = kept + (begin - block_begin + kFrames) *",
    ),
    "changes of ratios": (
        "directed_ratios.h",
        "store(changes + k * source.frame_size(), Vec{})",
        "store(changes + (k + 1) * source.frame_size(), Vec{})",
    ),
    "directions of classes": (
        "directed_ratios.h",
        "u = kept + (begin - block_begin) *",
        "u = kept + (begin - block_begin + kFrames) *",
    ),
    "means of directions": (
        "directed_ratios.h",
        "mean[begin + k] =",
        "mean[begin + k + kFrames] =",
    ),
    "factors of ratios": (
        "ratios.h",
        "store_quad(softmax_factors + begin,",
        "store_quad(softmax_factors + begin + kFrames,",
    ),
    "a table": (
        "class_table.h",
        "for (; v < table_classes(V); ++v)",
        "for (; v <= table_classes(V); ++v)",
    ),
    "the labels of halves in pieces": (
        "gradient.h",
        "i <= r.L; ++i) own[i] =",
        "i <= r.L + 1; ++i) own[i] =",
    ),
    "skips": ("sweep.h", "i < pairs; ++i) skip[i] =", "i <= pairs; ++i) skip[i] ="),
    "checkpoints": ("sweep.h", "checkpoint(k).copy(at)", "checkpoint(k + 1).copy(at)"),
    "occupancies": (
        "sweep.h",
        "i < kFrames * kParts * pairs; ++i) gamma",
        "i <= kFrames * kParts * pairs; ++i) gamma",
    ),
    "states": ("step.h", "to.set(end, {V::none()", "to.set(end + 1, {V::none()"),
    "sums by class": (
        "class_sums.h",
        "i < n; i += N) store(sums",
        "i <= n; i += N) store(sums",
    ),
    "means of a direction": ("directed_emissions.h", "    mean[t] = F(", "    mean[t + 1] = F("),
    "checkpoints of an alignment": (
        "align.h",
        "i < pairs; ++i) to[i] = blank[i]",
        "i <= pairs; ++i) to[i] = blank[i]",
    ),
    "places of an alignment": (
        "align_emissions.h",
        "for (int64_t i = 0; i < pairs; ++i)\n      places",
        "for (int64_t i = 0; i <= pairs; ++i)\n      places",
    ),
    "choices of an alignment in one pass": (
        "align.h",
        "min_of(block, frames) / kFrames * width",
        "(min_of(block, frames) / kFrames - 1) * width",
    ),
    "a kept shift": ("emissions.h", "if (!first) stay_below(shift[t]);", ""),
}


def test_overruns_have_a_place_in_the_source():
    for file, sound, planted in PLANTED.values():
        with_bug(KERNELS / "cpu" / "simd" / file, sound, planted)


@pytest.mark.slow
@only_all
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_overrun_is_found(bug, tmp_path):
    file, sound, planted = PLANTED[bug]
    shutil.copytree(KERNELS, tmp_path / "kernels")
    path = tmp_path / "kernels" / "cpu" / "simd" / file
    path.write_text(with_bug(path, sound, planted))
    # Without optimization: a third of the time, because most of it is the compiler's.
    part = compile_to(tmp_path / "o", *ADDRESSES, "-O0", "-c", path.parent / f"{ONE_SET}.cpp")
    program = problems(tmp_path, ADDRESSES, {**address_objects(), ONE_SET: part})
    result = run(program, 300, JAX_CTC_ISA=ONE_SET)
    assert result.returncode != 0
    assert "Sanitizer" in result.stderr or "runtime error" in result.stderr

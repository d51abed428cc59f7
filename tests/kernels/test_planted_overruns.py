# SPDX-License-Identifier: Apache-2.0
"""Overruns planted in the CPU kernels: the programs of test_sanitized.py find each of them.

Each is one element too many in an array of the scratch memory, or a check left out.
"""

import shutil

import pytest
from test_sanitized import ADDRESSES, FEWER, ONE_SET, address_objects, compile_to, problems
from test_sanitized import pytestmark as pytestmark

from support.planted import choice, plant
from support.runs import made_once, only_all, run

PLANTED = {
    "emissions": (
        "emissions.h",
        "store_parts(y + k * frame_size(), width(), dead);",
        "store_parts(y + (k + BUG) * frame_size(), width(), dead);",
    ),
    "shifts": ("sequence_rows.h", "shift[t] = n.shift", "shift[t + BUG] = n.shift"),
    "labels of a table": (
        "sequence_rows.h",
        "i = in.L; i < pairs; ++i) places[i]",
        "i = in.L; i < pairs + BUG; ++i) places[i]",
    ),
    "logits of the labels": (
        "sequence_rows.h",
        "i < pairs + N; ++i) raw[i] = logit_behind",
        "i < pairs + N + BUG; ++i) raw[i] = logit_behind",
    ),
    "logits that are known": (
        "sequence_rows.h",
        "x = in.known.logits + t * (in.L + 1)",
        "x = in.known.logits + (t + BUG) * (in.L + 1)",
    ),
    "ratios": (
        "ratios.h",
        "store(y + k * frame_size(), Vec{})",
        "store(y + (k + BUG) * frame_size(), Vec{})",
    ),
    "growths of ratios": (
        "ratios.h",
        "growths[begin / kFrames] =",
        "growths[begin / kFrames + BUG] =",
    ),
    "slots of groups": (
        "group_step.h",
        "i < kParts * pairs; ++i) blank[i] = label[i] = 0",
        "i < kParts * pairs + BUG; ++i) blank[i] = label[i] = 0",
    ),
    "checkpoints of groups": (
        "group_sweep.h",
        "beta.copy_to(checkpoints + k * Beta",
        "beta.copy_to(checkpoints + (k + BUG) * Beta",
    ),
    "states of groups": (
        "stored_beta.h",
        "store_parts(to - f * size + window.end, pitch, V{});",
        "for (int k = 0; k <= BUG; ++k) store_parts(to - f * size + window.end + k, pitch, V{});",
    ),
    "blanks of groups": (
        "stored_beta.h",
        "blanks = blanks_of(t);",
        "blanks = blanks_of(t + BUG * kTogether);",
    ),
    "blanks of frames": (
        "stored_beta.h",
        "to = blanks_of(t);",
        "to = blanks_of(t + BUG * kTogether);",
    ),
    "units of groups": (
        "stored_beta.h",
        "k < kDoubles; ++k) to[pairs + k]",
        "k < kDoubles + BUG; ++k) to[pairs + k]",
    ),
    "products of groups": (
        "group_products.h",
        "store_narrowed(to + row, products)",
        "store_narrowed(to + row + BUG * pairs, products)",
    ),
    "the rest of a group": (
        "stored_beta.h",
        "labels_of(t)[i] = 0",
        "labels_of(t + BUG)[i] = 0",
    ),
    "ratios of classes": (
        "ratios.h",
        "table.p = kept + (begin - block_begin) *",
        "table.p = kept + (begin - block_begin + BUG * kFrames) *",
    ),
    "changes of ratios": (
        "directed_ratios.h",
        "store(changes + k * source.frame_size(), Vec{})",
        "store(changes + (k + BUG) * source.frame_size(), Vec{})",
    ),
    "directions of classes": (
        "directed_ratios.h",
        "u = kept + (begin - block_begin) *",
        "u = kept + (begin - block_begin + BUG * kFrames) *",
    ),
    "means of directions": (
        "directed_ratios.h",
        "mean[begin + k] =",
        "mean[begin + k + BUG * kFrames] =",
    ),
    "factors of ratios": (
        "ratios.h",
        "store_quad(softmax_factors + begin,",
        "store_quad(softmax_factors + begin + BUG * kFrames,",
    ),
    "a table": (
        "class_table.h",
        "for (; v < table_classes(V); ++v)",
        "for (; v < table_classes(V) + BUG; ++v)",
    ),
    "the labels of halves in pieces": (
        "gradient.h",
        "i < count; ++i) own[i] =",
        "i < count + BUG; ++i) own[i] =",
    ),
    "skips": ("sweep.h", "i < pairs; ++i) skip[i] =", "i < pairs + BUG; ++i) skip[i] ="),
    "checkpoints": ("sweep.h", "checkpoint(k).copy(at)", "checkpoint(k + BUG).copy(at)"),
    "occupancies": (
        "sweep.h",
        "i < kFrames * kParts * pairs; ++i) gamma",
        "i < kFrames * kParts * pairs + BUG; ++i) gamma",
    ),
    "states": ("step.h", "to.set(end, {V::none()", "to.set(end + BUG, {V::none()"),
    "sums by class": (
        "class_sums.h",
        "i < n; i += N) store(sums",
        "i < n + BUG; i += N) store(sums",
    ),
    "means of a direction": ("directed_emissions.h", "    mean[t] = F(", "    mean[t + BUG] = F("),
    "the most probable classes": (
        "top_class.h",
        "to[k] = top_class(int32_t(",
        "to[k + BUG] = top_class(int32_t(",
    ),
    "checkpoints of an alignment": (
        "align.h",
        "i < pairs; ++i) to[i] = blank[i]",
        "i < pairs + BUG; ++i) to[i] = blank[i]",
    ),
    "places of an alignment": (
        "align_emissions.h",
        "for (int64_t i = 0; i < pairs; ++i)\n      places",
        "for (int64_t i = 0; i < pairs + BUG; ++i)\n      places",
    ),
    "choices of an alignment in one pass": (
        "align.h",
        "min_of(block, frames) / kFrames * width",
        "(min_of(block, frames) / kFrames - BUG) * width",
    ),
    "a kept shift": (
        "emissions.h",
        "if (!first) stay_below(shift[t]);",
        "if (!first && !BUG) stay_below(shift[t]);",
    ),
}

SIMD = "kernels/cpu/simd"


def program_with_overruns():
    def make(program):
        folder = program.with_name("overruns")
        chosen = plant(folder, SIMD, PLANTED)
        part = folder / SIMD / f"{ONE_SET}.cpp"
        compiled = compile_to(folder / "o", *FEWER, *chosen, "-c", part)
        shutil.move(problems(folder, ADDRESSES, {**address_objects(), ONE_SET: compiled}), program)

    return made_once("sanitized-overruns", make)


def found(**chosen):
    return run(program_with_overruns(), 300, JAX_CTC_ISA=ONE_SET, **chosen)


def test_overruns_have_a_place_in_the_source(tmp_path):
    plant(tmp_path, SIMD, PLANTED)


@pytest.mark.slow
@only_all
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_overrun_is_found(bug):
    result = found(**choice(PLANTED, bug))
    assert result.returncode != 0
    assert "Sanitizer" in result.stderr or "runtime error" in result.stderr


@pytest.mark.slow
@only_all
def test_nothing_is_found_where_no_overrun_is_chosen():
    result = found()
    assert result.returncode == 0, result.stderr[-4000:]

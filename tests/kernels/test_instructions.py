# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/cpu/instructions.py knows of the kernels, and how qemu's log is read."""

import importlib
import re
import sys

import pytest

from support.runs import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="not in a source tree")


@pytest.fixture(scope="module")
def instructions():
    sys.path.append(str(ROOT))  # after the installed jax_ctc
    try:
        yield importlib.import_module("benchmarks.cpu.instructions")
    finally:
        sys.path.remove(str(ROOT))


def test_each_part_is_of_code_that_there_is(instructions):
    files = {path.name: path.read_text() for path in (ROOT / "kernels").rglob("*.h")}
    assert set(instructions.PARTS) <= set(files)
    for (file, pattern), part in instructions.PARTS_OF_NAMES.items():
        assert re.search(
            rf"^\s*(template|CTC_FN|void).*({pattern})\w*\(", files[file], re.MULTILINE
        )
        assert part in instructions.NAMES
    assert set(instructions.PARTS.values()) < set(instructions.NAMES)


# Of the kernels for one sequence or row: what all subjects use, and what the programs do not call.
OF_NO_SUBJECT = {"arena.h", "exp.h", "group_numbers.h", "half.h", "interface.h", "lanes.h"}
OF_NO_SUBJECT |= {"slice_sums.h", "table.h", "target.h", "top_class.h", "best_classes.h"}
OF_NO_SUBJECT |= {"align.h", "align_emissions.h"}


def test_each_file_of_the_cpu_kernels_has_a_subject_or_is_known_to_have_none(instructions):
    files = {path.name for path in (ROOT / "kernels" / "cpu" / "simd").glob("*.h")}
    of_names = {file for file, _ in instructions.PARTS_OF_NAMES}
    assert files - set(instructions.PARTS) - of_names == OF_NO_SUBJECT


def test_an_instruction_belongs_to_the_innermost_subject(instructions):
    chain = [("load", "lanes.h"), ("gather<float>", "class_table.h"), ("read", "emissions.h")]
    assert instructions.part_of(chain) == "emissions"
    assert instructions.part_of([("exp", "emission.h"), ("tabulate", "class_table.h")]) == "rows"
    assert instructions.part_of([("memset", "string.h")]) == "rest"


LOG = """----------------
IN: main
0x00400d18:  aa1403e0  mov      x0, x20
0x00400d1c:  94010b8d  bl       #0x443b50

Trace 0: 0x7f89900a3d40 [0000000001009331/0000000000400d18/00000001/00000200] main
----------------
IN: counted_loss
0x00443b50:  d10043ff  sub      sp, sp, #0x10
0x00443b54:  b4000040  cbz      x0, #0x443b5c

Trace 0: 0x7f89900a3e80 [0000000001009331/0000000000443b50/00000001/00000200] counted_loss
Trace 0: 0x7f89900a3e80 [0000000001009331/0000000000443b50/00000001/00000200] counted_loss
----------------
IN: main
0x00400d20:  f94093fa  ldr      x26, [sp, #0x120]

Trace 0: 0x7f89900a4040 [0000000001009331/0000000000400d20/00000001/00000200] main
Trace 0: 0x7f89900a3e80 [0000000001009331/0000000000443b50/00000001/00000200] counted_loss
"""


def test_a_block_counts_as_often_as_it_runs_within_the_function(instructions):
    counting = instructions.counting
    counts = counting.counts_within("counted_loss", counting.blocks_that_ran(LOG.splitlines()))
    assert counts == {0x443B50: 2, 0x443B54: 2}

# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/cpu/instructions.py knows of the kernels."""

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


def test_an_instruction_belongs_to_the_innermost_subject(instructions):
    chain = [("load", "lanes.h"), ("gather<float>", "class_table.h"), ("read", "emissions.h")]
    assert instructions.part_of(chain) == "emissions"
    assert instructions.part_of([("exp", "emission.h"), ("tabulate", "class_table.h")]) == "rows"
    assert instructions.part_of([("memset", "string.h")]) == "rest"

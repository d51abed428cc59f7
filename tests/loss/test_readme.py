# SPDX-License-Identifier: Apache-2.0
"""README's code runs and prints what it says."""

import re

import pytest

from support.runs import ROOT

README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="not in a source tree")


def test_the_example_of_check_names_the_label_and_then_nothing(capsys):
    section = README.read_text().split("## NaN or inf?")[1].split("\n## ")[0]
    (code,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        if "checkify" in code
    ]
    exec(code, {})
    assert capsys.readouterr().out.startswith("labels[1, 3] = 0 is the blank, which is no label. ")

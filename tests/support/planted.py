# SPDX-License-Identifier: Apache-2.0
"""Bugs planted in the kernels, to see that a test finds each. A program is compiled once with all
bugs. Each run of the program chooses one, or none."""

import shutil

from support.runs import ROOT

_CHOICE = """\
#include <cstdlib>
inline const char* const kChoice = std::getenv("CHOSEN_BUG");
inline const int kChosenBug = kChoice ? std::atoi(kChoice) : -1;
"""


def plant(folder, room, bugs):
    """Copies kernels/ and tests/ to `folder`, with `bugs` in files of `room`. Returns what the
    compiler is told in addition.

    `bugs` has by name: the file, the text that stands there once, and the text in its place. There
    `BUG` is true in the runs that choose the bug, and false in all others."""
    for name in ("kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    for number, (name, (file, right, wrong)) in enumerate(bugs.items()):
        path = folder / room / file
        source = path.read_text()
        assert source.count(right) == 1, f"{file} has {source.count(right)} times: {right}"
        assert "BUG" in wrong, f"{name} is always there"
        path.write_text(source.replace(right, wrong.replace("BUG", f"(kChosenBug == {number})")))
    (folder / "choice.h").write_text(_CHOICE)
    return "-include", folder / "choice.h"


def choice(bugs, name):
    """The environment of a run that has the bug with that name."""
    return {"CHOSEN_BUG": str(list(bugs).index(name))}

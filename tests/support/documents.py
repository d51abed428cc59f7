# SPDX-License-Identifier: Apache-2.0
"""The blocks of code in documents, and how they run: as in a program of a user."""

import contextlib
import doctest
import io
import re
import tomllib

import jax
import pytest

from .runs import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)
RAISED = re.compile(r"^# (\w+): (.+)$", re.MULTILINE)
SETTINGS = {
    "jax_enable_x64": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_debug_nans": False,
}
NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")
ROOTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def documents():
    """The names of all documents, relative to the repository."""
    pages = (ROOT / "docs").rglob("*.md")
    return [*ROOTS, *sorted(page.relative_to(ROOT).as_posix() for page in pages)]


def left_out(path):
    """Whether this is an sdist, and a file of the repository is not in it."""
    if not (ROOT / "PKG-INFO").is_file():
        return False
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    return path.resolve().relative_to(ROOT).as_posix() in build["sdist"]["exclude"]


def blocks(document):
    return BLOCK.findall((ROOT / document).read_text())


@contextlib.contextmanager
def settings_of_a_user():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    try:
        for name, value in SETTINGS.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def run_block(code, names):
    """Runs a block. What its comments say is printed must be printed, and what they say is raised
    must be raised. "..." stands for the rest."""
    raised = RAISED.search(code)
    said = io.StringIO()
    with settings_of_a_user(), contextlib.redirect_stdout(said):
        if raised:
            with pytest.raises(Exception, match=re.escape(raised[2].removesuffix("..."))) as error:
                exec(code, names)
            assert error.typename == raised[1]
        else:
            exec(code, names)
    expected = PRINTED.findall(code)
    lines = said.getvalue().splitlines()
    if expected:
        assert len(lines) == len(expected)
    for line, wanted in zip(lines, expected, strict=False):
        start = wanted.removesuffix("...")
        assert same(wanted, line if start == wanted else line[: len(start)] + "...")


def same(wanted, got):
    """Says whether two texts are equal up to the rounding of numbers, in which backends differ."""
    numbers = [list(map(float, NUMBER.findall(text))) for text in (wanted, got)]
    texts = [NUMBER.sub("#", text).split() for text in (wanted, got)]
    return texts[0] == texts[1] and numbers[0] == pytest.approx(numbers[1], rel=1e-5)


class Checker(doctest.OutputChecker):
    def check_output(self, want, got, optionflags):
        return same(want, got)

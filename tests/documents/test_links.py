# SPDX-License-Identifier: Apache-2.0
"""Links of documents lead somewhere: to a file of the repository, and to a heading of it. The table
of tests has all of them."""

import re

import pytest

from support.documents import documents, left_out
from support.runs import ROOT, only_all, run

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not in a source tree")

LINK = re.compile(r'(?:\]\(|src="|srcset=")([^)"\s]+)')
REPOSITORY = re.compile(r"https://(?:github\.com|raw\.githubusercontent\.com)/[^/]+/jax_ctc/")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def anchors(text):
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("document", documents())
def test_links_of_documents_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in LINK.findall(FENCE.sub("", text)):
        start = (ROOT / document).parent
        if REPOSITORY.match(target):
            target, start = re.sub(r"^.*?/jax_ctc/(?:blob/|raw/)?[^/]+/", "", target), ROOT
        elif re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = start / path if path else ROOT / document
        assert file.exists() or left_out(file), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


@only_all
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the group docs is not installed")
    import sys

    done = run(sys.executable, ROOT / "docs" / "site" / "pages.py", tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_table_of_promises_has_every_file_of_tests():
    page = (ROOT / "docs" / "kernels.md").read_text()
    table = page[page.index("## Which tests guard which promise") :]
    files = {file.stem for file in (ROOT / "tests").glob("*/test_*.py")}
    of_gpus = {file.stem for file in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert set(re.findall(r"\btest_\w+", table)) == files - of_gpus

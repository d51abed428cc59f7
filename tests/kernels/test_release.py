# SPDX-License-Identifier: Apache-2.0
"""What a release says of itself: one version, one address, links that work on PyPI's page."""

import importlib.metadata
import importlib.util
import re
import tomllib

import pytest

from support.documents import left_out
from support.runs import ROOT

PROJECT = ROOT / "pyproject.toml"

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").is_file(), reason="not in a source tree"
)


def project():
    return tomllib.loads(PROJECT.read_text())["project"]


@pytest.fixture(scope="module")
def provider():
    path = ROOT / "cmake" / "long_description.py"
    spec = importlib.util.spec_from_file_location("long_description", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[a](docs/a.md)", "[a](R/blob/v1/docs/a.md)"),
        ("![a](docs/a.png)", "![a](R/raw/v1/docs/a.png)"),
        ("[`f(x)`](f.py#L1), [b](b.md)", "[`f(x)`](R/blob/v1/f.py#L1), [b](R/blob/v1/b.md)"),
        ('<img alt="a b" src="c.png">', '<img alt="a b" src="R/raw/v1/c.png">'),
        ('<source srcset="https://b/c.png">', '<source srcset="https://b/c.png">'),
        ("[a](https://b) [c](#d) x[0](y z)", "[a](https://b) [c](#d) x[0](y z)"),
    ],
)
def test_relative_links_become_those_of_a_release(markdown, expected, provider):
    assert provider.absolute(markdown, "R", "1") == expected


def test_every_file_that_the_readme_links_is_there_and_has_an_absolute_link(provider, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = provider.dynamic_metadata("readme", {})["text"]
    prefix = f"{project()['urls']['Repository']}/"
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    ours = [link.removeprefix(prefix) for link in links if link.startswith(prefix)]
    assert len(ours) > 10
    for link in links:
        assert link.startswith(("https://", "#")), link
    for link in ours:
        kind, version, path = link.split("/", 2)
        if kind in ("raw", "blob"):
            assert version in (f"v{project()['version']}", "main")
            file = ROOT / path.split("#")[0]
            assert file.exists() or left_out(file), link


def test_licenses_of_what_is_compiled_in_come_with_a_wheel():
    files = importlib.metadata.files("pybind11") or []
    (license_file,) = (x for x in files if x.name == "LICENSE" and ".dist-info" in str(x))
    (notice,) = set(project()["license-files"]) - {"LICENSE"}
    terms, _, _ = license_file.read_text().partition("Please also refer to")
    assert " ".join(terms.split()) in " ".join((ROOT / notice).read_text().split())


def test_an_sdist_has_nothing_under_another_license():
    """The picture of speech is made from recordings under CC-BY-SA-3.0."""
    build = tomllib.loads(PROJECT.read_text())["tool"]["scikit-build"]
    assert "docs/speech.png" in build["sdist"]["exclude"]
    assert "(docs/speech.png)" in (ROOT / "README.md").read_text()


def test_the_citation_has_the_version_and_the_address_of_the_project():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project()['version']}\n" in citation
    assert f'\nrepository-code: "{project()["urls"]["Repository"]}"\n' in citation


def test_the_tests_of_a_release_and_of_workflows_are_there():
    """A name that nobody finds would stop the release, and nothing before it."""
    wheels = tomllib.loads(PROJECT.read_text())["tool"]["cibuildwheel"]["test-command"]
    files = [".ci/release-check", ".github/workflows/tests.yml"]
    for text in [" ".join(wheels), *((ROOT / file).read_text("utf-8") for file in files)]:
        paths = re.findall(r"\btests/[\w./]+\w", text)
        assert len(paths) > 1
        assert [path for path in paths if not (ROOT / path).exists()] == []

# SPDX-License-Identifier: Apache-2.0
"""Builds the documentation site: the documents of the repository as pages.

    python docs/site/pages.py build/site

The documents are written for a reader of the repository: a link is a path, relative to the file
that it stands in. Here links to documents become links to pages, and links to other files become
links to the repository. The pages are written to build/pages, and Sphinx makes the site of them. A
warning is an error.
"""

import posixpath
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPOSITORY = "https://github.com/jax-ctc/jax_ctc"
FILES = f"{REPOSITORY}/blob/main/"

# Pages that are not in docs/.
ELSEWHERE = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
# What the sidebar shows, in this order. A page that is not named here is one of the guides.
NAVIGATION = {
    "Start": ["install", "tutorial", "guide"],
    "Guides": ["decoding", "output_layer", "scaling"],
    "Reference": ["api"],
    "Migration": ["migrate/optax", "migrate/torch", "migrate/keras", "migrate/theano"],
    "How it works": ["ctc", "kernels", "performance"],
    "Project": ["contributing", "changelog"],
}

FENCE = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img alt="([^"]*)" src="([^"]+)">\s*</picture>'
)


def sources() -> dict[str, str]:
    """The document of each page, as paths without `.md` and with it."""
    pages = {p.relative_to(ROOT / "docs").as_posix(): p for p in (ROOT / "docs").rglob("*.md")}
    return ELSEWHERE | {
        page.removesuffix(".md"): file.relative_to(ROOT).as_posix() for page, file in pages.items()
    }


def pieces(text: str) -> list[str]:
    """Text and blocks of code in turn."""
    return FENCE.split(text)


def path_of(target: str, source: str) -> str | None:
    """The path in the repository that a link of a document means; None if it is an address."""
    if target.startswith(FILES):
        return target.removeprefix(FILES)
    if re.match(r"[a-z]+:|#", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def page_text(page: str, source: str, pages: dict[str, str]) -> tuple[str, set[str]]:
    """The Markdown of a page, and the pictures that it shows, as paths in the repository."""
    page_of = {document: name for name, document in pages.items()}
    folder = posixpath.dirname(page) or "."
    pictures = set()

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        path = path_of(target, source) if target else None
        if path is None:
            return match[0]
        if path in page_of:
            target = posixpath.relpath(f"{page_of[path]}.md", folder)
        elif path.endswith(".png"):
            pictures.add(path)
            target = posixpath.relpath(path, folder)
        elif (ROOT / path).exists():
            target = FILES + path
        else:
            raise ValueError(f"{source}: there is no {path}")
        return f"]({target}{'#' + anchor if anchor else ''})"

    def picture(match: re.Match[str]) -> str:
        dark, alt, light = match.groups()
        return f"![{alt}]({light}){{.only-light}} ![{alt}]({dark}){{.only-dark}}"

    parts = pieces((ROOT / source).read_text())
    parts[::2] = [LINK.sub(link, PICTURE.sub(picture, part)) for part in parts[::2]]
    return "".join(parts), pictures


def contents(pages: dict[str, str]) -> str:
    named = {page for group in NAVIGATION.values() for page in group} | {"index"}
    groups = {k: list(v) for k, v in NAVIGATION.items()}
    groups["Guides"] += sorted(set(pages) - named)
    return "".join(
        "\n".join(["\n```{toctree}", ":hidden:", f":caption: {title}", "", *group, "```", ""])
        for title, group in groups.items()
    )


def write(folder: Path) -> None:
    """Writes the pages, and the pictures that they show."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = sources()
    for page, source in pages.items():
        text, pictures = page_text(page, source, pages)
        file = folder / f"{page}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + (contents(pages) if page == "index" else ""))
        for picture in pictures:
            copy = folder / picture
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / picture, copy)


def main() -> int:
    from sphinx.cmd.build import main as sphinx

    pages = ROOT / "build" / "pages"
    write(pages)
    return sphinx(["-q", "-W", "--keep-going", "-E", "-c", str(HERE), str(pages), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())

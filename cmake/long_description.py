# SPDX-License-Identifier: Apache-2.0
"""PyPI's page is the README, with links and pictures of this version in place of relative ones."""

import re
from pathlib import Path


def absolute(text: str, repository: str, version: str) -> str:
    """Markdown whose links into the repository name the files of a release."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found["picture"] else "blob"
        return f"{found['before']}({repository}/{kind}/v{version}/{found['path']})"

    relative = r"(?P<before>(?P<picture>!)?\[[^\]]*\])\((?!\w+:|#)(?P<path>[^)\s]+)\)"
    text = re.sub(relative, link, text)
    of_picture = r"""\b(src|srcset)="(?!\w+:)([^"]+)\""""  # <picture>, for a light and a dark page
    return re.sub(of_picture, rf'\1="{repository}/raw/v{version}/\2"', text)


def dynamic_metadata(field, settings, project=None):
    """What scikit-build-core asks for (tool.scikit-build.metadata)."""
    if field != "readme":
        raise ValueError(f"expected the field readme, but got {field}")
    if project is None:
        import tomllib  # not at the top: a Python without it must come to read that it is too old

        project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    text = Path("README.md").read_text("utf-8")
    text = absolute(text, project["urls"]["Repository"], project["version"])
    return {"content-type": "text/markdown", "text": text}

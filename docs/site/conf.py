# SPDX-License-Identifier: Apache-2.0
"""Settings of Sphinx. `docs/site/pages.py` runs it."""

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
os.environ.setdefault("JAX_CTC_KERNELS", "none")  # docstrings need no kernels

import pages  # noqa: E402

import jax_ctc  # noqa: E402

project = html_title = "jax_ctc"
author = "jax_ctc developers"
version = release = jax_ctc.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

html_theme = "furo"
html_theme_options = {"source_repository": pages.REPOSITORY}
pygments_style, pygments_dark_style = "default", "github-dark"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = False
html_use_index = html_domain_indices = False

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`
add_module_names = False
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_use_param = napoleon_use_rtype = False  # what is said of several arguments is said once
maximum_signature_line_length = 60
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

NAME = re.compile(r"^( *)(?:``)?([\w.]+)(?:``)? {2,}(\S.*)$")

DOCUMENT = re.compile(r"\bdocs/(\w+)\.md\b")


def as_lists(lines: list[str]) -> list[str]:
    """`  name   text`, with the rest of the text below the text, as an item of a list. Docstrings
    are written for help()."""
    result: list[str] = []
    column = 0
    for line in lines:
        indent = len(line) - len(line.lstrip())
        found = NAME.match(line)
        if found and not line.lstrip().startswith((">>>", "...")):
            if not column:  # Napoleon takes what stands before a colon for a type
                result[-1] = result[-1].removesuffix(":")
                result.append("")
            column = found.start(3)
            result.append(f"{found[1]}- ``{found[2]}``: {found[3]}")
        elif column and line and indent >= column:
            result.append(f"{found_indent(result)}  {line.strip()}")
        else:
            if column and line:
                result.append("")
            column = 0
            result.append(line)
    return result


def found_indent(result: list[str]) -> str:
    item = next(line for line in reversed(result) if line.lstrip().startswith("- "))
    return " " * (len(item) - len(item.lstrip()))


def setup(app):
    def docstring(app, what, name, obj, options, lines):
        lines[:] = [DOCUMENT.sub(r":doc:`docs/\1.md </\1>`", line) for line in as_lists(lines)]

    app.connect("autodoc-process-docstring", docstring, priority=100)

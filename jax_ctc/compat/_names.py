# SPDX-License-Identifier: Apache-2.0
"""Errors in the words of another library: they name the arguments that its callers have."""

import contextlib
import re
from collections.abc import Iterator

from .. import _shapes


@contextlib.contextmanager
def names(call: str, shape: str, **theirs: str) -> Iterator[None]:
    """Replaces our names of arguments and sizes by theirs in what a TypeError or a ValueError says.
    `blank` is a word too: there only what stands in backquotes is a name. `call` is the order of
    theirs, and `shape` the shape of their acts: the order of axes is no argument."""

    def renamed(text: str) -> str:
        text = text.replace("ctc(acts, labels, ...)", call)
        text = text.replace(_shapes.OF_ACTS, shape)
        text = re.sub(r" with time_major=(True|False)", "", text)
        text = re.sub(r", pass time_major=(True|False)", ", transpose it", text)
        text = text.replace(", or give label_lengths", "")  # they have to be given
        for ours, name in theirs.items():
            text = re.sub(f"`{ours}`", f"`{name}`", text)
            if ours != "blank":
                text = re.sub(rf"\b{ours}\b", name, text)
        return text

    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own, which say more than a text
            raise
        raise type(error)(renamed(str(error))) from error

# SPDX-License-Identifier: Apache-2.0
"""What the classes of results have in common."""

import contextlib
from typing import TypeVar

from jax import export

Result = TypeVar("Result", bound=type)


def serialised(cls: Result) -> Result:
    """Lets an exported program return a named tuple. A module that is run again (reloaded) finds
    its class registered."""
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(cls, serialized_name=f"jax_ctc.{cls.__name__}")
    return cls

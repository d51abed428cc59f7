# SPDX-License-Identifier: Apache-2.0
"""What the classes of results have in common."""

import contextlib
from typing import TypeVar

from jax import export

Result = TypeVar("Result", bound=type)


def serialised(cls: Result) -> Result:
    """Lets an exported program return a named tuple. JAX takes each name once. So a module may be
    run again (reloaded), but no program that returns its new class can be exported."""
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(cls, serialized_name=f"jax_ctc.{cls.__name__}")
    return cls

# SPDX-License-Identifier: Apache-2.0
"""Direct calls of a handler of XLA, as a forged program makes them."""

import jax
import numpy as np

ATTRIBUTES = {"time_axis": 0, "time_moved": False, "blank": 0, "threads": 0}


def call(target, operands, results, attributes=ATTRIBUTES):
    """The results, arrays like `results`."""
    types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
    types_of = {bool: np.bool_, int: np.int64, float: np.float32}
    typed = {name: types_of[type(value)](value) for name, value in attributes.items()}
    # XLA leaves out a call without a side effect whose results are empty.
    function = jax.ffi.ffi_call(target, types, has_side_effect=True)
    return [np.asarray(x) for x in function(*operands, **typed)]


def refused(target, operands, results, attributes=ATTRIBUTES, because=""):
    """Whether the handler says that an argument is invalid, and says `because`."""
    try:
        call(target, operands, results, attributes)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        return str(error).startswith("INVALID_ARGUMENT") and because in str(error)
    return False

# SPDX-License-Identifier: Apache-2.0
"""Batch axes beyond the one that a function in pure JAX takes."""

import functools
from collections.abc import Callable

import jax

from .. import _operands


def over_batch(f: Callable) -> Callable:
    """Returns f for any number of batch axes. `f` itself takes at most one, so further ones are
    mapped over. They are not merged by a reshape, because it would gather axes that are sharded."""
    signature = _operands.SIGNATURES[f.__name__]

    @functools.wraps(f)
    def mapped(acts, *rest, time_axis, **params):
        if acts.ndim <= 3:
            return f(acts, *rest, time_axis=time_axis, **params)
        inner = max(time_axis - 1, 0)

        def axis(kind: _operands.Kind) -> int:
            return int(kind.has_time and time_axis == 0)

        outs = [axis(kind) for kind in signature.results]
        return jax.vmap(
            functools.partial(mapped, time_axis=inner, **params),
            in_axes=tuple(axis(kind) for kind in signature.operands),
            out_axes=outs if len(outs) > 1 else outs[0],
        )(acts, *rest)

    return mapped

# SPDX-License-Identifier: Apache-2.0
"""Taylor series (jax.experimental.jet) of a primitive, by nested JVPs: one for each order.

The first order runs the tangent kernel, and the second the kernel of Hessian-vector products.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive

try:
    from jax.experimental import jet as _jet
except ImportError:  # jet is experimental, so a release may drop it
    _jet = None


def register(primitive: Primitive) -> None:
    if _jet is None:
        return
    rules = _jet.jet_rules

    def rule(primals, series, **params):
        rules.setdefault(_name_p(), _named)
        order = len(series[0])
        curves = [
            _curve([x, *(c * factor for c, factor in zip(terms, _factorials(order), strict=True))])
            if jnp.issubdtype(jnp.result_type(x), jnp.floating)
            else lambda _, x=x: x
            for x, terms in zip(primals, series, strict=True)
        ]

        value = primitive.bind(*primals, **params)
        several = primitive.multiple_results
        values = value if several else [value]
        smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in values]

        def at(t):
            out = primitive.bind(*(x(t) for x in curves), **params)
            return [x for x, yes in zip(out if several else [out], smooth, strict=True) if yes]

        _, *derivatives = _orders(at, order)(jnp.float32(0))
        along = iter(zip(*derivatives, strict=True))  # of each result that has a derivative
        terms = [
            [d / f for d, f in zip(next(along), _factorials(order), strict=True)]
            if yes
            else [jnp.zeros_like(x)] * order  # integers do not change
            for x, yes in zip(values, smooth, strict=True)
        ]
        return (value, terms) if several else (value, terms[0])

    rules[primitive] = rule


@functools.cache
def _name_p() -> Primitive:
    """Returns the primitive of `checkpoint_name`, which JAX has no jet rule for."""
    return jax.make_jaxpr(lambda x: checkpoint_name(x, ""))(np.float32(0)).eqns[0].primitive


def _named(primals, series, **params):
    return _name_p().bind(*primals, **params), series[0]


def _factorials(order: int) -> list[float]:
    """Returns k! for each order k, the factor from a Taylor coefficient to a derivative."""
    return [float(math.factorial(k)) for k in range(1, order + 1)]


def _curve(derivatives: Sequence[Array]) -> Callable[[Array], Array]:
    """Returns a function with these derivatives at 0. It is evaluated at 0 only."""

    @jax.custom_jvp
    def curve(t):
        del t
        return derivatives[0]

    @curve.defjvp
    def _(primals, tangents):
        slope = _curve(derivatives[1:])(*primals)
        return curve(*primals), slope * tangents[0].astype(slope.dtype)

    return curve


def _orders(f: Callable, order: int) -> Callable[[Array], list[Array]]:
    """Returns f and its derivatives up to this order, in a list."""
    if order == 0:
        return lambda t: [f(t)]
    below = _orders(f, order - 1)

    def up(t):
        values, slopes = jax.jvp(below, (t,), (jnp.ones_like(t),))
        return [*values, slopes[-1]]

    return up

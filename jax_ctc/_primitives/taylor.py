# SPDX-License-Identifier: Apache-2.0
"""Taylor series (jax.experimental.jet) of a primitive: as many nested JVPs as there are orders.

The first order runs the tangent kernel, the second that of Hessian-vector products.
"""

import functools
import inspect
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
except ImportError:  # it is experimental
    _jet = None


def register(primitive: Primitive) -> None:
    if _jet is None:
        return
    rules = _jet.jet_rules

    def rule(primals, series, **parameters):
        rules.setdefault(_name_p(), _named)
        order = len(series[0])
        curves = [
            _curve([x, *(c * factor for c, factor in zip(terms, _factors(order), strict=True))])
            if jnp.issubdtype(jnp.result_type(x), jnp.floating)
            else lambda _, x=x: x
            for x, terms in zip(primals, series, strict=True)
        ]

        def at(t):
            return primitive.bind(*(x(t) for x in curves), **parameters)

        value, *derivatives = _orders(at, order)(jnp.float32(0))
        if not primitive.multiple_results:
            return value, [d / f for d, f in zip(derivatives, _factors(order), strict=True)]
        terms = [
            [d / f for d, f in zip(of_one, _factors(order), strict=True)]
            for of_one in zip(*derivatives, strict=True)
        ]
        return value, terms

    rules[primitive] = rule


@functools.cache
def _name_p() -> Primitive:
    """What gives the residuals their name. JAX has no rule for it."""
    return jax.make_jaxpr(lambda x: checkpoint_name(x, ""))(np.float32(0)).eqns[0].primitive


def _named(primals, series, **parameters):
    return _name_p().bind(*primals, **parameters), series[0]


def _factors(order: int) -> list[float]:
    """What makes a derivative of a term: terms are Taylor coefficients since JAX has a switch for
    that, and were derivatives before."""
    scaled = _jet is not None and "factorial_scaled" not in inspect.signature(_jet.jet).parameters
    return [1.0 if scaled else float(math.factorial(k)) for k in range(1, order + 1)]


def _curve(derivatives: Sequence[Array]) -> Callable[[Array], Array]:
    """A function with these derivatives at 0, which is never asked for anything elsewhere."""

    @jax.custom_jvp
    def curve(t):
        del t
        return derivatives[0]

    @curve.defjvp
    def _(primals, tangents):
        if len(derivatives) == 1:
            return curve(*primals), jnp.zeros_like(derivatives[0])
        slope = _curve(derivatives[1:])(*primals)
        return curve(*primals), slope * tangents[0].astype(slope.dtype)

    return curve


def _orders(f: Callable, order: int) -> Callable[[Array], list[Array]]:
    """f and its derivatives up to this order."""
    if order == 0:
        return lambda t: [f(t)]
    below = _orders(f, order - 1)

    def up(t):
        values, slopes = jax.jvp(below, (t,), (jnp.ones_like(t),))
        return [*values, slopes[-1]]

    return up

# SPDX-License-Identifier: Apache-2.0
"""A primitive that reports invalid values to checkify.

`checkify.check` alone reports the first invalid sequence of a vmap, but not which one it is. This
primitive keeps all mapped axes until checkify transforms it, so the index in the message counts
them too. If a program is compiled without checkify, the lowering raises an error that says so.

    verdict    bad, values (the same shape)  ->  nothing

The parameters `name` and `what` are parts of the message.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from . import _mesh, _values


def expect_none(verdict: _values.Verdict) -> None:
    """Reports the first value that is invalid."""
    bad, values = jnp.asarray(verdict.bad), jnp.asarray(verdict.values)
    if bad.size and _RULES is None:
        _check(bad, values, name=verdict.name, what=verdict.what)
    elif bad.size:
        verdict_p.bind(bad, values, name=verdict.name, what=verdict.what)


def _first(bad: Array, values: Array) -> tuple[Array, tuple[Array, ...], Array]:
    """Returns whether a value is invalid, the index of the first such value, and that value."""
    bad, values = _replicated(bad), _replicated(values)
    place = jnp.unravel_index(jnp.argmax(bad.reshape(-1)), bad.shape) if bad.ndim else ()
    return bad.any(), tuple(place), values[tuple(place)]


def _replicated(x: Array) -> Array:
    """Returns x replicated by its type (explicit sharding), so that it can be indexed."""
    return _mesh.sharded_with(x, x, [None] * x.ndim)


def _check(bad: Array, values: Array, *, name: str, what: str) -> None:
    found, place, value = _first(bad, values)
    text = _values.message(name, ["{}"] * len(place), "{}", what)
    checkify.check(~found, text, *place, value)


ArrayOrType = Array | jax.ShapeDtypeStruct
verdict_p = Primitive("ctc_verdict")
verdict_p.multiple_results = True


@verdict_p.def_impl
def _(bad, values, *, name, what):
    found, place, value = _first(bad, values)
    if found:
        index = tuple(int(i) for i in place)
        raise checkify.JaxRuntimeError(_values.message(name, index, np.asarray(value), what))
    return []


@verdict_p.def_effectful_abstract_eval
def _(bad, values, **parameters):
    """Returns no types, and the effect of a check. Without the effect JAX would drop the check."""
    plain = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (bad, values)]
    return [], _traced(*plain, **parameters).effects


def _traced(bad: ArrayOrType, values: ArrayOrType, **parameters: str):
    def check(bad: Array, values: Array) -> None:
        _check(bad, values, **parameters)

    return jax.make_jaxpr(jax.jit(check))(bad, values)


def _batch(args, dims, **parameters):
    front = _mesh.mapped_to_front(args, dims)
    if not front[0].size:
        return [], []
    return verdict_p.bind(*front, **parameters), []


def _lower(*_, **parameters):
    raise ValueError(
        "jax_ctc.check: expected to be under checkify, but a program was compiled without it. "
        "Wrap the function before jax.jit: error, out = jax.jit(checkify.checkify(f))(...), then "
        "error.throw(), with checkify from jax.experimental."
    )


def _checkify(*arguments, **parameters):
    """Calls checkify's rule for a jitted function that makes the check. The first arguments belong
    to checkify: the error so far and the enabled errors, and from JAX 0.12 on a context."""
    *context, bad, values = arguments
    assert _RULES is not None
    (call,) = _traced(bad, values, **parameters).eqns
    return _RULES[call.primitive](*context, bad, values, **call.params)


batching.primitive_batchers[verdict_p] = _batch
mlir.register_lowering(verdict_p, _lower)
# checkify has no public function to register a rule, so a release may drop this table.
_RULES = getattr(sys.modules[checkify.check.__module__], "error_checks", None)
if _RULES is not None:
    _RULES[verdict_p] = _checkify

# SPDX-License-Identifier: Apache-2.0
"""A multiplication in which 0 times anything is 0, also 0 times inf or NaN.

A derivative that is exactly 0 must stay 0, whatever direction or cotangent it is multiplied with.
`jnp.where(x == 0, 0, x * y)` handles a zero x. But its transpose multiplies x by a cotangent, and
there a zero cotangent times an infinite x is NaN. So the multiplication is a primitive of its own:
it is linear in each factor, and its transpose is the same multiplication.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.extend.core import primitives as jax_primitives
from jax.interpreters import ad, batching, mlir, xla

from .. import _mesh
from . import taylor
from .family import is_zero, sum_or_zero


def multiply(x: Array, y: Array) -> Array:
    """Returns x * y, and 0 if x or y is 0. Their dtypes are the same; their shapes broadcast."""
    return multiply_p.bind(*jnp.broadcast_arrays(*_mesh.vary_alike(x, y)))


def _multiply(x: Array, y: Array) -> Array:
    return jnp.where((x == 0) | (y == 0), 0, x * y)


def _batch(args, dims):
    x, y = (
        x[None] if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)
    )
    return multiply(x, y), 0


def _jvp(primals, tangents):
    (x, y), (d_x, d_y) = primals, tangents
    terms = [multiply(d_x, y)] if not is_zero(d_x) else []
    terms += [multiply(x, d_y)] if not is_zero(d_y) else []
    out = multiply_p.bind(x, y)
    return out, sum_or_zero(out, terms)


def _transpose(ct, x, y):
    if ad.is_undefined_primal(x):
        return [ad.Zero(x.aval) if is_zero(ct) else multiply(ct, y), None]
    return [None, ad.Zero(y.aval) if is_zero(ct) else multiply(x, ct)]


multiply_p = Primitive("ctc_product")
multiply_p.def_impl(partial(xla.apply_primitive, multiply_p))
# mul's rule returns a type and effects. It has no effects.
multiply_p.def_abstract_eval(lambda *avals: jax_primitives.mul_p.abstract_eval(*avals)[0])
batching.primitive_batchers[multiply_p] = _batch
ad.primitive_jvps[multiply_p] = _jvp
ad.primitive_transposes[multiply_p] = _transpose
mlir.register_lowering(multiply_p, mlir.lower_fun(_multiply, multiple_results=False))
taylor.register(multiply_p)

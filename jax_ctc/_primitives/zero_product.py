# SPDX-License-Identifier: Apache-2.0
"""A product in which 0 times anything is 0, inf and NaN too.

A derivative that is exactly 0 stays so, whatever direction or cotangent it is multiplied with.
`jnp.where(x == 0, 0, x * y)` says that for x alone, and so not for its own transpose, in which y is
the cotangent. The product here is a primitive: linear in each factor, and its own transpose.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.extend.core import primitives as jax_primitives
from jax.interpreters import ad, batching, mlir, xla

from .. import _mesh
from . import taylor


def product(x: Array, y: Array) -> Array:
    """x * y, 0 where x or y is. Their dtypes are the same; their shapes broadcast."""
    return product_p.bind(*jnp.broadcast_arrays(*_mesh.vary_alike(x, y)))


def _product(x: Array, y: Array) -> Array:
    return jnp.where((x == 0) | (y == 0), 0, x * y)


def _batch(args, dims):
    x, y = (
        x[None] if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)
    )
    return product(x, y), 0


def _jvp(primals, tangents):
    (x, y), (d_x, d_y) = primals, tangents
    terms = [product(d_x, y)] if type(d_x) is not ad.Zero else []
    terms += [product(x, d_y)] if type(d_y) is not ad.Zero else []
    out = product_p.bind(x, y)
    return out, sum(terms[1:], terms[0]) if terms else ad.Zero(jax.typeof(out))


def _transpose(ct, x, y):
    if ad.is_undefined_primal(x):
        return [ad.Zero(x.aval) if type(ct) is ad.Zero else product(ct, y), None]
    return [None, ad.Zero(y.aval) if type(ct) is ad.Zero else product(x, ct)]


product_p = Primitive("ctc_product")
product_p.def_impl(lambda *factors: xla.apply_primitive(product_p, *factors))
# mul's rule returns its effects as well, which there are none of.
product_p.def_abstract_eval(lambda *avals: jax_primitives.mul_p.abstract_eval(*avals)[0])
batching.primitive_batchers[product_p] = _batch
ad.primitive_jvps[product_p] = _jvp
ad.primitive_transposes[product_p] = _transpose
mlir.register_lowering(product_p, mlir.lower_fun(_product, multiple_results=False))
taylor.register(product_p)

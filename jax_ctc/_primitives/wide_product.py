# SPDX-License-Identifier: Apache-2.0
"""A product of arrays of the dtype of costs, whose factors are rounded to another.

The factors of a layer may be halves that were widened. They are narrowed again, which changes
nothing, so that the hardware multiplies halves; sums stay wide. In a derivative one factor is a
cotangent, which is rounded. The products of dot_general are not enough, because its derivative
rounds each result to the dtype of a factor, and tiles would add up what was rounded.
"""

import string
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from .. import _mesh
from . import taylor
from .family import is_zero, sum_or_zero

AXES = "".join(a for a in string.ascii_letters if a not in "dv")  # names of axes but D and V


def product(spec: str, x: Array, y: Array, *, dtype: str, precision: lax.PrecisionLike) -> Array:
    """Returns jnp.einsum(spec, x, y). Each axis is in two of the three arrays, or in all."""
    return product_p.bind(*_mesh.vary_alike(x, y), spec=spec, dtype=dtype, precision=precision)


def _product(x, y, *, spec, dtype, precision):
    return jnp.einsum(
        spec, x.astype(dtype), y.astype(dtype), precision=precision, preferred_element_type=x.dtype
    )


def _product_shape(x, y, *, spec, **_):
    (x_axes, y_axes), out_axes = _axes(spec)
    sizes = dict(zip(x_axes + y_axes, x.shape + y.shape, strict=True))
    return x.update(shape=tuple(sizes[a] for a in out_axes), weak_type=False)


def _axes(spec):
    operands, out = spec.split("->")
    return operands.split(","), out


def _product_jvp(primals, tangents, **params):
    (x, y), (d_x, d_y) = primals, tangents
    out, terms = product_p.bind(x, y, **params), []
    if not is_zero(d_x):
        terms.append(product_p.bind(d_x, y, **params))
    if not is_zero(d_y):
        terms.append(product_p.bind(x, d_y, **params))
    return out, sum_or_zero(out, terms)


def _product_transpose(ct, x, y, *, spec, **params):
    (x_axes, y_axes), out_axes = _axes(spec)
    if ad.is_undefined_primal(x):
        if is_zero(ct):
            return [ad.Zero(x.aval), None]
        return [product_p.bind(ct, y, spec=f"{out_axes},{y_axes}->{x_axes}", **params), None]
    if is_zero(ct):
        return [None, ad.Zero(y.aval)]
    return [None, product_p.bind(x, ct, spec=f"{x_axes},{out_axes}->{y_axes}", **params)]


def _product_batch(args, dims, *, spec, **params):
    operands, out = _axes(spec)
    new = next(a for a in reversed(AXES) if a not in spec)
    moved, named = [], []
    for x, d, axes in zip(args, dims, operands, strict=True):
        moved.append(x if d is None else jnp.moveaxis(x, d, 0))
        named.append(axes if d is None else new + axes)
    return product_p.bind(*moved, spec=f"{','.join(named)}->{new}{out}", **params), 0


product_p = Primitive("ctc_linear_product")
product_p.def_impl(partial(xla.apply_primitive, product_p))
product_p.def_abstract_eval(_product_shape)
ad.primitive_jvps[product_p] = _product_jvp
ad.primitive_transposes[product_p] = _product_transpose
batching.primitive_batchers[product_p] = _product_batch
mlir.register_lowering(product_p, mlir.lower_fun(_product, multiple_results=False))
taylor.register(product_p)

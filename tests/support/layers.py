# SPDX-License-Identifier: Apache-2.0
"""Output layers: problems, what the oracle says of them, and the same loss of stored logits."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc
from support import oracle

ARRAYS = (0, 1, 2)  # argnums: hidden, kernel, bias


@dataclass(frozen=True)
class Layer:
    """hidden (T, B, D), kernel (D, V), bias (V,), and the labels of a batch."""

    hidden: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray

    @property
    def arrays(self):
        return self.hidden, self.kernel, self.bias

    @property
    def rest(self):
        return self.labels, self.lengths

    def directions(self, seed=1):
        rng = np.random.default_rng(seed)
        return tuple(rng.normal(size=x.shape).astype(x.dtype) for x in self.arrays)


def problem(T=12, B=4, V=23, L=3, D=6, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, max(V, 2), (B, L), dtype=np.int32)
    labels = np.where(labels < V, labels, -1)  # V = 1 has no labels
    labels[0] = labels[0, 0]  # repeats
    labels[-1, 0] = -1
    lengths = (T - np.arange(B) * 3 % (T // 2)).astype(np.int32)
    hidden = rng.normal(size=(T, B, D)).astype(dtype)
    kernel = (2 * rng.normal(size=(D, V)) / np.sqrt(D)).astype(dtype)
    return Layer(hidden, kernel, rng.normal(size=V).astype(dtype), labels, lengths)


def exact(hidden, kernel, bias, labels, lengths, cotangents=None, **options):
    """Costs and gradients of hidden, kernel and bias in float64, of the sum of costs times
    `cotangents`."""
    hidden, kernel, bias = (np.asarray(x).astype(float) for x in (hidden, kernel, bias))
    logits = hidden @ kernel + bias
    cost, gradient = oracle.cost_and_gradient(logits, labels, lengths, **options)
    if cotangents is not None:
        gradient = gradient * np.asarray(cotangents, float)[:, None]
    d_kernel = np.einsum("tbd,tbv->dv", hidden, gradient)
    return cost, (gradient @ kernel.T, d_kernel, gradient.sum((0, 1)))


def of_logits(hidden, kernel, bias, labels, lengths, **options):
    """The same loss of logits that are stored."""
    wide = np.promote_types(hidden.dtype, np.float32)
    logits = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=wide)
    bias = jnp.expand_dims(bias, tuple(range(logits.ndim - 1))).astype(wide)
    return jax_ctc.ctc(logits + bias, labels, lengths, **options)


def of_tiles(hidden, kernel, bias, labels, lengths, tile_bytes=1024, **options):
    """ctc_linear with tiles so small that there are many."""
    return jax_ctc.ctc_linear(
        hidden, kernel, labels, lengths, bias=bias, tile_bytes=tile_bytes, **options
    )


@cache
def solution_of(f):
    """A program: costs and gradients of f(hidden, kernel, bias, labels, lengths)."""

    def solve(arrays, rest, cotangents):
        cost, pull_back = jax.vjp(lambda *arrays: f(*arrays, *rest), *arrays)
        return cost, pull_back(cotangents.astype(cost.dtype))

    return jax.jit(solve)


def solve(f, layer, cotangents=None):
    if cotangents is None:
        cotangents = np.ones(layer.lengths.shape, np.float32)
    return solution_of(f)(layer.arrays, layer.rest, cotangents)


def assert_close(actual, expected, tolerance=2e-6):
    """Relative to the largest entry of each array."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x).astype(float), np.asarray(y).astype(float)
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(np.abs(y).max(initial=0), 1))

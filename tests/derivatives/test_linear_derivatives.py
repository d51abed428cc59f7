# SPDX-License-Identifier: Apache-2.0
"""Derivatives and vmap of ctc_linear: those of the loss of stored logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import jet

import jax_ctc
from support.layers import ARRAYS, assert_close, of_logits, of_tiles, problem
from support.runs import only_all, sampled, sweep

# XLA of JAX 0.7.0 aborts at D = 3. Formulas are compared in float64, because float32 knows the
# derivatives of sin(cost), of a cost of 20 nats, to 1e-5.
LAYER = problem(T=9, V=11, D=5, dtype=np.float64)
IN_FLOAT32 = problem(T=9, V=11, D=5)
K = 3
CLOSE = 1e-12
MANY = np.random.default_rng(5)
LABELS = MANY.integers(1, 11, (K, 4, 3), dtype=np.int32)
LENGTHS = MANY.integers(6, 10, (K, 4), dtype=np.int32)


def total(f, arrays, rest=LAYER.rest):
    """A scalar whose cotangents differ from cost to cost."""
    return jnp.sin(f(*arrays, *rest)).sum()


def gradient(f, arrays):
    return jax.grad(partial(total, f))(arrays)


def along(g, f, arrays, layer=LAYER):
    """Value and directional derivative of a function of f and arrays."""
    return jax.jvp(partial(g, f), (arrays,), (layer.directions(),))


def slope(f, arrays):
    return along(total, f, arrays)[1]


def third(f, arrays):
    return jax.jvp(lambda x: along(gradient, f, x)[1], (arrays,), (LAYER.directions(2),))[1]


def twice_pulled_back(f, arrays):
    """The pull-back of the gradient is linear, so its own pull-back at 0 is the product."""
    pull = jax.vjp(partial(gradient, f), arrays)[1]
    nothing = jax.tree.map(jnp.zeros_like, arrays)
    return jax.vjp(lambda u: pull(u)[0], nothing)[1](LAYER.directions())[0]


DERIVATIVES = {
    "jvp": partial(along, lambda f, arrays: f(*arrays, *LAYER.rest)),
    "jacrev": lambda f, arrays: jax.jacrev(f, ARRAYS)(*arrays, *LAYER.rest),
    "jacfwd": lambda f, arrays: jax.jacfwd(f, ARRAYS)(*arrays, *LAYER.rest),
    "product, forward over reverse": partial(along, gradient),
    "product, reverse over forward": lambda f, arrays: jax.grad(partial(slope, f))(arrays),
    "product, reverse over reverse": lambda f, arrays: jax.grad(
        lambda x: sum(map(jnp.vdot, gradient(f, x), LAYER.directions()))
    )(arrays),
    "pull-back of the pull-back at 0": lambda f, arrays: twice_pulled_back(f, arrays),
    "third order": third,
    "remat": lambda f, arrays: jax.grad(jax.checkpoint(partial(total, f)))(arrays),
    "linearize": lambda f, arrays: jax.linearize(partial(total, f), arrays)[1](LAYER.directions()),
    "of the kernel alone": lambda f, arrays: jax.grad(f_of_kernel(f))(arrays[1]),
    "of hidden in a scan": lambda f, arrays: jax.grad(partial(scanned, f))(arrays),
}


def f_of_kernel(f):
    hidden, _, bias = LAYER.arrays
    return lambda kernel: total(f, (hidden, kernel, bias))


def scanned(f, arrays):
    """Two heads of intermediate CTC that share their weights, in a loop."""
    hidden, kernel, bias = arrays

    def layer(x, scale):
        return x * scale, total(f, (x, kernel, bias))

    return jax.lax.scan(layer, hidden, jnp.array([0.5, 2]))[1].sum()


FEW = [
    "jvp",
    "jacrev",
    "pull-back of the pull-back at 0",
    "product, forward over reverse",
    "of hidden in a scan",
]


@pytest.mark.parametrize("name", sweep(DERIVATIVES, FEW))
@sampled(2)
def test_derivatives_are_those_of_stored_logits(name):
    derivative = DERIVATIVES[name]
    actual, expected = (
        jax.jit(partial(derivative, f))(LAYER.arrays) for f in (of_tiles, of_logits)
    )
    assert_close(actual, expected, CLOSE)


def test_a_product_in_float32_is_that_of_stored_logits():
    actual, expected = (
        jax.jit(partial(along, gradient, f, layer=IN_FLOAT32))(IN_FLOAT32.arrays)
        for f in (of_tiles, of_logits)
    )
    assert_close(actual, expected, 1e-4)


@only_all
def test_a_taylor_series_is_that_of_stored_logits():
    def series(f):
        terms = [[d, 0 * d] for d in LAYER.directions()]
        return jet.jet(lambda *x: f(*x, *LAYER.rest).sum(), LAYER.arrays, terms)

    assert_close(series(of_tiles), series(of_logits), CLOSE)


# ---- vmap --------------------------------------------------------------------------------------


def each(f, axes, arrays, labels, lengths):
    """Costs for each index, and gradients of the arrays for each index and for all."""
    arrays = list(map(jnp.asarray, arrays))
    costs = jax.vmap(f, axes)(*arrays, labels, lengths)

    def gradient(*x):
        return jax.grad(lambda arrays: total(f, arrays, x[3:]))(x[:3])

    def sum_of_all(arrays):
        return jnp.sin(jax.vmap(f, axes)(*arrays, labels, lengths)).sum()

    return costs, jax.vmap(gradient, axes)(*arrays, labels, lengths), jax.grad(sum_of_all)(arrays)


AXES = {
    "labels": (None, None, None, 0, None),
    "lengths": (None, None, None, None, 0),
    "labels and lengths": (None, None, None, 0, 0),
    "hidden": (0, None, None, None, None),
    "hidden, not the first axis": (2, None, None, None, None),
    "kernel": (None, 0, None, None, None),
    "bias": (None, None, 0, None, None),
    "all": (0, 0, 0, 0, 0),
}


@pytest.mark.parametrize(
    "axes", sweep(AXES, ["labels and lengths", "hidden", "all"]).items(), ids=str
)
@sampled(1)
def test_vmap_is_a_loop(axes):
    axes = axes[1]
    scale = np.array([1, 0.5, 2])
    arguments = [
        x if d is None else np.stack([x * s for s in scale], d)
        for x, d in zip(LAYER.arrays, axes[:3], strict=True)
    ]
    labels = LAYER.labels if axes[3] is None else LABELS
    lengths = LAYER.lengths if axes[4] is None else LENGTHS
    actual, expected = (
        jax.jit(partial(each, f, axes))(arguments, labels, lengths) for f in (of_tiles, of_logits)
    )
    assert_close(actual, expected, CLOSE)


@pytest.mark.parametrize("kernels", sweep([1, K], [1]))
@only_all
def test_an_invalid_length_of_one_index_leaves_the_others_alone(kernels):
    """vmap reads the frames in use for any index."""
    lengths = np.array([[9, 7, 6, 9], [10, 3, 11, -1], [2, 6, -1, 10]], np.int32)
    hidden, kernel, bias = LAYER.arrays
    axes = (None, 0 if kernels > 1 else None, None, None, 0)
    kernel = np.stack([kernel, 2 * kernel, -kernel]) if kernels > 1 else kernel
    cotangents = np.where((lengths >= 0) & (lengths <= 9), 1.0, 0.0)

    def solve(f):
        def costs(*arrays):
            return jax.vmap(f, axes)(*arrays, LAYER.labels, lengths)

        cost, pull_back = jax.vjp(costs, hidden, kernel, bias)
        finite = np.isfinite(np.asarray(cost))
        return cost, pull_back(np.where(finite, cotangents, 0))

    (cost, gradients), (expected, slopes) = solve(of_tiles), solve(of_logits)
    np.testing.assert_allclose(cost, expected, rtol=CLOSE)
    assert_close(gradients, slopes, CLOSE)


def test_vmap_in_vmap():
    def costs(f):
        inner = jax.vmap(f, (None, None, None, 0, None))
        both = jax.vmap(inner, (0, None, None, None, 0))
        hidden = np.stack([LAYER.hidden, 2 * LAYER.hidden, -LAYER.hidden])
        return jax.jit(both)(hidden, *LAYER.arrays[1:], LABELS, LENGTHS)

    assert_close(costs(of_tiles), costs(of_logits))


@pytest.mark.parametrize("number", [2, 3])
@sampled(1)
def test_many_batch_axes_of_hidden(number):
    """Of logits each is a batch axis. A layer has names for the axes of a product."""
    kernel, bias = LAYER.arrays[1:]
    hidden = np.stack([LAYER.hidden, 2 * LAYER.hidden])
    hidden = np.broadcast_to(hidden, (2,) * (number - 1) + hidden.shape)

    def costs_and_gradients(f):
        def total(hidden):
            return f(hidden, kernel, bias, *LAYER.rest).sum()

        g = jax.value_and_grad(total)
        for _ in range(number):
            g = jax.vmap(g)
        return jax.jit(g)(hidden)

    assert_close(costs_and_gradients(of_tiles), costs_and_gradients(of_logits), CLOSE)


def test_an_eager_call_and_a_jitted_one_have_the_same_costs():
    eager = jax_ctc.ctc_linear(*LAYER.arrays[:2], *LAYER.rest, bias=LAYER.bias)
    jitted = jax.jit(jax_ctc.ctc_linear)(*LAYER.arrays[:2], *LAYER.rest, bias=LAYER.bias)
    np.testing.assert_array_equal(eager, jitted)

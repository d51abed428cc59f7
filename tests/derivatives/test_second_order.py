# SPDX-License-Identifier: Apache-2.0
"""Hessians, their products with vectors, and third derivatives."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import jnp_reference, oracle
from support.cases import COMPACT, DENSE, both_layouts, every_edge
from support.programs import direction_like, scalar
from support.results import TOLERANCE
from support.runs import sampled, sweep


@partial(jax.jit, static_argnames=["blank", "time_major"])
def hessian_vector(acts, direction, *rest, **options):
    """Of the sum of the costs; forward over reverse."""
    gradient = jax.grad(lambda acts: jax_ctc.ctc(acts, *rest, **options).sum())
    return jax.jvp(gradient, (acts,), (direction,))[1]


def forward_over_reverse(f, acts, u):
    return jax.jvp(jax.grad(f), (acts,), (u,))[1]


def reverse_over_forward(f, acts, u):
    return jax.grad(lambda acts: jax.jvp(f, (acts,), (u,))[1])(acts)


def reverse_over_reverse(f, acts, u):
    return jax.grad(lambda acts: jnp.vdot(jax.grad(f)(acts), u))(acts)


def forward_over_forward(f, acts, u):
    return jax.jvp(lambda acts: jax.jvp(f, (acts,), (u,))[1], (acts,), (jnp.cos(u),))


def pull_back(f, acts):
    """A linear function: its derivative at 0 is that at any other direction."""
    pull = jax.vjp(jax.grad(f), acts)[1]
    return lambda u: pull(u)[0]


def slope_of_pull_back(f, acts, u):
    return jax.jvp(pull_back(f, acts), (0 * u,), (u,))[1]


def pull_back_of_pull_back(f, acts, u):
    return jax.vjp(pull_back(f, acts), 0 * u)[1](u)[0]


def jit_of(composition):
    return lambda f, acts, u: jax.jit(lambda acts, u: composition(f, acts, u))(acts, u)


PRODUCTS = {
    "forward over reverse": forward_over_reverse,
    "reverse over forward": reverse_over_forward,
    "reverse over reverse": reverse_over_reverse,
    "jit of forward over reverse": jit_of(forward_over_reverse),
    "linearized gradient": lambda f, acts, u: jax.linearize(jax.grad(f), acts)[1](u),
    "vjp of gradient": lambda f, acts, u: jax.vjp(jax.grad(f), acts)[1](u)[0],
    "of a checkpoint": lambda f, acts, u: reverse_over_reverse(jax.checkpoint(f), acts, u),
    "slope of the pull-back at 0": slope_of_pull_back,
    "pull-back of the pull-back at 0": pull_back_of_pull_back,
    "transposed pull-back": lambda f, acts, u: jax.linear_transpose(pull_back(f, acts), u)(u)[0],
}
HESSIANS = {
    "hessian": lambda f, acts, u: jax.hessian(f)(acts),
    "jit of hessian": lambda f, acts, u: jax.jit(jax.hessian(f))(acts),
    "jacfwd of jacfwd": lambda f, acts, u: jax.jacfwd(jax.jacfwd(f))(acts),
    "jacrev of jacrev": lambda f, acts, u: jax.jacrev(jax.jacrev(f))(acts),
    "jacrev of jacfwd": lambda f, acts, u: jax.jacrev(jax.jacfwd(f))(acts),
}


def through_scan(f):
    """f as the step of a scan, whose derivatives JAX takes apart once more."""
    return lambda acts: jax.lax.scan(lambda carry, x: (carry, f(x)), 0.0, acts[None])[1].sum()


def along(f, u):
    return lambda acts: jax.jvp(f, (acts,), (u,))[1]


OTHERS = {
    "forward over forward": forward_over_forward,
    "products with several vectors": lambda f, acts, u: jax.vmap(
        lambda u: forward_over_reverse(f, acts, u)
    )(jnp.stack([u, u**2, jnp.ones_like(u)])),
    "products at several points": lambda f, acts, u: jax.vmap(
        lambda acts: forward_over_reverse(f, acts, u), in_axes=2, out_axes=1
    )(jnp.stack([acts, -acts], axis=2)),
    "products in a scan": lambda f, acts, u: jax.lax.scan(
        lambda acts, u: (acts + 0.1 * forward_over_reverse(f, acts, u), None),
        acts,
        jnp.stack([u, -u, u]),
    )[0],
    "third order along a line": jit_of(
        lambda f, acts, u: jax.jvp(
            lambda acts: forward_over_reverse(f, acts, u), (acts,), (jnp.cos(u),)
        )
    ),
    "third order in reverse": jit_of(
        lambda f, acts, u: jax.grad(
            lambda acts: jnp.vdot(forward_over_reverse(f, acts, u), jnp.cos(u))
        )(acts)
    ),
    "third order forward throughout": jit_of(
        lambda f, acts, u: jax.jvp(
            lambda acts: forward_over_forward(f, acts, u), (acts,), (jnp.sin(u),)
        )
    ),
    "product through a scan": jit_of(
        lambda f, acts, u: forward_over_reverse(through_scan(f), acts, u)
    ),
    "fourth order through a scan": jit_of(
        lambda f, acts, u: along(jax.grad(along(along(through_scan(f), u), u)), u)(acts)
    ),
}


def composed(composition, loss, case):
    acts, labels, lengths, _ = case.arguments(np.float64)
    cost = scalar(lambda acts: loss(acts, labels, lengths))
    return composition(cost, jnp.asarray(acts), direction_like(acts))


@cache
def expected_from_the_scan(composition, name):
    case = {"dense": DENSE, "compact": COMPACT}[name]
    return jax.jit(lambda: composed(composition, jnp_reference.ctc, case))()


def assert_agrees(composition, case, simplest):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9),
        composed(composition, jax_ctc.ctc, case),
        expected_from_the_scan(simplest, case.name),
    )


@both_layouts
@pytest.mark.parametrize("composition", PRODUCTS.values(), ids=PRODUCTS.keys())
@sampled(4)
def test_every_way_to_a_product_agrees_with_the_scan(case, composition):
    assert_agrees(composition, case, PRODUCTS["forward over reverse"])


def in_layouts(compositions, dense, compact):
    """Each composition in both layouts in `make test-all`, else these names in these layouts."""
    few = [*((DENSE, name) for name in dense), *((COMPACT, name) for name in compact)]
    chosen = sweep(list(itertools.product([DENSE, COMPACT], compositions)), few)
    ids = [f"{name}, {case.name}" for case, name in chosen]
    return pytest.mark.parametrize(("case", "name"), chosen, ids=ids)


@in_layouts(
    HESSIANS,
    ["hessian", "jacrev of jacrev"],
    ["jacrev of jacfwd"],
)
@sampled(1)
def test_every_way_to_a_hessian_agrees_with_the_scan(case, name):
    assert_agrees(HESSIANS[name], case, HESSIANS["hessian"])


@in_layouts(
    OTHERS,
    ["products with several vectors", "products in a scan"],
    ["forward over forward", "products at several points"],
)
@sampled(2)
def test_what_is_made_of_products_agrees_with_the_scan(case, name):
    assert_agrees(OTHERS[name], case, OTHERS[name])


@every_edge
@sampled(8)
def test_a_product_is_the_slope_of_the_gradient(case):
    acts, labels, lengths, label_lengths = case.arguments(np.float64)
    direction = direction_like(acts)
    product = hessian_vector(acts, direction, labels, lengths, label_lengths, blank=case.blank)
    expected = oracle.hessian_vector(
        acts, labels, lengths, direction, label_lengths, blank=case.blank
    )
    np.testing.assert_allclose(product, expected, atol=2e-9)


@both_layouts
def test_a_product_sums_to_zero_in_every_frame_and_is_zero_after_the_length(case):
    acts, labels, lengths, _ = case.arguments(np.float64)
    product = np.asarray(hessian_vector(acts, direction_like(acts), labels, lengths))
    np.testing.assert_allclose(product.sum(axis=-1), 0, atol=1e-13)
    assert not product[np.arange(case.T)[:, None] >= lengths].any()


@both_layouts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_has_gradient_zero_has_products_zero(case, dtype):
    acts, labels, lengths, _ = case.arguments(dtype)
    usual = hessian_vector(acts, direction_like(acts), labels, lengths)
    acts[lengths[0] - 1 :, 1] = np.nan
    lengths[1] = 1  # infeasible
    labels[2, 0] = 99  # bad
    product = hessian_vector(acts, direction_like(acts), labels, lengths)
    assert not product[:, 1:].any()
    np.testing.assert_allclose(product[:, 0], usual[:, 0], atol=1e-5)


@both_layouts
def test_products_of_impossible_classes_are_zero_and_finite(case):
    acts, labels, lengths, _ = case.arguments(np.float64)
    acts[3, 0, 2] = acts[5, 1, 0] = -np.inf
    product = hessian_vector(acts, direction_like(acts), labels, lengths)
    expected = oracle.hessian_vector(acts, labels, lengths, direction_like(acts))
    np.testing.assert_allclose(product, np.nan_to_num(expected), atol=2e-9)


@pytest.mark.parametrize(("T", "L", "V"), [(400, 60, 32), (400, 60, 100), (2000, 100, 20)])
@pytest.mark.parametrize("spread", [1, 20])
@pytest.mark.parametrize("offset", [0, 1000])
@sampled(4)
def test_float32_products_keep_five_digits(T, L, V, spread, offset):
    """Measured by the largest product, or by the direction less its mean over each frame."""
    rng = np.random.default_rng(0)
    acts = (spread * rng.normal(size=(T, 1, V))).astype(np.float32)
    direction = (offset + rng.normal(size=acts.shape)).astype(np.float32)
    arguments = acts, rng.integers(1, V, (1, L)), np.array([T])
    product = hessian_vector(acts, direction, *arguments[1:])
    expected = oracle.hessian_vector(*arguments, direction.astype(float) - offset)
    scale = max(np.abs(expected).max(), np.abs(direction - np.float32(offset)).max())
    allowed = 5 * TOLERANCE[np.dtype("float32")] * scale
    np.testing.assert_allclose(product, expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("t", range(5))
def test_a_cotangent_of_one_frame_alone_is_one(t):
    acts = np.random.default_rng(t).normal(size=(5, 1, 4))
    gradient = jax.grad(lambda acts: jax_ctc.ctc(acts, np.array([[1, 2]]), np.array([5])).sum())
    direction = np.zeros_like(acts)
    direction[t, 0, 1] = 1
    forward = jax.jvp(gradient, (acts,), (direction,))[1]
    backward = jax.grad(lambda acts: gradient(acts)[t, 0, 1])(acts)
    assert np.abs(forward[t]).max() > 1e-3
    np.testing.assert_allclose(backward, forward, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_changes_of_tangents_of_halves_are_float32(dtype):
    rng = np.random.default_rng(0)
    acts, u, v = (jnp.asarray(rng.normal(size=(20, 2, 6)), dtype) for _ in range(3))
    labels, lengths = np.array([[1, 2], [3, 3]]), np.array([20, 15])

    def change(acts, u, v):
        cost = lambda acts: jax_ctc.ctc(acts, labels, lengths)  # noqa: E731
        return jax.jvp(lambda acts: jax.jvp(cost, (acts,), (u,))[1], (acts,), (v,))[1]

    found = change(acts, u, v)
    assert found.dtype == np.float32
    wide = change(*(x.astype(np.float32) for x in (acts, u, v)))
    np.testing.assert_allclose(found, wide, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_products_have_the_dtype_of_acts(dtype):
    acts = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 4)), dtype)
    direction = direction_like(acts)
    labels, lengths = np.array([[1, 2], [3, 3]]), np.array([5, 4])
    product = hessian_vector(acts, direction, labels, lengths)
    assert product.dtype == dtype
    expected = oracle.hessian_vector(acts, labels, lengths, np.asarray(direction).astype(float))
    tolerance = max(float(jnp.finfo(dtype).eps), 10 * TOLERANCE[np.dtype("float32")])
    np.testing.assert_allclose(product.astype(float), expected, rtol=tolerance, atol=tolerance)

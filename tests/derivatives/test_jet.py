# SPDX-License-Identifier: Apache-2.0
"""Taylor series (jax.experimental.jet): the derivatives along a curve that nested JVPs give."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.runs import sampled, sweep

jet = pytest.importorskip("jax.experimental.jet").jet

T, LENGTHS = 6, np.array([6, 5, 2], np.int32)
LABELS = np.array([[1, 2, 2], [3, 1, -1], [1, 2, 3]], np.int32)  # the last does not fit


def cost(acts):
    return jax_ctc.ctc(acts, LABELS, LENGTHS, zero_infinity=True)


def hypotheses(acts):
    return jax.vmap(jax_ctc.ctc, (None, 0, None))(acts, LABELS[None, :2], LENGTHS[:2])


def alignment(acts):
    return jax_ctc.ctc_align(acts, LABELS[:2], LENGTHS[:2]).score


FUNCTIONS = {
    "alignment": (alignment, 2, 4),
    "dense": (cost, 3, 4),
    "compact": (cost, 3, 9),
    "gradient, dense": (jax.grad(lambda acts: cost(acts).sum()), 3, 4),
    "gradient, compact": (jax.grad(lambda acts: cost(acts).sum()), 3, 9),
    "hypotheses": (hypotheses, 2, 16),
}


@pytest.mark.parametrize(
    ("name", "order"),
    sweep(
        [*((name, 3) for name in FUNCTIONS), *((name, 2) for name in FUNCTIONS)],
        [("dense", 3), ("gradient, compact", 2), ("hypotheses", 2), ("alignment", 2)],
    ),
)
@sampled(1)
def test_series_are_those_of_nested_jvps(name, order):
    f, B, V = FUNCTIONS[name]
    rng = np.random.default_rng(V)
    acts, *terms = (rng.normal(size=(T, B, V)).astype(np.float32) for _ in range(order + 1))

    def along(t):
        powers = [t**k / math.factorial(k) for k in range(1, order + 1)]
        return f(acts + sum(power * term for power, term in zip(powers, terms, strict=True)))

    def slope(g):
        return lambda t: jax.jvp(g, (t,), (jnp.ones_like(t),))[1]

    @jax.jit
    def both(acts):
        slopes = [slope(along)]
        for _ in range(order - 1):
            slopes.append(slope(slopes[-1]))
        return jet(f, (acts,), (terms,)), (f(acts), [g(jnp.float32(0)) for g in slopes])

    (value, series), (expected, orders) = both(acts)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    for actual, exact in zip(series, orders, strict=True):
        scale = float(jnp.abs(exact).max())
        np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-5 * max(scale, 1))


def test_a_sequence_without_an_alignment_has_no_series():
    rng = np.random.default_rng(0)
    acts, *terms = (rng.normal(size=(T, 3, 9)).astype(np.float32) for _ in range(3))
    terms[1][:, 2] = np.nan
    _, series = jax.jit(lambda acts: jet(cost, (acts,), (terms,)))(acts)
    for term in series:
        assert term[2] == 0
        assert np.isfinite(term).all()


def test_a_path_has_a_series_of_zeros():
    acts = np.cos(np.arange(T * 8)).reshape(T, 2, 4).astype(np.float32)
    align = lambda acts: jax_ctc.ctc_align(acts, LABELS[:2], LENGTHS[:2])  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):  # jet scales the terms of integers too
        out, series = jet(align, (acts,), ([acts, acts],))
    for x, terms in zip(out[:2], series[:2], strict=True):
        np.testing.assert_array_equal(x, align(acts)[0 if x is out[0] else 1])
        assert not np.asarray(terms).any()

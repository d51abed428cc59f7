# SPDX-License-Identifier: Apache-2.0
"""The sum of a wide row, wherever its largest logit stands and however far it is above the others.

The kernels sum relative to the largest of the first 64 logits. They read the part of a stretch
again that has the largest of all, often only one lane of it (kernels/cpu/simd/row_sums.h). With
one frame and no label the cost is log(sum of exp(x - x[blank])), and the most probable class has
that sum without its own term.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from jax_ctc._primitives.top_class import top_class_p
from support import oracle
from support.results import COMPILED, DEVICE, assert_same_bits
from support.runs import sampled, sweep

# XLA's sums of pure JAX, and exp on a GPU, are less exact.
DIGITS = 1e-6 if COMPILED and DEVICE == "cpu" else 4e-6
# Rows of one piece, which are read twice, and of one to five stretches of eight pieces. The last
# part has 1 to 9 entries, or is full.
WIDTHS = [129, 300, 1024, 1025, 4101, 8192, 8201, 16_397, 40_003]


def confident(rest):
    """Rows whose largest logit is 0, over such a rest."""
    return lambda x: np.where(x == x.max(), 0, rest + 0.1 * x)


def first_ones(value, count=64):
    def rows(x):
        x = x.copy()
        x[:count] = np.where(x[:count] == x.max(), x.max(), value + 0.1 * x[:count])
        return x

    return rows


ROWS = {
    "normal": lambda x: x,
    "all equal": lambda x: 0 * x + 3,
    "rising": lambda x: np.where(x == x.max(), 30, np.linspace(-5, 29, len(x))),
    "others equal": lambda x: np.where((np.arange(len(x)) % 40 == 7) & (x < x.max()), 4.5, x),
    "one of others -20": confident(-20),
    "one of others -9": confident(-9),
    "half of the probability": lambda x: confident(-np.log(len(x)))(x),
    "first ones 39 below": first_ones(-34),
    "first ones 41 below": first_ones(-36),
    "first ones 105 below": first_ones(-100),
    "first ones 1e4 below": first_ones(-1e4),
    "first ones 1e6 below": first_ones(-1e6),
    "first ones -inf": first_ones(-np.inf),
    "later ones -inf": lambda x: np.where((np.arange(len(x)) < 64) | (x == x.max()), x, -np.inf),
    "all but the largest -inf": lambda x: np.where(x == x.max(), x, -np.inf),
    "around 16380": lambda x: x + 16380,
    "around -16380": lambda x: x - 16380,
    "around 1e5": lambda x: x + 1e5,
    "around 1e6": lambda x: x + 1e6,
    "around -3e7": lambda x: x - 3e7,
}


def row(kind, V, place, other=None):
    """Its largest logit is at `place`, and in `other` places too."""
    x = np.random.default_rng(V + place).normal(size=V)
    x[place] = 5
    x = ROWS[kind](x).astype(np.float32)
    if other is not None:
        x[other] = x[place]
    return x


def places(V):
    """In each stretch, and in lanes of the last vector that are in the one before it too."""
    return [0, 63, 64, V // 2, V - 18, V - 9, V - 2, V - 1]


PLACES = [(V, place) for V in WIDTHS for place in places(V)]
SOME = {300: [150], 1025: [64, 1024], 4101: [4083], 8201: [4100, 8199], 16_397: [63, 8198, 16_396]}
AT = pytest.mark.parametrize(
    ("V", "place"), sweep(PLACES, [(V, place) for V in SOME for place in SOME[V]])
)


def sums_of_others(rows, place):
    """The sum of exp(x - x[place]) over all other classes."""
    exact = np.asarray(rows, np.float64)
    terms = np.exp(exact - exact[:, place : place + 1])
    return np.delete(terms, place, axis=1).sum(axis=1)


@partial(jax.jit, static_argnames="blank")
def cost(rows, blank):
    return jax_ctc.ctc(
        rows[None],
        np.zeros((len(rows), 0), np.int32),
        np.ones(len(rows), np.int32),
        blank=blank,
    )


@jax.jit
def top_class(rows):
    few = np.zeros((len(rows), 0), np.int32), np.ones(len(rows), np.int32)
    return [x[0] for x in top_class_p.bind(rows[None], *few, time_axis=0, blank=0, threads=0)]


def assert_summed(rows, place):
    """The digits of a small sum are those of log(1 + sum), so the cost of a row has them too."""
    others = sums_of_others(rows, place)
    np.testing.assert_allclose(cost(rows, place), np.log1p(others), rtol=DIGITS)
    best, top, found = top_class(rows)
    np.testing.assert_array_equal(best, np.argmax(np.asarray(rows), axis=1))
    np.testing.assert_array_equal(top, np.asarray(rows).max(axis=1))
    np.testing.assert_allclose(found, others, rtol=DIGITS)


@AT
def test_the_digits_of_the_sum_do_not_depend_on_where_the_largest_is(V, place):
    assert_summed(np.stack([row(kind, V, place) for kind in ROWS]), place)


@AT
def test_equal_largest_logits_in_other_parts_count(V, place):
    others = [0, V // 3, [0, V // 3], [0, V // 3, V // 2], np.r_[V // 2 : V], np.r_[0:V:100]]
    assert_summed(np.stack([row(k, V, place, other) for k in ROWS for other in others]), place)


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@sampled(6)
def test_halves_have_the_sums_of_the_same_floats(V, dtype):
    some = [None, np.r_[V // 2 : V : 7]]
    rows = np.stack([row(k, V, p, other) for k in ROWS for p in places(V) for other in some])
    half = jnp.asarray(np.clip(rows, -6e4, 6e4), dtype)
    assert_same_bits(cost(half, 0), cost(half.astype(jnp.float32), 0))


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("other", [None, np.nan, np.inf], ids=["alone", "and nan", "and inf"])
@sampled(9)
def test_a_row_with_a_nan_or_an_infinite_logit_has_no_sum(V, odd, other):
    rows = np.stack([row(kind, V, V // 2) for kind in ROWS])
    # In the lane of the largest too, before it and after it: in its part and in others.
    of_lane = V // 2 + np.array([-576, -64, 64, 576])
    for place in [*places(V), *of_lane[(0 <= of_lane) & (of_lane < V)]]:
        bad = rows.copy()
        bad[:, place] = odd
        if other is not None:
            bad[:, place // 2 + 1] = other
        blank = 1 if place == 0 else 0
        assert np.isnan(cost(bad, blank)).all()
        best, _, others = top_class(bad)
        assert (np.asarray(best) == -1).all()
        assert np.isnan(others).all()


@pytest.mark.skipif(not COMPILED or DEVICE != "cpu", reason="pure JAX has float32's digits alone")
@pytest.mark.parametrize("V", WIDTHS)
def test_a_frame_between_two_labels_keeps_the_digits_of_the_rest(V):
    """Its three equal logits lead to the same labels, so the cost is what other classes have."""
    labels, blank = [V // 3, V - 2], 5
    rows = np.stack([row("one of others -20", V, place) for place in (*labels, *labels)])[[0, 2, 1]]
    rows[1, [*labels, blank]] = rows[1].max()
    problem = rows[:, None], np.array([labels], np.int32), np.array([3], np.int32)
    np.testing.assert_allclose(
        jax.jit(partial(jax_ctc.ctc, blank=blank))(*problem),
        oracle.solve(*problem, blank=blank).cost,
        rtol=DIGITS,
    )

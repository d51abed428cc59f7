# SPDX-License-Identifier: Apache-2.0
"""The most probable class of each frame, by the kernel and in pure JAX, against plain NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from jax_ctc._primitives.top_class import _top_class, top_class_p
from support.results import COMPILED, assert_same_bits
from support.runs import only_all, sampled, sweep

PARAMETERS = {"time_axis": 0, "blank": 0, "threads": 0}
FOUND_BY = pytest.mark.parametrize(
    "bind", [top_class_p.bind, _top_class], ids=["primitive", "pure JAX"]
)
FEW = [1, 3, 4, 5, 15, 16, 17, 31, 33, 64, 65, 127, 128]  # four rows at once
MANY = [129, 200, 255, 512, 1023, 1024, 1025, 2047, 2500, 5000]  # in pieces of up to 1024 classes
T, B = 7, 5


def top_class(bind, acts, lengths, **parameters):
    nothing = np.zeros((*np.shape(lengths), 0), np.int32)
    found = jax.jit(partial(bind, **PARAMETERS | parameters))(acts, nothing, lengths)
    return [np.asarray(x) for x in found]


def problem(V, dtype=np.float32, seed=0):
    """With equal logits, logits of -inf, and rows of which all but one class is -inf."""
    rng = np.random.default_rng(seed)
    acts = rng.normal(scale=3, size=(T, B, V))
    acts[rng.random((T, B)) < 0.3] = rng.integers(-2, 3, V)
    acts[rng.random((T, B, V)) < 0.1] = -np.inf
    acts[..., V // 2] = np.maximum(acts[..., V // 2], -5)
    acts[2, 1], acts[2, 1, V - 1] = -np.inf, -7
    acts[T - 1, 0] = np.nan  # not in use
    return jnp.asarray(acts, dtype), np.array([T - 1, T, 3, 0, 1], np.int32)


def expected(acts, lengths):
    """best, top and others of each frame."""
    acts = np.asarray(acts, np.float64)
    used = np.arange(len(acts))[:, None] < lengths
    acts = np.where(used[..., None], acts, 0)
    best, top = acts.argmax(-1), acts.max(-1)
    terms = np.exp(acts - top[..., None])
    np.put_along_axis(terms, best[..., None], 0, -1)
    return [np.where(used, x, rest) for x, rest in ((best, -1), (top, 0), (terms.sum(-1), 0))]


@FOUND_BY
@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("V", sweep(FEW + MANY, [1, 33, 1025]))
@sampled(8)
def test_it_is_the_first_of_the_largest_logits(bind, dtype, V):
    acts, lengths = problem(V, dtype)
    best, top, others = top_class(bind, acts, lengths)
    right = expected(acts, lengths)
    np.testing.assert_array_equal(best, right[0])
    np.testing.assert_array_equal(top, right[1])
    np.testing.assert_allclose(others, right[2], rtol=1e-13 if dtype == np.float64 else 1e-6)


@FOUND_BY
@pytest.mark.parametrize("V", sweep(FEW + MANY, [1, 33, 129]))
@sampled(2)
def test_of_equal_logits_it_is_the_first_wherever_they_stand(bind, V):
    for place in sorted({0, 1, V // 3, V // 2, V - 2, V - 1} & set(range(V))):
        acts = np.zeros((3, 1, V), "f")
        acts[:, :, place:] = 1
        best, top, others = top_class(bind, acts, np.array([3], np.int32))
        assert best.tolist() == [[place]] * 3
        assert (top == 1).all()
        np.testing.assert_allclose(others, V - place - 1 + place * np.exp(-1), rtol=1e-6)


@FOUND_BY
@pytest.mark.parametrize("V", sweep(FEW + MANY, [1, 16, 1025]))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_row_without_a_softmax_has_none(bind, V, value):
    acts, _ = problem(V)
    acts = np.array(acts)
    acts[T - 1, 0] = 0
    lengths = np.full(B, T, np.int32)
    places = {(1, 0, 0), (3, 2, V - 1), (4, 4, V // 2)}
    for t, b, v in places:
        acts[t, b, v if value != -np.inf else slice(None)] = value
    best, top, others = top_class(bind, acts, lengths)
    bad = np.zeros((T, B), bool)
    for t, b, _ in places:
        bad[t, b] = True
    assert (best[bad] == -1).all()
    assert np.isneginf(top[bad]).all()
    np.testing.assert_array_equal(np.isnan(others), bad)
    right = expected(np.where(bad[..., None], 0, acts), lengths)
    np.testing.assert_array_equal(best[~bad], right[0][~bad])
    np.testing.assert_allclose(others[~bad], right[2][~bad], rtol=1e-6)


@pytest.mark.skipif(not COMPILED, reason="XLA adds in an order that may depend on the batch")
@pytest.mark.parametrize("V", sweep([5, 40, 128, 300], [40, 300]))
@pytest.mark.parametrize("time_axis", [0, 1])
def test_a_row_has_the_same_bits_in_every_place(V, time_axis):
    acts, lengths = problem(V)
    bind = top_class_p.bind
    together = top_class(
        bind, acts if time_axis == 0 else acts.swapaxes(0, 1), lengths, time_axis=time_axis
    )
    for b in range(B):
        for x, y in zip(together, top_class(bind, acts[:, b], lengths[b]), strict=True):
            assert_same_bits(x[:, b] if time_axis == 0 else x[b], y)


def of_best(acts, direction=None):
    """The log-probability of the best class of each frame, in plain JAX."""
    scores = jax.nn.log_softmax(acts)
    return jnp.take_along_axis(scores, acts.argmax(-1)[..., None], -1)[..., 0]


def found_of_best(bind, acts, lengths):
    nothing = jnp.zeros((*lengths.shape, 0), jnp.int32)
    return -jnp.log1p(bind(acts, nothing, lengths, **PARAMETERS)[2])


@pytest.mark.parametrize("V", [5, 300])
@only_all
def test_derivatives_of_every_order_are_those_of_the_log_probability(V):
    rng = np.random.default_rng(1)
    acts, u = (jnp.asarray(rng.normal(scale=2, size=(T, B, V))) for _ in range(2))
    lengths = jnp.full(B, T, jnp.int32)
    weights = jnp.asarray(rng.normal(size=(T, B)))
    f = partial(found_of_best, top_class_p.bind, lengths=lengths)

    def total(of):
        return lambda acts: (weights * of(acts)).sum()

    def along(of):
        return lambda acts: jax.jvp(jax.grad(total(of)), (acts,), (u,))[1]

    for x, y in [
        (jax.jvp(f, (acts,), (u,))[1], jax.jvp(of_best, (acts,), (u,))[1]),
        (jax.grad(total(f))(acts), jax.grad(total(of_best))(acts)),
        (along(f)(acts), along(of_best)(acts)),
        (jax.jvp(along(f), (acts,), (u,))[1], jax.jvp(along(of_best), (acts,), (u,))[1]),
    ]:
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)


def test_of_a_large_direction_what_differs_keeps_its_digits():
    rng = np.random.default_rng(2)
    acts = rng.normal(size=(T, B, 40)).astype("f")
    noise = rng.normal(size=acts.shape)
    direction = (4096 + noise).astype("f")
    lengths = jnp.full(B, T, jnp.int32)
    f = partial(found_of_best, top_class_p.bind, lengths=lengths)
    found = jax.jvp(f, (acts,), (direction,))[1]
    exact = acts.astype(float), direction.astype(float) - 4096
    right = jax.jvp(of_best, exact[:1], exact[1:])[1]
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@sampled(1)
def test_a_gradient_of_halves_is_rounded_once(dtype):
    rng = np.random.default_rng(3)
    acts = jnp.asarray(rng.normal(size=(T, B, 9)), dtype).at[..., 4].set(9)  # nearly certain
    lengths = jnp.full(B, T, jnp.int32)
    found = jax.grad(lambda x: found_of_best(top_class_p.bind, x, lengths).sum())(acts)
    right = jax.grad(lambda x: of_best(x).sum())(acts.astype(jnp.float64))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.astype(float), right, rtol=1.01 * float(jnp.finfo(dtype).eps) / 2, atol=1e-7
    )


@pytest.mark.skipif(not COMPILED, reason="the fallback may hold an array as large as acts")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
@sampled(2)
def test_callers_hold_nothing_as_large_as_acts(dtype):
    T, B, V, L = 50, 4, 1000, 5
    acts = jax.ShapeDtypeStruct((T, B, V), dtype)
    lengths = jax.ShapeDtypeStruct((B,), np.int32)
    many = jax.ShapeDtypeStruct((6, B), np.int32)
    alignment = jax.eval_shape(jax_ctc.ctc_align, acts, np.ones((B, L), int), np.full(B, T))
    alignments = jax.tree.map(lambda x: jax.ShapeDtypeStruct((6, *x.shape), x.dtype), alignment)
    confidence = partial(jax_ctc.label_confidence, L=L)
    for f, arguments in [
        (jax_ctc.ctc_greedy_decode, (acts, lengths)),
        (confidence, (acts, alignment)),
        (jax.vmap(jax_ctc.ctc_greedy_decode, (None, 0)), (acts, many)),
        (jax.vmap(confidence, (None, 0)), (acts, alignments)),
    ]:
        memory = jax.jit(f).lower(*arguments).compile().memory_analysis()
        assert memory.temp_size_in_bytes < T * B * V * np.dtype(dtype).itemsize // 5


@only_all
def test_a_small_sum_keeps_its_digits():
    """With 1 added to it, it would be 0."""
    # SSE2 has no fused multiply-add, so 65 log2(e) is rounded (exp.h).
    digits = 65 * 5 * 2.0**-26 if jax_ctc.build_info()["cpu"] == "baseline" else 1e-6
    for V, dtype in ((3, np.float32), (3, np.float64), (300, np.float32), (300, np.float64)):
        acts = np.full((1, V), -np.inf, dtype)
        acts[0, [0, 1, V - 1]] = 0, 60, -5
        acts = jnp.asarray(acts)
        expected = np.exp(-60) + np.exp(-65)
        score, gradient = jax.value_and_grad(lambda x: jax_ctc.ctc_greedy_decode(x, 1).score)(acts)
        np.testing.assert_allclose(score, -expected, rtol=digits)
        np.testing.assert_allclose(
            gradient[0, np.array([0, 1, V - 1])],
            [-np.exp(-60), expected, -np.exp(-65)],
            rtol=digits,
        )


def test_an_infinite_cotangent_leaves_no_nan():
    acts = jnp.array([[3.0, 1, -np.inf, 2]])
    _, back = jax.vjp(lambda x: jax_ctc.ctc_greedy_decode(x, 1).score, acts)
    assert back(jnp.array(np.inf))[0].tolist() == [[np.inf, -np.inf, 0, -np.inf]]


@only_all
def test_lengths_may_be_mapped_alone():
    acts, _ = problem(9)  # with NaN in a frame behind some of the lengths
    many = np.array([[T, 0, 3, 2, 1], [1, T, T, 4, 0]], np.int32)
    mapped = jax.vmap(jax_ctc.ctc_greedy_decode, (None, 0))(acts, many)
    for k, lengths in enumerate(many):
        for x, y in zip(mapped, jax_ctc.ctc_greedy_decode(acts, lengths), strict=True):
            assert_same_bits(x[k], y)

    def gradient(acts, lengths):
        score = lambda x: jax_ctc.ctc_greedy_decode(x, lengths).score  # noqa: E731
        return jax.vjp(score, acts)[1](jnp.ones(B, acts.dtype))[0]

    mapped = jax.vmap(gradient, (None, 0))(acts, many)
    for k, lengths in enumerate(many):
        np.testing.assert_allclose(mapped[k], gradient(acts, lengths), rtol=1e-6)
        assert np.isnan(mapped[k]).any() == (lengths[0] == T)

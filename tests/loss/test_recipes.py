# SPDX-License-Identifier: Apache-2.0
"""The recipes of docs/recipes.md: the page's own code, against sums over all alignments."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jax_ctc
from support import oracle
from support.runs import ROOT, sampled

PAGE = ROOT / "docs" / "recipes.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a source tree")

T, B, V = 6, 3, 4
ACTS = np.random.default_rng(0).normal(size=(T, B, V))
LABELS = np.array([[1, 2, 1], [3, 3, -1], [2, -1, -1]])
LENGTHS = np.array([6, 5, 3])
LOG_P = oracle.log_softmax(ACTS)
COST = oracle.solve(ACTS, LABELS, LENGTHS).cost


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def page():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code, names)
    return names


def paths_of(b, labels=LABELS, classes=V):
    """(N, length) all alignments of a sequence."""
    wanted = [k for k in labels[b] if k >= 0]
    paths = itertools.product(range(classes), repeat=LENGTHS[b])
    return np.array([p for p in paths if [k for k, _ in itertools.groupby(p) if k] == wanted])


def scores_of(scores, b, paths):
    """(N,) sums of (T, B, V) scores along paths."""
    return scores[np.arange(paths.shape[1]), b, paths].sum(-1)


PATHS = [paths_of(b) for b in range(B)]


def total(scores, paths=PATHS):
    """(B,) minus the log-sum over all alignments."""
    return np.array([-np.logaddexp.reduce(scores_of(scores, b, paths[b])) for b in range(B)])


def of_frames(x):
    return np.where(np.arange(T)[:, None] < LENGTHS, x, 0).sum(0)


def costs_by(page, name, acts):
    """The costs that a recipe makes."""
    if name == "consistent":
        other = jnp.where(jnp.isnan(acts), acts, ACTS[::-1] / 2)
        return page[name](acts, other, LABELS, LENGTHS)
    if name == "log_scores":
        acts = page[name](acts, LENGTHS, np.log([0.4, 0.3, 0.2, 0.1]))
    elif name == "with_star":
        acts = page[name](acts, LENGTHS)
    else:
        return page[name](acts, LABELS, LENGTHS)
    return jax_ctc.ctc(acts, LABELS, LENGTHS, softmax=False)


RECIPES = (
    "mean_per_label smoothed path_entropy expected_times delay_penalised log_scores consistent "
    "with_star"
).split()


@pytest.mark.parametrize("name", RECIPES)
@sampled(2)
def test_padded_frames_have_no_influence_on_a_compiled_gradient(page, name):
    def recipe(acts):
        return costs_by(page, name, acts).sum()

    padded = np.where((np.arange(T)[:, None] < LENGTHS)[..., None], ACTS, np.nan)
    padded[0, :, 0] = ACTS[0, :, 0]
    gradient = np.asarray(jax.jit(jax.grad(recipe))(padded))
    assert np.isfinite(gradient).all()
    assert not gradient[np.isnan(padded)].any()
    np.testing.assert_allclose(gradient, jax.grad(recipe)(ACTS), atol=1e-10)
    if name != "consistent":  # a target has no gradient, but a difference
        direction = np.random.default_rng(1).normal(size=ACTS.shape)
        along = differences(lambda acts: float(recipe(acts)), ACTS, direction)
        np.testing.assert_allclose((gradient * direction).sum(), along, rtol=1e-6)
    single = jax.jit(jax.grad(recipe))(padded.astype(np.float32))
    np.testing.assert_allclose(single, gradient, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES[1:])
@sampled(2)
def test_a_sequence_that_is_left_out_has_no_gradient_whatever_it_holds(page, name):
    bad = jnp.asarray(ACTS).at[1, 0, 2].set(jnp.nan).at[2, 1, 0].set(jnp.inf)

    def recipe(acts):
        costs = costs_by(page, name, acts)
        return jnp.where(jnp.isfinite(costs), costs, 0).sum(), costs

    gradient, costs = jax.jit(jax.grad(recipe, has_aux=True))(bad)
    if name != "expected_times":  # times are 0 there
        assert np.isnan(costs[:2]).all()
    np.testing.assert_array_equal(gradient[:, :2], 0)
    alone = jax.grad(lambda acts: costs_by(page, name, acts)[2].sum())(ACTS)
    np.testing.assert_allclose(gradient[:, 2], alone[:, 2], atol=1e-10)


def test_the_prior_leaves_out_what_has_no_softmax(page):
    bad = jnp.asarray(ACTS).at[1, 0, 2].set(jnp.nan)
    used = np.arange(T)[:, None] < LENGTHS
    used[1, 0] = False
    expected = np.log(np.exp(LOG_P)[used].mean(0))
    np.testing.assert_allclose(page["log_prior_of"](bad, LENGTHS), expected, rtol=1e-10)


def differences(f, acts, direction, step=1e-5):
    return (f(acts + step * direction) - f(acts - step * direction)) / (2 * step)


def assert_slope(f, exact):
    """f(acts) and its derivative, along a direction, are those of the same function in numpy."""
    direction = np.random.default_rng(1).normal(size=ACTS.shape)
    value, slope = jax.jit(lambda x, u: jax.jvp(f, (x,), (u,)))(ACTS, direction)
    np.testing.assert_allclose(value, exact(ACTS), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(slope, differences(exact, ACTS, direction), rtol=1e-6, atol=1e-8)


def test_mean_per_label(page):
    mean = jax.jit(page["mean_per_label"])(ACTS, LABELS, LENGTHS)
    np.testing.assert_allclose(mean, (COST / [3, 2, 1]).mean(), rtol=1e-10)
    theirs = jax_ctc.compat.torch.ctc_loss(LOG_P, LABELS, LENGTHS, np.array([3, 2, 1]))
    np.testing.assert_allclose(mean, theirs, rtol=1e-10)


def test_label_smoothing(page):
    actual = jax.jit(page["smoothed"])(ACTS, LABELS, LENGTHS, 0.1)
    uniform = np.full(V, 1 / V)
    divergence = (np.exp(LOG_P) * (LOG_P - np.log(uniform))).sum(-1)
    np.testing.assert_allclose(actual, 0.9 * COST + 0.1 * of_frames(divergence), rtol=1e-10)


def test_entropy_of_the_alignments(page):
    def exact(acts):
        result = []
        for b in range(B):
            scores = scores_of(oracle.log_softmax(acts), b, PATHS[b])
            log_posterior = scores - np.logaddexp.reduce(scores)
            result.append(-(np.exp(log_posterior) * log_posterior).sum())
        return np.array(result)

    assert (exact(ACTS) > 0.5).all()
    assert_slope(lambda x: page["path_entropy"](x, LABELS, LENGTHS), exact)


def test_expected_times(page):
    def exact(acts):
        times = np.zeros(LABELS.shape)
        for b, labels in enumerate(LABELS):
            scores = scores_of(acts, b, PATHS[b])
            posterior = np.exp(scores - np.logaddexp.reduce(scores))
            weight, moment = np.zeros((2, len(labels)))
            for path, p in zip(PATHS[b], posterior, strict=True):
                index, before = -1, 0
                for t, k in enumerate(path):
                    index += k not in (0, before)
                    before = k
                    if k:
                        weight[index] += p
                        moment[index] += p * t
            if b == 1:  # equal neighbours have one time
                weight[:2], moment[:2] = weight[:2].sum(), moment[:2].sum()
            count = (labels >= 0).sum()
            times[b, :count] = moment[:count] / weight[:count]
        return times

    assert_slope(lambda x: page["expected_times"](x, LABELS, LENGTHS), exact)


def test_times_of_words(page):
    """A cat and two spaces, in frames that say one label each, after a blank."""
    text = "a  cat"
    classes = np.array([1 + "a ct".index(c) for c in text])
    path = [0, 1, 1, 2, 0, 2, 3, 0, 1, 4, 4, 0]
    acts = np.where(np.arange(5) == np.array(path)[:, None], 9.0, 0.0)
    alignment = jax_ctc.ctc_align(acts, classes, None)
    assert alignment.path.tolist() == path
    start, end = jax_ctc.label_spans(alignment, len(text))
    found = page["word_times"](text, start, end, 0.5)
    assert found == [("a", 0.5, 1.5), ("cat", 3.0, 5.5)]
    assert page["word_times"]("", [], [], 1) == []
    assert page["word_times"]("ab", [-1, -1], [-1, -1], 1) == []


def test_delay_penalty(page):
    late = np.arange(T)[:, None] - (LENGTHS - 1) / 2

    def exact(acts, weight=0.3):
        return total(oracle.log_softmax(acts) - weight * late[..., None] * (np.arange(V) > 0))

    assert_slope(lambda x: page["delay_penalised"](x, LABELS, LENGTHS, 0.3), exact)


def test_label_priors_and_temperature(page):
    log_prior = jax.jit(page["log_prior_of"])(ACTS, LENGTHS)
    used = np.arange(T)[:, None] < LENGTHS
    np.testing.assert_allclose(log_prior, np.log(np.exp(LOG_P)[used].mean(0)), rtol=1e-10)

    def exact(acts):
        return total(oracle.log_softmax(acts / 1.5) - 0.4 * np.asarray(log_prior))

    def cost(acts):
        scores = page["log_scores"](acts, LENGTHS, log_prior, prior_weight=0.4, temperature=1.5)
        return jax_ctc.ctc(scores, LABELS, LENGTHS, softmax=False)

    assert_slope(cost, exact)


def test_two_views_that_agree(page):
    other = ACTS[::-1] / 2
    q = oracle.log_softmax(other)
    one_way = of_frames((np.exp(LOG_P) * (LOG_P - q)).sum(-1))
    back = of_frames((np.exp(q) * (q - LOG_P)).sum(-1))
    cost = (COST + oracle.solve(other, LABELS, LENGTHS).cost) / 2

    def loss(acts):
        return page["consistent"](acts, other, LABELS, LENGTHS, 0.2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(ACTS)
    np.testing.assert_allclose(value, (cost + 0.1 * (one_way + back)).sum(), rtol=1e-10)
    # Only the divergence whose target is the other view moves this one, by its softmax less theirs.
    used = (np.arange(T)[:, None] < LENGTHS)[..., None]
    expected = oracle.solve(ACTS, LABELS, LENGTHS).gradient / 2
    expected = expected + np.where(used, 0.1 * (np.exp(LOG_P) - np.exp(q)), 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-10)


@pytest.mark.parametrize("blank_too", [False, True])
def test_star(page, blank_too):
    labels = np.array([[V, 2, -1], [1, V, 3], [V, -1, -1]])
    paths = [paths_of(b, labels, V + 1) for b in range(B)]

    def exact(acts):
        p = np.exp(oracle.log_softmax(acts))
        star = np.log(p[..., 0 if blank_too else 1 :].sum(-1, keepdims=True)) - 0.5
        return total(np.concatenate([np.log(p), star], -1), paths)

    def cost(acts):
        scores = page["with_star"](acts, LENGTHS, 0.5, blank_too)
        return jax_ctc.ctc(scores, labels, LENGTHS, softmax=False)

    assert_slope(cost, exact)


def test_chunks_of_a_stream_read_like_the_whole(page):
    acts = np.random.default_rng(2).normal(size=(48, 3))
    chunks = acts.reshape(8, 6, 3)
    _, read = jax.jit(lambda x: lax.scan(page["read_chunk"], jnp.array(0), x))(chunks)
    read = np.asarray(read).ravel()
    whole = jax_ctc.ctc_greedy_decode(acts, None)
    np.testing.assert_array_equal(read[read >= 0], whole.labels[: whole.label_lengths])

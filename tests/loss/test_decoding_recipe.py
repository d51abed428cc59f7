# SPDX-License-Identifier: Apache-2.0
"""The recipes of docs/decoding.md: training for the fewest errors, and a language model."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support.documents import settings_of_a_user
from support.oracle import cost_and_gradient
from support.runs import ROOT

PAGE = ROOT / "docs" / "decoding.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a source tree")


def code_with(text):
    codes = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = [code for code in codes if text in code]
    return code


@pytest.fixture(scope="module")
def expected_errors():
    names = {"jax": jax, "jnp": jnp, "jax_ctc": jax_ctc}  # which the first block imports
    exec(code_with("def expected_errors"), names)
    return names["expected_errors"]


def test_training_for_the_fewest_errors_finds_the_labels(expected_errors):
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(9, 3, 5)).astype("f")
    labels, lengths = np.array([[1, 2, 2], [3, -1, -1], [4, 1, -1]]), np.array([9, 6, 8])
    loss = jax.jit(jax.value_and_grad(lambda acts: jax_ctc.ctc(acts, labels, lengths).sum()))
    for _ in range(5):
        acts = acts - 0.5 * loss(acts)[1]
    step = jax.jit(jax.value_and_grad(lambda acts: expected_errors(acts, labels, lengths).sum()))
    first, _ = step(acts)
    for _ in range(100):
        acts = acts - step(acts)[1]
    last, _ = step(acts)
    assert first > 2
    assert last < 0.4
    found = jax_ctc.ctc_beam_search_decode(acts, lengths)
    assert not jax_ctc.label_error_rate(found, labels).distance.any()


def test_hypotheses_that_are_missing_have_no_weight(expected_errors):
    """With one frame and two classes there are two."""
    acts = np.array([[[0.3, -0.3]]], "f")
    errors, gradient = jax.value_and_grad(
        lambda acts: expected_errors(acts, np.array([[1]]), np.array([1])).sum()
    )(acts)
    p = np.exp(0.3) / (np.exp(0.3) + np.exp(-0.3))
    np.testing.assert_allclose(errors, p, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], [p * (1 - p), -p * (1 - p)], rtol=1e-5)


def test_a_sequence_that_is_left_out_has_no_gradient_whatever_it_holds(expected_errors):
    acts = np.random.default_rng(0).normal(size=(6, 2, 3)).astype("f")
    acts[1, 0, 0] = np.nan

    def of(b):
        return lambda acts: expected_errors(acts, np.array([[1], [2]]), np.array([6, 6]))[b]

    assert np.isnan(of(0)(acts))
    gradient = jax.grad(of(1))(acts)
    np.testing.assert_array_equal(gradient[:, 0], 0)
    assert np.isfinite(gradient).all()
    assert gradient[:, 1].any()
    assert np.isnan(jax.grad(of(0))(acts)[:, 0]).any()


def test_a_language_model_chooses_among_all_hypotheses():
    """Of three frames and two labels, which are less than the beam has room for."""
    acts = np.random.default_rng(0).normal(size=(3, 8, 3)).astype("f")
    lengths, weight, bonus = np.array([3, 3, 3, 3, 2, 2, 1, 0]), 2.0, 1.5
    names = {"jax": jax, "jnp": jnp, "jax_ctc": jax_ctc, "acts": acts, "lengths": lengths}
    with settings_of_a_user():
        exec(code_with("def log_pairs"), names)
    transcripts = [[2, 1], [2], [1, 1, 2]]
    counts = np.full((3, 3), 0.1)
    for row, column in [(0, 2), (2, 1), (1, 0), (0, 2), (2, 0), (0, 1), (1, 1), (1, 2), (2, 0)]:
        counts[row, column] += 1
    log_p = np.log(counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(names["log_pairs"](transcripts, 3), log_p, rtol=1e-6)

    def score(b, labels):
        padded = np.full((1, 3), -1)
        padded[0, : len(labels)] = labels
        cost = cost_and_gradient(acts[:, b : b + 1].astype(float), padded, lengths[b : b + 1])[0][0]
        pairs = zip([0, *labels], [*labels, 0], strict=True)
        return -cost + weight * sum(log_p[pair] for pair in pairs) + bonus * len(labels)

    texts = [text for n in range(4) for text in itertools.product((1, 2), repeat=n)]
    best = [max(texts, key=lambda text, b=b: score(b, text)) for b in range(8)]
    with settings_of_a_user():
        log_p = names["log_pairs"](transcripts, 3)
        found = np.asarray(names["decode"](acts, lengths, log_p, weight, bonus))
    assert [tuple(row[row >= 0].tolist()) for row in found] == best
    alone = np.asarray(jax_ctc.ctc_beam_search_decode(acts, lengths).labels[:, 0])
    assert (found != alone).any()

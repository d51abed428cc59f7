# SPDX-License-Identifier: Apache-2.0
"""The recipe of docs/decoding.md: training for the fewest errors."""

import re

import jax
import numpy as np
import pytest

import jax_ctc
from support.runs import ROOT

PAGE = ROOT / "docs" / "decoding.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a source tree")


@pytest.fixture(scope="module")
def expected_errors():
    codes = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = [code for code in codes if "def expected_errors" in code]
    names = {}
    exec(code, names)
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

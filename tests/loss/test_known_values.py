# SPDX-License-Identifier: Apache-2.0
"""Values that other libraries publish in their own tests; known_values.json names each source."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jax_ctc
from support import oracle

VECTORS = json.loads(Path(oracle.__file__).with_name("known_values.json").read_text())["vectors"]
every_vector = pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["op"] == "ctc_loss"], ids=lambda vector: vector["id"]
)


def arguments(vector):
    acts = np.array(vector["inputs"], np.float32)
    if vector["input_kind"] == "probs":
        acts = np.log(acts)
    rows = vector["labels"]
    labels = np.full((len(rows), max(map(len, rows))), -1)
    for b, row in enumerate(rows):
        labels[b, : len(row)] = row
    return acts, labels, np.array(vector["input_lengths"])


def expected(vector):
    """The costs, the gradient or None, and how exactly the source gives them."""
    costs = [float(cost) for cost in vector["expected_costs"]]
    tolerance = {"rtol": vector["rtol"], "atol": vector["atol"]}
    return costs, vector["expected_grads_wrt_inputs"], tolerance


@every_vector
def test_the_oracle_agrees(vector):
    acts, labels, lengths = arguments(vector)
    truth = oracle.solve(acts, labels, lengths, blank=vector["blank"])
    costs, gradient, tolerance = expected(vector)
    np.testing.assert_allclose(truth.cost, costs, **tolerance)
    if gradient is not None:
        np.testing.assert_allclose(truth.gradient, gradient, **tolerance)


@every_vector
def test_ctc_agrees(vector, time_major):
    acts, labels, lengths = arguments(vector)
    acts = acts if time_major else acts.swapaxes(0, 1)

    def total(acts):
        cost = jax_ctc.ctc(acts, labels, lengths, blank=vector["blank"], time_major=time_major)
        return cost.sum(), cost

    (_, cost), gradient = jax.value_and_grad(total, has_aux=True)(acts)
    costs, expected_gradient, tolerance = expected(vector)
    np.testing.assert_allclose(cost, costs, **tolerance)
    if expected_gradient is not None:
        gradient = gradient if time_major else gradient.swapaxes(0, 1)
        np.testing.assert_allclose(gradient, expected_gradient, **tolerance)

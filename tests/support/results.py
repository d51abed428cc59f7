# SPDX-License-Identifier: Apache-2.0
"""How close is close enough: the promise of docs/ctc.md, in the one place that tests ask."""

import jax
import numpy as np

import jax_ctc

DEVICE = "cpu" if jax.default_backend() == "cpu" else "cuda"
COMPILED = bool(jax_ctc.build_info()[DEVICE])
TOLERANCE = {np.dtype("float32"): 1e-6 if COMPILED else 1e-4, np.dtype("float64"): 1e-11}


def assert_costs(costs, expected, T):
    """Within the promise: relative, or absolute in sqrt(T) for a cost near 0; inf, NaN exactly."""
    costs, expected = np.asarray(costs), np.asarray(expected).astype(float)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(costs[~finite], expected[~finite])
    assert (costs[finite] >= 0).all()
    scale = np.maximum(expected[finite], np.sqrt(max(T, 1)))
    errors = np.abs(costs[finite] - expected[finite]) / scale
    assert errors.max(initial=0) <= TOLERANCE[costs.dtype]


def assert_gradient(gradient, expected, scale=1):
    """Within the promise, which is absolute, for cotangents of at most `scale`; NaN exactly."""
    tolerance = scale * TOLERANCE[np.dtype(gradient.dtype)]
    np.testing.assert_allclose(gradient, np.asarray(expected, float), rtol=0, atol=tolerance)


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()

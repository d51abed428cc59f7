# SPDX-License-Identifier: Apache-2.0
"""Problems for the CUDA kernels on the emulator, and what their answers must be."""

import numpy as np
import pytest

from . import oracle
from .cases import EDGES, around_a_vector
from .results import assert_costs, assert_gradient, assert_same_bits
from .runs import sweep

LABELS = sweep((2, 31, 32, 33, 63, 64, 65, 130), (2, 31, 32, 33, 65))
WIDTHS = [case for L in LABELS for case in around_a_vector(L)]
CASES = [(case, np.float32) for case in EDGES + WIDTHS]
CASES += [(case, np.float64) for case in EDGES + sweep(WIDTHS, list(around_a_vector(32)))]
every_case = pytest.mark.parametrize(
    ("case", "dtype"), CASES, ids=[f"{case.name}, {dtype.__name__}" for case, dtype in CASES]
)
ORDERS = sweep((1, 2), (1,))  # of threads: seeds
# Bytes of shared memory that leave a direction two warps, and one of a Hessian-vector product: the
# pairs go in strips.
FEW_WARPS = 24 << 10


def arguments(case, dtype=np.float32):
    """The case with its label lengths folded into the labels, as the op hands it to a kernel."""
    acts, labels, lengths, label_lengths = case.arguments(dtype)
    if label_lengths is not None:
        labels = np.where(np.arange(labels.shape[1]) < label_lengths[:, None], labels, -1)
    return acts, labels, lengths


def check(answer, acts, labels, lengths, cotangents=None, **options):
    """Everything in the answer against the oracle; gradients like acts, time major."""
    truth = oracle.solve(np.asarray(acts, float), labels, lengths, **options)
    assert_same_bits(answer.cost, answer.alone)
    assert_costs(answer.cost, truth.cost, len(acts))
    expected = truth.gradient
    if cotangents is not None:
        cotangents = np.asarray(cotangents)[:, None]
        expected = np.where(cotangents == 0, 0, expected * cotangents)
    assert_gradient(answer.gradient, expected, 1 if cotangents is None else abs(cotangents).max())
    assert (answer.gradient[expected == 0] == 0).all() or np.isfinite(acts).all()


def wrong_problems():
    """Eight sequences, of which some have something wrong; the others must not notice."""
    rng = np.random.default_rng(3)
    acts = rng.normal(size=(9, 8, 6)).astype(np.float32)
    labels = rng.integers(1, 6, (8, 3)).astype(np.int32)
    lengths = np.array([9, -1, 10, 9, 9, 9, 5, 9], np.int32)
    acts[4, 3, 2] = np.nan
    acts[4, 4, 2] = np.inf
    acts[4, 5] = -np.inf
    acts[5:, 6] = np.nan  # behind the length
    labels[7, 1] = 6
    return acts, labels, lengths


def check_product(product, acts, labels, lengths, directions, cotangents=None, **options):
    """Against the slope of the oracle's gradient; in float32 by what its digits allow."""
    expected = oracle.hessian_vector(
        np.asarray(acts, float), labels, lengths, np.asarray(directions, float), **options
    )
    expected = np.nan_to_num(expected)  # of -inf logits
    if cotangents is not None:
        expected = expected * np.asarray(cotangents)[:, None]
    allowed = 3e-9 if acts.dtype == np.float64 else 5e-6
    scale = max(np.abs(expected).max(initial=0), np.abs(directions).max(initial=0))
    np.testing.assert_allclose(product, expected, rtol=0, atol=allowed * scale)


def directions_like(acts, seed=1):
    return np.random.default_rng(seed).normal(size=acts.shape).astype(acts.dtype)

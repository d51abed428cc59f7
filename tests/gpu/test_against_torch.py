# SPDX-License-Identifier: Apache-2.0
"""Costs and gradients against PyTorch's own kernels in float64: written by others."""

import jax
import numpy as np
import pytest

import jax_ctc
from support.results import assert_costs

from .problems import DEVICE, problem

SHAPES = [(30, 4, 6, 8), (150, 16, 28, 40), (200, 3, 500, 65), (700, 2, 30, 300), (2000, 2, 64, 90)]


def by_torch(acts, labels, lengths):
    torch = pytest.importorskip("torch")  # here: what its import does to others stays in few tests
    place = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor(acts.astype(np.float64), device=place, requires_grad=True)
    rows = [row[row >= 0] for row in labels]
    padded = np.zeros(labels.shape, np.int64)
    for padding, row in zip(padded, rows, strict=True):
        padding[: len(row)] = row
    with torch.backends.cudnn.flags(enabled=False):
        cost = torch.nn.functional.ctc_loss(
            x.log_softmax(2), torch.tensor(padded, device=place), lengths.tolist(),
            [len(row) for row in rows], reduction="none",
        )  # fmt: skip
    cost.sum().backward()
    return cost.detach().cpu().numpy(), x.grad.cpu().numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_costs_and_gradients(shape, dtype):
    T, B, V, L = shape
    acts, labels, lengths = problem(T, B, V, L, dtype)
    lengths = np.maximum(lengths, min(T, 2 * L + 1)).astype(np.int32)  # no infinite cost
    cost, gradient = jax.jit(
        lambda x: (
            jax_ctc.ctc(x, labels, lengths),
            jax.grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())(x),
        )
    )(jax.device_put(acts, DEVICE))
    exact, slope = by_torch(acts, labels, lengths)
    assert np.isfinite(exact).all()
    assert_costs(np.asarray(cost, np.float32), exact, T)
    # In log space float64 has lost a few digits at the end of 2,000 frames.
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-6 if dtype == "float32" else 1e-9)

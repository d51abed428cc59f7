# SPDX-License-Identifier: Apache-2.0
"""Errors of costs and gradients in float32 against float64 on the same device."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc

from .. import with_x64

B, V, L = 4, 40, 50


def accuracy(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    for T in (70,) if tiny else (100, 300, 1000, 3000, 10_000):
        for spread in (1, 10):
            if time.monotonic() > deadline:
                return write(T=T, spread=spread, note="no time left")
            rng = np.random.default_rng(T)
            acts = (spread * rng.normal(size=(T, B, V))).astype(np.float32)
            labels = rng.integers(1, V, (B, min(L, T // 3))).astype(np.int32)
            lengths = np.full(B, T, np.int32)

            @jax.jit
            def solve(
                x: jax.Array, labels: np.ndarray = labels, lengths: np.ndarray = lengths
            ) -> tuple[jax.Array, jax.Array]:
                cost, pull = jax.vjp(lambda x: jax_ctc.ctc(x, labels, lengths), x)
                return cost, pull(jnp.ones_like(cost))[0]

            cost, gradient = (np.asarray(x, np.float64) for x in solve(acts))
            with with_x64():
                exact, slope = (np.asarray(x) for x in solve(acts.astype(np.float64)))
            assert slope.dtype == np.float64
            write(
                T=T,
                spread=spread,
                gradient_error=float(np.abs(gradient - slope).max()),
                relative_cost_error=float(np.abs(cost / exact - 1).max()),
                torch_gradient_error=torch_error(acts, labels, slope),
            )


def torch_error(acts: np.ndarray, labels: np.ndarray, slope: np.ndarray) -> float | str:
    """The largest error of the gradient of PyTorch's own kernels, or why there is none."""
    try:
        import torch

        x = torch.tensor(acts, device="cuda", requires_grad=True)
        with torch.backends.cudnn.flags(enabled=False):
            torch.nn.functional.ctc_loss(
                x.log_softmax(2), torch.tensor(labels.astype(np.int64), device="cuda"),
                [acts.shape[0]] * B, [labels.shape[1]] * B, reduction="sum",
            ).backward()  # fmt: skip
        return float(np.abs(x.grad.cpu().numpy() - slope).max())
    except Exception as error:
        return type(error).__name__

# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels by the emulator: the states that training does not keep are computed again."""

import numpy as np
import pytest

from support import emulated
from support.emulated_problems import FEW_WARPS, check, check_product, directions_like
from support.results import assert_same_bits
from support.runs import sampled, sweep

pytestmark = emulated.NEEDED
WINDOW = 56  # pairs that a warp has products of, of kernels/cuda/chunk.cuh


@pytest.mark.parametrize("V", [3, 9], ids=["dense", "compact"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@sampled(2)
def test_any_number_of_frames_is_cut_into_chunks(kernels, V, dtype):
    """One of which begins at the middle: the first and the last may be short, or the only one."""
    T = 35
    rng = np.random.default_rng(V)
    acts = rng.normal(scale=2, size=(T, T + 1, V)).astype(dtype)
    labels = rng.integers(1, V, (T + 1, 4)).astype(np.int32)
    labels[::3, 2:] = -1
    problem = acts, labels, np.arange(T + 1, dtype=np.int32)
    check(kernels.solve(*problem), *problem)
    directions = directions_like(acts)
    check_product(kernels.hvp(*problem, directions), *problem, directions)


@pytest.mark.parametrize("L", [WINDOW - 2, WINDOW - 1, WINDOW, 2 * WINDOW - 1, 2 * WINDOW])
def test_windows_of_pairs_meet(kernels, L):
    """Labels that just fit one window or two, and one more; fewer in the second sequence."""
    rng = np.random.default_rng(L)
    T = 2 * L + 5
    acts = rng.normal(scale=2, size=(T, 2, L + 9)).astype(np.float32)
    labels = rng.integers(1, L + 9, (2, L)).astype(np.int32)
    labels[1, [0, L - 1]] = -1
    problem = acts, labels, np.array([T, T - 3], np.int32)
    check(kernels.solve(*problem), *problem)


SIZES = [(L, V, dtype) for L in (110, 200) for V in (20, 400) for dtype in (np.float32, np.float64)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("L", "V", "dtype"), sweep(SIZES, [(200, 20, np.float32), (110, 400, np.float64)]), ids=str
)
@sampled(1)
def test_products_that_shared_memory_does_not_hold_wait_elsewhere(kernels, L, V, dtype):
    rng = np.random.default_rng(L)
    T = L + 30
    acts = rng.normal(scale=2, size=(T, 2, V)).astype(dtype)
    labels = rng.integers(1, V, (2, L)).astype(np.int32)
    labels[
        :, rng.random(L) < 0.2
    ] = -1  # columns of labels without padding are further to the right
    problem = acts, labels, np.array([T, T - 5], np.int32)
    shared = FEW_WARPS * np.dtype(dtype).itemsize // 4
    whole, pieces = kernels.solve(*problem), kernels.solve(*problem, shared=shared, seed=3)
    assert np.isfinite(whole.cost).all()
    assert_same_bits(pieces.cost, whole.cost)
    assert_same_bits(pieces.gradient, whole.gradient)
    directions, kept = directions_like(acts), (whole.rows, whole.columns)
    product = kernels.hvp(*problem, directions, kept=kept)
    pieces = kernels.hvp(*problem, directions, kept=kept, shared=shared, seed=3)
    assert_same_bits(pieces, product)
    check_product(product, *problem, directions)

# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels by the emulator: no bit depends on where in memory a row lies."""

import itertools

import numpy as np
import pytest

from support import emulated
from support.results import assert_same_bits
from support.runs import sweep

pytestmark = emulated.NEEDED
T, B, L = 3, 5, 4


SIZES = list(itertools.product([33, 1001, 1002, 4100], emulated.DTYPES, [0, 1]))


@pytest.mark.parametrize(("V", "dtype", "time_axis"), sweep(SIZES, SIZES[::3]), ids=str)
def test_a_batch_has_the_bits_of_batches_of_one(kernels, V, dtype, time_axis):
    rng = np.random.default_rng(V)
    shape = (T, B, V) if time_axis == 0 else (B, T, V)
    acts, directions = (rng.normal(scale=3, size=shape).astype(dtype) for _ in range(2))
    labels, lengths = rng.integers(1, V, (B, L)).astype(np.int32), np.full(B, T, np.int32)
    labels[:, 3] = -1

    def everything(some, shift):
        of_acts = (slice(None), some) if time_axis == 0 else some
        args = acts[of_acts], labels[some], lengths[some]
        how = {"time_axis": time_axis, "shift": shift}
        answer = kernels.solve(*args, directions=directions[of_acts], **how)
        kept = answer.rows, answer.columns
        product = kernels.hvp(*args, directions[of_acts], kept=kept, **how)
        return [answer.cost, answer.tangent], [*kept, answer.gradient, product]

    costs, arrays = everything(slice(None), 0)
    for b in range(B):
        one = slice(b, b + 1)
        alone, rows = everything(one, b % 4)
        for actual, expected in zip(alone, costs, strict=True):
            assert_same_bits(actual, expected[one])
        for actual, expected in zip(rows, arrays, strict=True):
            assert_same_bits(actual, expected[:, one] if time_axis == 0 else expected[one])

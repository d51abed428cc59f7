# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels by the emulator: equal labels share a column, however far apart they are."""

import numpy as np
import pytest

from support import emulated
from support.emulated_problems import check, check_product, directions_like
from support.runs import sampled

pytestmark = emulated.NEEDED


@pytest.mark.parametrize("distance", [1, 2, 7, 8, 9, 16, 17, 30])
@sampled(4)
def test_equal_labels_are_found_at_any_distance(kernels, distance):
    L = 31
    rng = np.random.default_rng(distance)
    acts = rng.normal(size=(36, 2, 50)).astype(np.float32)
    labels = np.stack([1 + rng.permutation(40)[:L] for _ in range(2)]).astype(np.int32)
    labels[:, distance] = labels[:, 0]
    labels[0, L - 1] = labels[0, L - 1 - distance]
    labels[1, [3, 20]] = -1  # padding in between
    problem = acts, labels, np.array([36, 35], np.int32)
    check(kernels.solve(*problem), *problem)
    directions = directions_like(acts)
    check_product(kernels.hvp(*problem, directions), *problem, directions)

# SPDX-License-Identifier: Apache-2.0
"""The promise of accuracy, for long, peaked, far-off and wide activations.

Every batch has a full sequence and a shorter one with half the labels. Where V <= L + 1 the
kernels keep occupancies by class, elsewhere by label; each kind of logits meets both.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.alike import ALIKE, alike
from support.programs import assert_solved
from support.results import COMPILED
from support.runs import sampled, sweep

pytestmark = pytest.mark.slow

DENSE, COMPACT = (400, 60, 32), (400, 60, 100)  # T, L, V
LONG_DENSE, LONG_COMPACT = (2000, 200, 64), (2000, 100, 256)
LONGEST_DENSE, LONGEST_COMPACT = (10_000, 400, 32), (10_000, 60, 80)
WIDE = (12, 5, 100_000)


def spread(scale):
    return lambda rng, labels, shape: scale * rng.normal(size=shape)


def far_from_zero(offset):
    return lambda rng, labels, shape: offset + rng.normal(size=shape)


def drifting(rng, labels, shape):
    """Each frame around its own number of up to 1000 in magnitude."""
    return rng.normal(size=shape) + 1000 * np.cos(np.arange(shape[0]))[:, None, None]


def normal_but(classes, height, shape, rng):
    """Normal logits, with one class of each frame set to `height`."""
    logits = rng.normal(size=shape)
    np.put_along_axis(logits, classes[:, :, None], height, axis=2)
    return logits


def spikes(height):
    """In each frame one class, any one, far above the others."""
    return lambda rng, labels, shape: normal_but(
        rng.integers(shape[2], size=shape[:2]), height, shape, rng
    )


def peaks(height):
    """A confident model: the labels one after the other, evenly, with blanks in between."""

    def logits(rng, labels, shape):
        path = np.zeros(shape[:2], int)
        for b, row in enumerate(labels):
            row = row[row >= 0]
            states = np.zeros(2 * len(row) + 1, int)
            states[1::2] = row
            length = frames(shape[0])[b]
            path[:length, b] = states[np.arange(length) * len(states) // length]
        return normal_but(path, height, shape, rng)

    return logits


def frames(T):
    return np.array([T, T - T // 5])


def one_row(height):
    """The same row in every frame: its rounding errors all point the same way."""

    def logits(rng, labels, shape):
        row = rng.normal(size=shape[-1])
        row[0] = height
        return np.broadcast_to(row, shape)

    return logits


CASES = {
    "spread 1, dense": (DENSE, spread(1)),
    "spread 1, compact": (COMPACT, spread(1)),
    "spread 20, dense": (DENSE, spread(20)),
    "spread 20, compact": (COMPACT, spread(20)),
    "spread 100, dense": (DENSE, spread(100)),
    "spread 100, compact": (COMPACT, spread(100)),
    "spread 1000, dense": (DENSE, spread(1000)),
    "spread 1000, compact": (COMPACT, spread(1000)),
    "around 1000, dense": (DENSE, far_from_zero(1000)),
    "around 1000, compact": (COMPACT, far_from_zero(1000)),
    "around -1000, dense": (DENSE, far_from_zero(-1000)),
    "around -1000, compact": (COMPACT, far_from_zero(-1000)),
    "drifting, dense": (DENSE, drifting),
    "drifting, compact": (COMPACT, drifting),
    "spikes of 30, dense": (DENSE, spikes(30)),
    "spikes of 30, compact": (COMPACT, spikes(30)),
    "spikes of 1500, dense": (DENSE, spikes(1500)),
    "spikes of 1500, compact": (COMPACT, spikes(1500)),
    "confident by 5, dense": (DENSE, peaks(5)),
    "confident by 12, dense": (DENSE, peaks(12)),
    "confident by 12, compact": (COMPACT, peaks(12)),
    "confident by 20, compact": (COMPACT, peaks(20)),
    "confident by 1500, dense": (DENSE, peaks(1500)),
    "confident by 1500, compact": (COMPACT, peaks(1500)),
    "long, spread 1, dense": (LONG_DENSE, spread(1)),
    "long, spread 1, compact": (LONG_COMPACT, spread(1)),
    "long, spread 20, dense": (LONG_DENSE, spread(20)),
    "long, spread 100, compact": (LONG_COMPACT, spread(100)),
    "long, spikes of 1500, dense": (LONG_DENSE, spikes(1500)),
    "long, confident by 10, dense": (LONG_DENSE, peaks(10)),
    "long, confident by 15, compact": (LONG_COMPACT, peaks(15)),
    "long, around 1000, compact": (LONG_COMPACT, far_from_zero(1000)),
    "longest, spread 1, dense": (LONGEST_DENSE, spread(1)),
    "longest, spread 1, compact": (LONGEST_COMPACT, spread(1)),
    "longest, spread 100, dense": (LONGEST_DENSE, spread(100)),
    "longest, spread 1000, compact": (LONGEST_COMPACT, spread(1000)),
    "longest, spikes of 1500, compact": (LONGEST_COMPACT, spikes(1500)),
    "longest, confident by 12, dense": (LONGEST_DENSE, peaks(12)),
    "longest, confident by 20, compact": (LONGEST_COMPACT, peaks(20)),
    "longest, around 1000, compact": (LONGEST_COMPACT, far_from_zero(1000)),
    "longest, the same row, dense": (LONGEST_DENSE, one_row(1)),
    "longest, the same confident row, compact": ((10_000, 1, 80), one_row(14)),
    "longest, the same confident row, dense": ((10_000, 4, 4), one_row(17)),
    "longest, nothing but certain blanks": ((10_000, 0, 30), one_row(13)),
    "100,000 classes, spread 1": (WIDE, spread(1)),
    "100,000 classes, spread 20": (WIDE, spread(20)),
    "100,000 classes, spread 1000": (WIDE, spread(1000)),
    "100,000 classes, around 1000": (WIDE, far_from_zero(1000)),
    "100,000 classes, confident": (WIDE, peaks(25)),
    "100,000 classes, the same row": (WIDE, one_row(0)),
}

FEW = [  # of each kind of logits one, of each size some, both layouts
    "spread 1, dense", "spread 100, compact", "spread 1000, dense", "around 1000, compact",
    "around -1000, dense", "drifting, compact", "spikes of 30, dense", "spikes of 1500, compact",
    "confident by 5, dense", "confident by 12, compact", "confident by 1500, dense",
    "long, spread 20, dense", "long, confident by 15, compact", "longest, spread 1, compact",
    "longest, confident by 12, dense", "longest, the same confident row, compact",
    "100,000 classes, spread 20", "100,000 classes, around 1000", "100,000 classes, the same row",
]  # fmt: skip
CHOSEN = sweep(CASES, FEW)
DOUBLE = [name for name, ((T, _, _), _) in CHOSEN.items() if T <= 2000]
FAITHFUL = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not COMPILED and T > 2000, reason="the fallback's promise ends at T = 2000"
        ),
    )
    for name, ((T, _, _), _) in CHOSEN.items()
]


def batch(name, dtype):
    (T, L, V), logits = CASES[name]
    rng = np.random.default_rng(T + L + V)
    labels = rng.integers(1, V, (2, L))
    labels[1, L // 2 :] = -1
    return logits(rng, labels, (T, 2, V)).astype(dtype), labels, frames(T)


@pytest.mark.parametrize("name", FAITHFUL)
@sampled(4)
def test_float32_keeps_its_promise(name):
    assert np.isfinite(assert_solved(*batch(name, np.float32)).cost).all()


def gradient_of(acts, labels, lengths, **options):
    def cost(x):
        return jax_ctc.ctc(x, labels, lengths, **options).sum()

    return np.asarray(jax.jit(jax.grad(cost))(jnp.asarray(acts)))


@pytest.mark.parametrize(("T", "V", "differences"), sweep(ALIKE, ALIKE[1:4]))
def test_errors_of_equal_frames_do_not_add_up(T, V, differences):
    """Emissions are rounded by turns (docs/ctc.md, section 3). Those of the CPU kernels are ratios
    to the blank: one rounding, where the others have two."""
    problem = alike(T, V, differences)
    expected = oracle.solve(*problem).gradient
    fixed = COMPILED and jax.default_backend() == "cpu"
    assert abs(gradient_of(*problem) - expected).max() < (3e-7 if fixed else 8e-7)


# Where labels are 100 nats below the largest logit, all backends have values m * 2^e.
@pytest.mark.parametrize("last", [-3, 100], ids=["near", "far"])
@pytest.mark.parametrize(("T", "V", "differences"), ALIKE[2:4])
def test_nor_do_those_of_frames_whose_classes_are_far_apart(T, V, differences, last):
    problem = alike(T, V, differences, last)
    assert abs(gradient_of(*problem) - oracle.solve(*problem).gradient).max() < 1e-6
    # As log-scores, which have no softmax.
    expected = -oracle.solve(*problem).occupancy
    assert abs(gradient_of(*problem, softmax=False) - expected).max() < 1e-6


@pytest.mark.parametrize("name", DOUBLE)
def test_float64_keeps_its_promise(name):
    assert np.isfinite(assert_solved(*batch(name, np.float64)).cost).all()


@pytest.mark.parametrize("name", ["confident by 12, dense", "longest, confident by 20, compact"])
def test_confident_cases_do_cost_next_to_nothing(name):
    acts, labels, lengths = batch(name, np.float32)
    assert (oracle.solve(acts, labels, lengths).cost < 0.1 * np.sqrt(len(acts))).all()

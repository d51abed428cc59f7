# SPDX-License-Identifier: Apache-2.0
"""Gradients and Hessian-vector products where few of the states count.

Kernels leave out the labels whose alignments add nothing at a frame (docs/ctc.md, section 3). Here
the labels that count are few and move fast, or are at both ends with nothing between, or change
their places within a few frames. T is so large that the states are computed in several blocks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.programs import assert_solved
from support.results import TOLERANCE
from support.runs import sampled

T, L = 900, 200
NATS = 12.0


def all_at(frames, acts, labels, nats=NATS):
    """Labels one after the other, at these frames, and blanks at all others."""
    acts[..., 0] += nats
    for frame, label in zip(frames, labels, strict=True):
        acts[frame, 0] -= nats
        acts[frame, label] += nats


def first_frames(acts, labels):
    all_at(range(0, 2 * L, 2), acts, labels)


def last_frames(acts, labels):
    all_at(range(T - 2 * L, T, 2), acts, labels)


def first_or_last_frames(acts, labels):
    """Half of the probability for each: in the middle no label, or all labels, have been said."""
    acts[..., 0] += NATS
    for frames in (range(0, 2 * L, 2), range(T - 2 * L, T, 2)):
        for frame, label in zip(frames, labels, strict=True):
            acts[frame, label] += NATS


def a_burst(acts, labels):
    """A label a frame, without blanks: one alignment has nearly all of the probability."""
    all_at(range(T // 3, T // 3 + L), acts, labels, nats=20)


def a_sure_model(acts, labels):
    frames = np.sort(np.random.default_rng(1).choice(T, L, replace=False))
    all_at(frames, acts, labels)


def a_sure_model_that_is_wrong(acts, labels):
    """A tenth of the frames prefer another class, so that alignments shift."""
    a_sure_model(acts, labels)
    rng = np.random.default_rng(2)
    wrong = rng.random(T) < 0.1
    acts[wrong] = np.roll(acts[wrong], 1, axis=-1)


def an_unsure_model(acts, labels):
    del labels, acts


MODELS = [
    first_frames,
    last_frames,
    first_or_last_frames,
    a_burst,
    a_sure_model,
    a_sure_model_that_is_wrong,
    an_unsure_model,
]


def batch(V, dtype=np.float32):
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, len(MODELS), V))
    labels = np.empty((len(MODELS), L), int)
    labels[:, 0::2] = rng.integers(1, V // 2, (len(MODELS), L // 2))
    labels[:, 1::2] = rng.integers(V // 2, V, (len(MODELS), L // 2))  # no label twice in a row
    for b, model in enumerate(MODELS):
        model(acts[:, b], labels[b])
    return acts.astype(dtype), labels, np.full(len(MODELS), T)


@pytest.mark.parametrize("V", [24, 300])  # through a table, and row by row
@sampled(1)
def test_gradients(V):
    assert_solved(*batch(V))


@pytest.mark.parametrize("V", [24, 300])
@pytest.mark.parametrize("scale", [1, 1e-12, 1e15])
@sampled(1)
def test_hessian_vector_products(V, scale):
    acts, labels, lengths = batch(V)
    direction = (scale * np.random.default_rng(3).normal(size=acts.shape)).astype(np.float32)

    @jax.jit
    def product(acts, direction):
        gradient = jax.grad(lambda acts: jnp.sum(jax_ctc.ctc(acts, labels, lengths)))
        return jax.jvp(gradient, (acts,), (direction,))[1]

    expected = oracle.hessian_vector(acts, labels, lengths, direction.astype(float) / scale)
    allowed = 5 * TOLERANCE[np.dtype("float32")] * np.abs(direction / scale).max()
    np.testing.assert_allclose(
        product(acts, direction) / np.float32(scale), expected, rtol=0, atol=allowed
    )

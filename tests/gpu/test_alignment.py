# SPDX-License-Identifier: Apache-2.0
"""The best path by the kernels on a GPU: that of the kernels on the CPU, bit for bit."""

from functools import partial

import jax
import numpy as np
import pytest

import jax_ctc
from support.results import TOLERANCE, assert_same_bits

from .problems import CPU, DEVICE, problem

BLOCK = 2048  # frames that are swept once; of longer sequences the states are stored in between


def paths(device, acts, labels, lengths, **options):
    align = jax.jit(partial(jax_ctc.ctc_align, **options))  # where a bad value cannot raise
    return jax.tree.map(np.asarray, align(*jax.device_put((acts, labels, lengths), device)))


def compare(acts, labels, lengths, **options):
    ours, theirs = (paths(device, acts, labels, lengths, **options) for device in (DEVICE, CPU))
    np.testing.assert_array_equal(ours.path, theirs.path)
    np.testing.assert_array_equal(ours.label_index, theirs.label_index)
    assert ours.score.dtype == theirs.score.dtype
    T = acts.shape[0 if options.get("time_major", True) else 1]
    tolerance = 2 * TOLERANCE[ours.score.dtype]  # each is as far from the exact score as promised
    np.testing.assert_allclose(
        ours.score, theirs.score, rtol=tolerance, atol=tolerance * np.sqrt(max(T, 1))
    )


def with_ties(T, B, V, L, dtype="float32", seed=0):
    acts, labels, lengths = problem(T, B, V, L, dtype, scale=1, seed=seed)
    return np.round(acts.astype(np.float32)).astype(acts.dtype), labels, lengths


# Around the 56 pairs of a warp, all warps of a block, and the states that fit shared memory.
@pytest.mark.parametrize("L", [0, 1, 2, 54, 55, 56, 111, 112, 300, 894, 895, 896, 3200, 7300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_labels(L, dtype):
    compare(*with_ties(2 * L + 20, 2, 5, L, dtype))


@pytest.mark.parametrize("V", [1, 5, 2049, 9001])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("time_major", [True, False], ids=["TBV", "BTV"])
def test_any_number_of_classes(V, dtype, time_major):
    acts, labels, lengths = problem(70, 7, V, 20, dtype)
    acts = acts if time_major else np.swapaxes(acts, 0, 1)
    compare(acts, labels, lengths, time_major=time_major)


@pytest.mark.parametrize("T", [1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 9, 20_000])
def test_any_number_of_frames(T):
    compare(*with_ties(T, 2, 9, T // 5))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("V", [7, 3000])
def test_a_star_and_log_scores(V, softmax):
    acts, labels, lengths = with_ties(300, 5, V, 60)
    labels[:, ::7] = V
    compare(acts, labels, lengths, star=V, softmax=softmax)
    acts[3, 2, V - 1] = np.nan
    compare(acts, labels, lengths, star=V, softmax=softmax)


def test_everything_that_can_be_wrong():
    acts, labels, lengths = problem(40, 12, 9, 10)
    acts[3, 0, 2], acts[4, 1, 3], acts[5, 2] = np.nan, np.inf, -np.inf
    acts[:, 3, 5] = -np.inf
    acts[::2, 9, 0] = -np.inf
    labels[4, 2], labels[5, 3], labels[10, 1] = 9, np.iinfo(np.int32).max, 0
    lengths[6], lengths[7], lengths[8], lengths[11] = -1, 41, 3, 20
    acts[20:, 11] = np.nan  # behind the length
    for softmax in (True, False):
        compare(acts, labels, lengths, softmax=softmax)


def test_the_derivative_of_the_score():
    acts, labels, lengths = problem(60, 4, 12, 9)

    @jax.jit
    def gradient(acts):
        return jax.grad(lambda x: jax_ctc.ctc_align(x, labels, lengths).score.sum())(acts)

    on_device, on_cpu = (gradient(jax.device_put(acts, device)) for device in (DEVICE, CPU))
    np.testing.assert_allclose(on_device, on_cpu, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(400, 16, 32, 100), (5000, 3, 64, 800)], ids=str)
def test_twenty_times_the_same_bits(shape):
    given = jax.device_put(with_ties(*shape), DEVICE)
    align = jax.jit(jax_ctc.ctc_align)
    first = jax.tree.map(np.asarray, align(*given))
    for _ in range(20):
        jax.tree.map(assert_same_bits, align(*given), first)


def test_an_hour_of_speech_takes_little_memory():
    T, V, L = 100_000, 30, 20_000
    types = ((T, 1, V), np.float32), ((1, L), np.int32), ((1,), np.int32)
    where = jax.sharding.SingleDeviceSharding(DEVICE)
    shapes = [jax.ShapeDtypeStruct(*x, sharding=where) for x in types]
    analysis = jax.jit(jax_ctc.ctc_align).lower(*shapes).compile().memory_analysis()
    if jax.default_backend() == "gpu":
        assert analysis.temp_size_in_bytes < 25e6
    compare(*with_ties(T, 1, V, L, seed=3))

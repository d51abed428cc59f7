# SPDX-License-Identifier: Apache-2.0
"""Alignments by every backend: the same path bit for bit, and memory that is bounded."""

import contextlib
import hashlib
import os
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from jax_ctc import _reference
from support.runs import ROOT, run, sampled

FORCED = any(os.environ.get(name) for name in ("JAX_CTC_ISA", "JAX_CTC_KERNELS"))
INFO = jax_ctc.build_info()
KINDS = ("plain", "ties", "impossible", "far apart")


def problem(kind, T=90, B=6, V=7, L=25, dtype=np.float32):
    """Ragged; one sequence without an alignment."""
    rng = np.random.default_rng(KINDS.index(kind))
    acts = rng.normal(size=(T, B, V), scale=2)
    if kind == "ties":
        acts = np.round(acts / 3)
    if kind == "impossible":
        acts[rng.random(acts.shape) < 0.15] = -np.inf
        acts[..., -1] = 0
    if kind == "far apart":
        acts *= rng.choice([1, 1e5, 3e7], acts.shape)
    labels = rng.integers(1, V, (B, L), dtype=np.int32)
    labels[rng.random((B, L)) < 0.1] = -1
    lengths = rng.integers(T // 2, T + 1, B, dtype=np.int32)
    lengths[0] = 3
    return acts.astype(dtype), labels, lengths


pure = jax.jit(
    partial(_reference.align, threads=0, blank=0),
    static_argnames=["time_axis", "softmax", "star"],
)


def paths_in_both_ways(given, softmax=True, star=None):
    with getattr(_reference.align, "lowered_in", contextlib.nullcontext)():
        plain = pure(*given, time_axis=0, softmax=softmax, star=star is not None)
        return jax_ctc.ctc_align(*given, softmax=softmax, star=star), plain


def assert_same_paths(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert (np.asarray(one[0]) >= 0).any()
    assert one[2].dtype == other[2].dtype
    np.testing.assert_allclose(one[2], other[2], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
def test_pure_jax_and_the_kernels_return_the_same_path(kind, dtype):
    assert_same_paths(*paths_in_both_ways(problem(kind, dtype=dtype)))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_pure_jax_and_the_kernels_return_the_same_path_of_a_star(kind, softmax):
    acts, labels, lengths = problem(kind)
    labels[:, ::5] = 7
    assert_same_paths(*paths_in_both_ways((acts, labels, lengths), softmax=softmax, star=7))


def test_of_equal_classes_the_star_is_the_first_however_many_there_are():
    """Pure JAX reads 256 of them at a time."""
    given = np.zeros((3, 1, 600), np.float32), np.array([[600]], np.int32), np.array([3], np.int32)
    for path, *_ in paths_in_both_ways(given, star=600):
        np.testing.assert_array_equal(np.ravel(path), [1, 1, 1])


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("star", [None, 4])
def test_pure_jax_and_the_kernels_agree_on_what_is_not_a_number(softmax, star):
    acts = np.random.default_rng(0).normal(size=(5, 9, 4)).astype(np.float32)
    acts[2, 0, 3], acts[2, 1, 3], acts[2, 2, 3] = np.nan, np.inf, -np.inf  # of no label
    acts[2, 3, 1], acts[2, 4, 0], acts[2, 5] = np.nan, np.inf, -np.inf
    labels = np.tile(np.array([[2 if star is None else star, 1]], np.int32), (9, 1))
    labels[6, 0], lengths = 9, np.array([5] * 7 + [-1, 6], np.int32)
    in_both_ways = partial(paths_in_both_ways, softmax=softmax, star=star)
    found, plain = jax.jit(in_both_ways)((acts, labels, lengths))
    assert np.isnan(found.score[6:]).all()
    for x, y in zip(found, plain, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "most"), [(np.float64, 1.7e308), (np.float32, 3e38)])
def test_pure_jax_and_the_kernels_agree_on_logits_of_any_size(dtype, most):
    acts = np.zeros((6, 2, 3), dtype)
    acts[:3, 0, 0], acts[3:, 0, 1], acts[:, 1, 1] = -most, most, most
    given = acts, np.array([[1, 2], [2, -1]], np.int32), np.array([6, 6], np.int32)
    for x, y in zip(*paths_in_both_ways(given), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_an_overflow_makes_no_path():
    acts = np.full((2, 1, 3), -np.inf)
    acts[:, 0, 0] = 1e308
    given = acts, np.array([[1]], np.int32), np.array([2], np.int32)
    for path, _, score in paths_in_both_ways(given, softmax=False):
        assert score == -np.inf
        assert (np.asarray(path) == -1).all()


@pytest.mark.parametrize(("T", "L"), [(0, 2), (0, 0), (1, 0)])
def test_pure_jax_answers_empty_arrays(T, L):
    given = np.zeros((T, 2, 3), np.float32), np.ones((2, L), np.int32), np.full(2, T, np.int32)
    for x, y in zip(*paths_in_both_ways(given), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pure_jax_adds_up_in_float64_where_x64_is_off(kind, without_x64):
    given = problem(kind)
    compiled, plain = paths_in_both_ways(given)
    assert_same_paths(compiled, plain)
    jax.config.update("jax_enable_x64", True)
    assert_same_paths(jax_ctc.ctc_align(*given), plain)


DIGEST = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tests" / "kernels")!r}]
import jax_ctc, test_align_backends as here
print(jax_ctc.build_info()["cpu"])
for kind in here.KINDS:
    print(here.digest(jax_ctc.ctc_align(*here.problem(kind))))
"""


def digest(alignment):
    return hashlib.sha1(b"".join(np.asarray(x).tobytes() for x in alignment[:2])).hexdigest()


@pytest.mark.skipif(FORCED, reason="this run is one of those started here")
@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, "JAX_CTC_ISA") for name in INFO["cpu_available"] if name != INFO["cpu"]]
    + [(None, "JAX_CTC_KERNELS")],
)
@sampled(2)
def test_every_instruction_set_returns_the_same_path(name, setting):
    """So does a process that has no kernels, with x64 off."""
    said = run(sys.executable, "-c", DIGEST, **{setting: name or "none"})
    expected = [digest(jax_ctc.ctc_align(*problem(kind))) for kind in KINDS]
    assert said.stdout.split() == [str(name), *expected], said.stderr[-4000:]


# ---- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_major", "dtype", "star"),
    [(True, jnp.float32, False), (False, jnp.float32, True), (True, jnp.bfloat16, True)],
)
def test_pure_jax_keeps_a_byte_a_state_and_frame(time_major, dtype, star):
    T, B, V, L = 200, 2, 3000, 50
    acts = jax.ShapeDtypeStruct((T, B, V) if time_major else (B, T, V), dtype)
    integers = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(B, L), (B,)])
    compiled = pure.lower(
        acts, *integers, time_axis=int(not time_major), softmax=True, star=star
    ).compile()
    states = T * B * (2 * L + 1)
    # Besides, a group of 256 classes of the normaliser, which was halves before.
    group = T * B * 256 * (2 * 4 + (2 if dtype == jnp.bfloat16 else 0))
    assert compiled.memory_analysis().temp_size_in_bytes < states + group + 100_000


LONG = """
import resource, numpy as np, jax, jax_ctc
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rng = np.random.default_rng(0)
T, V, L = 100_000, 8, 20_000
acts = jax.device_put(rng.normal(size=(T, 1, V)).astype("f"))
labels = rng.integers(1, V, (1, L), dtype=np.int32)
jax.block_until_ready(jax_ctc.ctc_align(acts[:9], labels[:, :2], [9]))
before = peak()
out = jax.block_until_ready(jax_ctc.ctc_align(acts, labels, [T]))
path, index = np.asarray(out.path)[:, 0], np.asarray(out.label_index)[:, 0]
assert ((path == 0) | (path == labels[0][index])).all()
assert (np.unique(index[index >= 0]) == np.arange(L)).all()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not INFO["cpu"] or FORCED, reason="the CPU runs pure JAX here")
def test_an_hour_of_speech_takes_little_memory():
    """Back pointers of all frames would take 750 MB."""
    said = run(sys.executable, "-c", LONG)
    assert said.returncode == 0, said.stderr[-4000:]
    assert float(said.stdout) < 200

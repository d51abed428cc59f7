# SPDX-License-Identifier: Apache-2.0
"""Direct calls of the CPU handlers, as a forged program makes them: an error or a defined result.

What they do with their arrays is seen by the address sanitizer in test_sanitized.py.
"""

import sys
import threading

import jax
import numpy as np
import pytest

import jax_ctc
from jax_ctc._primitives.custom_call import OF_SCORES, RETIRED, TARGETS
from support import handlers
from support.handlers import ATTRIBUTES
from support.results import assert_same_bits
from support.runs import run, sampled, sweep

pytestmark = pytest.mark.skipif(
    not jax_ctc.build_info()["cpu"], reason="the CPU runs pure JAX here"
)

T, B = 5, 3
COMPACT, DENSE = (9, 2), (3, 6)  # (V, L)
SIZES = pytest.mark.parametrize("size", [COMPACT, DENSE], ids=["compact", "dense"])
# "beam" has other attributes: test_beam_kernel.
OPS = pytest.mark.parametrize("op", [op for op in TARGETS if op != "beam"])
OF_RESIDUALS = ("tangent", "cotangent", "hvp", "masked_hvp")
FROM_RESIDUALS = pytest.mark.parametrize("op", OF_RESIDUALS)
ACTS, LABELS, LENGTHS, ROWS, COLUMNS = range(5)


def honest(op, V, L, T=T, B=B):
    """Operands and results of a call that is as it should be."""
    acts, frames, batch = np.zeros((T, B, V), "f"), np.zeros((T, B), "f"), np.ones(B, "f")
    labels, lengths = np.ones((B, L), np.int32), np.full(B, T, np.int32)
    dense, scores = V <= L + 1, np.zeros((T, B, L), "f")
    rows = np.ones((T, B, 0 if dense else 2), "f")
    path = np.zeros((T, B), np.int32)
    columns = np.full((T, B, V if dense else L + 1), 0.5, "f")
    args = [acts, labels, lengths]
    return {
        "loss": (args, [batch]),
        "forward": (args, [batch, rows, columns]),
        "tangent": ([*args, rows, columns, acts + 1], [batch]),
        "cotangent": ([*args, rows, columns, batch + 1], [acts]),
        "hvp": ([*args, rows, columns, batch, acts + 1], [acts]),
        "masked_hvp": ([*args, rows, columns, batch, acts + 1], [acts]),
        "align": (args, [path, path, batch]),
        "sums": (args, [frames, frames, frames, scores]),
        "sums_cotangent": ([*args, frames, frames, scores], [acts]),
        "top_class": ([acts, labels[:, :0], lengths], [path, frames, frames]),
    }[op]


def attributes_of(op, **others):
    return {**ATTRIBUTES, **({"softmax": True, "star": False} if op == "align" else {}), **others}


def call(op, operands, results, attributes=None):
    return handlers.call(TARGETS[op], operands, results, attributes or attributes_of(op))


def refused(op, operands, results, attributes=None, because=""):
    attributes = attributes or attributes_of(op)
    return handlers.refused(TARGETS[op], operands, results, attributes, because)


def each_with_one_changed(op, size, change):
    """(position, operands, results), the results counted on from the operands."""
    operands, results = honest(op, *size)
    arrays = [*operands, *results]
    for k, x in enumerate(arrays):
        for what, y in change(x):
            some = [*arrays[:k], y, *arrays[k + 1 :]]
            yield k, what, some[: len(operands)], some[len(operands) :]


def longer(x):
    """One entry more along each axis."""
    for axis in range(x.ndim):
        yield axis, np.zeros([n + (a == axis) for a, n in enumerate(x.shape)], x.dtype)


def of_other_dtypes(x):
    for dtype in ("float64", "float16", "int64"):
        if x.dtype != dtype:
            yield dtype, x.astype(dtype)


# (op, position, axis or dtype): what may be another number, because nothing else depends on it.
FREE = {
    ("loss", ACTS, 0), ("loss", ACTS, 2), ("loss", LABELS, 1), ("sums", ACTS, 2),
    ("top_class", ACTS, 2), ("top_class", LABELS, 0),  # which are empty
    ("align", ACTS, 2), ("align", LABELS, 1),
    *((op, ACTS, "float16") for op in ("loss", "forward", "align", "sums", "top_class")),
}  # fmt: skip
FREE_DENSE = {
    *((op, LABELS, 1) for op in ("forward", *OF_RESIDUALS)),
    *(("forward", 4, axis) for axis in (0, 1)),  # rows, which are empty
    *((op, ROWS, axis) for op in OF_RESIDUALS for axis in (0, 1)),
}


@OPS
@SIZES
def test_an_honest_call_is_answered(op, size):
    call(op, *honest(op, *size))


@SIZES
def test_log_scores_keep_no_rows(size):
    operands, (cost, rows, columns) = honest("forward", *size)
    operands[LABELS][:, 1:] = -1
    forward = OF_SCORES["forward"]
    assert (forward, OF_SCORES["loss"]) == (
        "jax_ctc_forward_of_scores_v1",
        "jax_ctc_loss_of_scores_v1",
    )
    assert refused("forward", operands, [cost, rows[..., :0], columns]) == (size == COMPACT)
    assert handlers.refused(forward, operands, [cost, rows, columns]) == (size == COMPACT)
    kept = handlers.call(forward, operands, [cost, rows[..., :0], columns])[1:]
    args = [*operands, *kept, np.ones(B, "f")]
    gradient = handlers.call(OF_SCORES["cotangent"], args, [operands[ACTS]])[0]
    np.testing.assert_allclose(gradient.sum(-1), -1, rtol=1e-6)


@pytest.mark.slow
@OPS
@pytest.mark.parametrize(
    ("size", "change"),
    sweep(
        [(COMPACT, longer), (DENSE, longer), (COMPACT, of_other_dtypes)],
        [(COMPACT, longer), (COMPACT, of_other_dtypes)],
    ),
)
@sampled(2)
def test_a_wrong_shape_or_dtype_is_refused(op, size, change):
    free = FREE | (FREE_DENSE if size == DENSE else {("forward", ACTS, 2)})
    for k, what, operands, results in each_with_one_changed(op, size, change):
        assert refused(op, operands, results) != ((op, k, what) in free), (k, what)


@pytest.mark.slow
@OPS
@sampled(4)
def test_a_wrong_rank_or_count_is_refused(op):
    operands, results = honest(op, *COMPACT)
    acts, labels, *rest = operands
    for shape in ((), (9,), (T * B, 9), (1, T, B, 9), (1, 1, T, B, 9)):
        assert refused(op, [np.zeros(shape, "f"), labels, *rest], results)
    for shape in ((), (6,), (1, B, 2)):
        assert refused(op, [acts, np.zeros(shape, np.int32), *rest], results)
    assert refused(op, operands[:-1], results)
    assert refused(op, [*operands, acts], results)
    assert refused(op, operands, [*results, acts])


@pytest.mark.slow
@OPS
@sampled(2)
def test_a_wrong_attribute_is_refused(op):
    operands, results = honest(op, *COMPACT)
    for wrong in (
        *({"time_axis": k} for k in (-1, 2, 2**63 - 1, -(2**63))),
        *({"blank": k} for k in (-1, 9, 2**32, 2**63 - 1)),
    ):
        assert refused(op, operands, results, attributes_of(op, **wrong)), wrong
    for name in attributes_of(op):
        fewer = {k: v for k, v in attributes_of(op).items() if k != name}
        other = attributes_of(op, **{name: 0.5})
        assert refused(op, operands, results, fewer), name
        assert refused(op, operands, results, other), name


@OPS
def test_any_number_of_threads_is_taken(op):
    first, *others = (
        call(op, *honest(op, *COMPACT), attributes_of(op, threads=threads))
        for threads in (0, -(2**63), -1, 1, 2**63 - 1)
    )
    for other in others:
        for x, y in zip(first, other, strict=True):
            assert_same_bits(x, y)


@OPS
@pytest.mark.parametrize(
    ("T", "B", "V", "L"),
    [
        (0, 3, 4, 2),
        (5, 0, 4, 2),
        (5, 3, 4, 0),
        (0, 3, 4, 0),
        (5, 3, 1, 0),
        (0, 3, 2, 4),
        (0, 0, 1, 0),
    ],
)
def test_empty_arrays_are_answered(op, T, B, V, L):
    operands, results = honest(op, V, L, T, B)
    out = call(op, operands, results)
    if op in ("loss", "forward") and T == 0:
        np.testing.assert_array_equal(out[0], np.full(B, np.inf if L > 0 else 0))


@OPS
def test_an_empty_array_with_huge_sides_is_refused(op):
    """No product of the sizes is counted in more than 64 bits."""
    operands, results = honest(op, *COMPACT)
    operands[ACTS] = np.zeros((0, 2**29, 2**30), "f")
    assert refused(op, operands, results, because="more elements than an int64 counts")


@OPS
def test_more_labels_than_an_int32_counts_are_refused(op):
    """Kernels go a little further than the last one."""
    operands, results = honest(op, *COMPACT, B=0)
    operands[LABELS] = np.zeros((0, 2**31 - 1024), np.int32)
    assert refused(op, operands, results, because="L + 1024 fit an int32")


BAD_LABELS = [9, 10, 41, 10**9, 2**31 - 1, 0]  # with V = 9 and blank 0


@FROM_RESIDUALS
@SIZES
def test_residuals_cannot_make_a_bad_sequence_have_a_gradient(op, size):
    """A scale other than 0 in `rows` is no promise that labels are good."""
    V, L = size
    for bad in BAD_LABELS:
        operands, results = honest(op, V, L)
        operands[LABELS][1, L - 1] = bad
        operands[LENGTHS][2] = T + 1 if bad % 2 else -1
        (out,) = call(op, operands, results)
        sequences = out if op == "tangent" else np.moveaxis(out, 1, 0).reshape(B, -1)
        assert (sequences[1:] == 0).all()
        assert (sequences[0] != 0).any() or op.endswith("hvp")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@SIZES
def test_a_masked_product_is_zero_where_the_direction_is(size, dtype):
    """Whatever the cotangent and the rows. Frames after the length do not count; a NaN does."""
    operands, results = honest("masked_hvp", *size)
    wide = dtype if dtype == "float64" else "float32"
    acts, labels, lengths, rows, columns, cotangents, direction = operands
    labels[:, 1:] = -1
    acts[1, 1], acts[:, 0, 1] = np.nan, 1.0
    lengths[1] = T - 1
    direction[: T - 1, 1] = -0.0
    cotangents[1] = np.inf
    of_wide = (x.astype(wide) for x in (rows, columns, cotangents))
    given = [acts.astype(dtype), labels, lengths, *of_wide, direction.astype(dtype)]
    given[-1][:, 0, 1:] = 0.0
    result = [results[0].astype(dtype)]

    def product(op):
        return handlers.call(TARGETS[op], given, result, ATTRIBUTES)[0]

    plain, masked = product("hvp"), product("masked_hvp")
    assert_same_bits(np.delete(plain, 1, 1), np.delete(masked, 1, 1))
    assert masked[:, 0].any()
    assert np.isnan(plain[1, 1]).all()
    assert not masked[:, 1].any()
    given[-1][T - 2, 1, -1] = np.nan
    assert np.isnan(product("masked_hvp")[1, 1]).all()


@FROM_RESIDUALS
@SIZES
def test_forged_residuals_are_only_numbers(op, size):
    numbers = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, -1.0, 1.0]
    rng = np.random.default_rng(0)
    for _ in range(3):
        operands, results = honest(op, *size, T=40)
        for k in (ROWS, COLUMNS, *range(5, len(operands))):
            operands[k] = rng.choice(numbers, operands[k].shape).astype("f")
        operands[LENGTHS] = rng.integers(-(2**31), 2**31, B).astype(np.int32)
        operands[LENGTHS][0] = 40
        first, again = call(op, operands, results), call(op, operands, results)
        assert_same_bits(first[0], again[0])


@pytest.mark.parametrize("op", ["sums", "sums_cotangent"])
def test_sums_are_zero_in_frames_beyond_the_length(op):
    operands, results = honest(op, *COMPACT)
    for k in (ACTS, *range(3, len(operands))):
        operands[k] = np.ones_like(operands[k])
    operands[LENGTHS][:] = 5, 3, 0
    in_use = np.arange(T)[:, None] < operands[LENGTHS]
    for x in call(op, operands, results):
        assert not x[~in_use].any()
        assert x[in_use].any() or not x.any()  # nothing is less than the largest: no tail


@pytest.mark.parametrize("op", ["sums", "sums_cotangent"])
def test_a_symbol_that_is_no_class_is_refused(op):
    for symbol in (9, 10**9, 2**31 - 1):
        operands, results = honest(op, *COMPACT)
        operands[LABELS][0, 0] = symbol
        assert refused(op, operands, results, because="no class of acts")
    operands[LABELS][0, 0] = -(2**31)
    call(op, operands, results)


WITHOUT_MEMORY = """
import resource, jax, jax.numpy as jnp, numpy as np
from jax_ctc import ctc
def gradient(T, L):
    acts = jnp.zeros((T, 4, 8))
    labels = jnp.asarray(np.arange(4 * L).reshape(4, L) % 7 + 1)
    return jax.jit(jax.grad(lambda a: ctc(a, labels, jnp.full(4, T)).sum()))(acts)
expected = np.asarray(gradient(50, 20))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), limit[1]))
try:
    jax.block_until_ready(gradient(100_001, 50_000))
except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_AS, limit)
print((np.asarray(gradient(50, 20)) == expected).all())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux limits the memory of a process")
def test_out_of_memory_is_an_error_and_the_process_goes_on():
    result = run(sys.executable, "-c", WITHOUT_MEMORY, JAX_PLATFORMS="cpu")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "RESOURCE_EXHAUSTED: jax_ctc: out of memory (a thread asked for " in result.stdout
    assert result.stdout.endswith("True\n")


KEPT = """
import ctypes, gc, time, jax, jax.numpy as jnp, numpy as np, jax_ctc

def resident():
    def now():
        time.sleep(0.05)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
        return int(line.split()[1]) // 1024
    return min(now() for _ in range(6))

def kept(run, few, many):
    jax.block_until_ready(run(*few))
    before = resident()
    jax.block_until_ready(run(*many))
    return resident() - before

rows = np.random.default_rng(0).normal(size=(15000, 1, 20)).astype("f")
rows[-1] = np.nan
decode = lambda acts: jax_ctc.ctc_beam_search_decode(acts, None, beam_width=150).score
print(kept(jax.jit(decode), [rows[:9]], [rows]), "MB of a beam whose last frame is NaN")
align = lambda labels: jax_ctc.ctc_align(np.zeros((20, 1, 4), "f"), labels, None).score
labels = np.ones((1, 4_000_000), np.int32)
print(kept(jax.jit(align), [labels[:, :9]], [labels]), "MB of labels")
slope = lambda acts: jax.jvp(lambda x: jax_ctc.ctc(x, np.ones((1, 1), "i"), None), (acts,), (acts,))
acts = jnp.zeros((2, 1, 5_000_000), jnp.bfloat16)
print(kept(jax.jit(slope), [acts[..., :9]], [acts]), "MB of rows of halves")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="reads the memory of a process as Linux says it"
)
def test_threads_keep_no_memory_of_a_large_call():
    result = run(sys.executable, "-c", KEPT, JAX_PLATFORMS="cpu")
    kept = [int(line.split()[0]) for line in result.stdout.splitlines()]
    assert len(kept) == 3, result.stderr[-2000:]
    assert max(kept) < 24, result.stdout  # of 70 to 90


def test_python_threads_that_call_at_once_get_the_bits_of_one():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(60, 16, 30)).astype("f")
    labels, lengths = rng.integers(1, 30, (16, 12)), rng.integers(30, 61, 16)
    f = jax.jit(jax.value_and_grad(lambda a: jax_ctc.ctc(a, labels, lengths).sum()))
    expected = jax.tree.leaves(f(acts))
    failures = []

    def work():
        for _ in range(20):
            for x, y in zip(jax.tree.leaves(f(acts)), expected, strict=True):
                if np.asarray(x).tobytes() != np.asarray(y).tobytes():
                    failures.append(x)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_program_from_before_the_star_still_aligns():
    operands, results = honest("align", 4, 2)
    expected = call("align", operands, results)
    attributes = {**ATTRIBUTES, "softmax": True}
    for name in RETIRED:
        for x, y in zip(handlers.call(name, operands, results, attributes), expected, strict=True):
            np.testing.assert_array_equal(x, y)

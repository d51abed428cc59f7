# SPDX-License-Identifier: Apache-2.0
"""Direct calls of the CUDA handlers, as a forged program makes them: an error or a defined result.

What they do with their arrays is seen by the address sanitizer (sanitized_cuda.cpp).
"""

import ctypes
import itertools

import jax
import numpy as np
import pytest

from jax_ctc._primitives import custom_call
from support import emulated, handlers
from support.handlers import ATTRIBUTES
from support.runs import sampled, sweep

pytestmark = [pytest.mark.slow, *emulated.NEEDED]

T, B, F32 = 5, 3, 0  # of kernels/common/problem.h
OPS = ["loss", "forward", "tangent", "cotangent", "hvp", "align"]
SCRATCH = {"loss": 0, "forward": 1, "tangent": 2, "hvp": 3, "align": 4}
OPTIONS = {"align": {"softmax": True, "star": False}}
each_op = pytest.mark.parametrize("op", OPS)
COMPACT, DENSE = (9, 2), (3, 4)  # V, L
each_size = pytest.mark.parametrize("size", [COMPACT, DENSE], ids=["compact", "dense"])


@pytest.fixture(scope="module")
def library():
    library = emulated.load(emulated.handlers()).library
    library.handler.restype = ctypes.c_void_p
    for op in OPS:
        handler = jax.ffi.pycapsule(library.handler(custom_call.TARGETS[op].encode()))
        jax.ffi.register_ffi_target(f"called_directly_{op}", handler, platform="cpu")
    return library


def honest(library, op, V, L):
    """Operands and results of a call that is as it should be."""
    acts, batch = np.zeros((T, B, V), "f"), np.ones(B, "f")
    labels = np.tile(1 + np.arange(L, dtype=np.int32) % 2, (B, 1))
    args = [acts, labels, np.full(B, T, np.int32)]
    dense = V <= L + 1
    rows = np.ones((T, B, 0 if dense else 2), "f")
    columns = np.full((T, B, V if dense else L + 1), 0.5, "f")
    path = [np.zeros((T, B), np.int32)] * 2
    operands, results = {
        "loss": (args, [batch]),
        "forward": (args, [batch, rows, columns]),
        "tangent": ([*args, rows, columns, acts], [batch]),
        "cotangent": ([*args, rows, columns, batch], [acts]),
        "hvp": ([*args, rows, columns, batch, acts], [acts]),
        "align": (args, [*path, batch]),
    }[op]
    if op in SCRATCH:
        results = [*results, np.zeros(B * library.scratch_bytes(SCRATCH[op], F32, T, L), np.uint8)]
    return operands, results


def call(op, operands, results):
    attributes = ATTRIBUTES | OPTIONS.get(op, {})
    return handlers.call(f"called_directly_{op}", operands, results, attributes)


def refused(op, operands, results, **attributes):
    attributes = ATTRIBUTES | OPTIONS.get(op, {}) | attributes
    return handlers.refused(f"called_directly_{op}", operands, results, attributes)


def wrong(x):
    """x of a batch that is smaller by one, and of another dtype."""
    if x.size > 0:
        yield x[:, 1:] if x.ndim == 3 else x[1:]
    yield np.zeros(x.shape, np.int8)


@pytest.mark.parametrize(
    ("op", "size"),
    sweep(
        list(itertools.product(OPS, [COMPACT, DENSE])),
        [*((op, COMPACT) for op in OPS), ("hvp", DENSE)],
    ),
    ids=str,
)
@sampled(2)
def test_an_array_that_does_not_fit_is_an_error(library, op, size):
    operands, results = honest(library, op, *size)
    assert np.isfinite(call(op, operands, results)[0]).all()
    arrays, n = [*operands, *results], len(operands)
    for k, x in enumerate(arrays):
        for y in wrong(x):
            some = [*arrays[:k], y, *arrays[k + 1 :]]
            assert refused(op, some[:n], some[n:]), (k, y.shape, y.dtype)


@each_op
def test_an_attribute_out_of_range_is_an_error(library, op):
    operands, results = honest(library, op, 9, 2)
    for attributes in ({"blank": -1}, {"blank": 9}, {"blank": 2**40}, {"time_axis": -1},
                       {"time_axis": 2}, {"time_axis": 1}):  # fmt: skip
        assert refused(op, operands, results, **attributes), attributes


@pytest.mark.parametrize("star", [False, True])
def test_a_path_has_no_class_but_those_of_acts(library, star):
    """Whatever labels and lengths are."""
    operands, results = honest(library, "align", 9, 2)
    operands[0] = np.random.default_rng(0).normal(size=(T, B, 9)).astype("f")
    for label in (10**9, 9, 8, -1, -(2**31), 2**31 - 1):
        for length in (T, -1, T + 1, 2**31 - 1, -(2**31)):
            operands[1][:, 1], operands[2][1] = label, length
            attributes = ATTRIBUTES | {"softmax": True, "star": star}
            path, index, score, _ = handlers.call(
                "called_directly_align", operands, results, attributes
            )
            assert ((path >= -1) & (path < 9) & (index >= -1) & (index < 2)).all()
            valid = (label < 9 + star) & (np.arange(B) != 1 if length != T else True)
            np.testing.assert_array_equal(np.isfinite(score), np.broadcast_to(valid, B))


@each_size
@pytest.mark.parametrize("op", ["tangent", "cotangent", "hvp"])
def test_labels_are_not_believed_whatever_was_kept(library, op, size):
    operands, results = honest(library, op, *size)
    for label in (10**9, size[0], -1, -(2**31), 2**31 - 1):
        for length in (T, -1, T + 1, 2**31 - 1, -(2**31)):
            operands[1][:, 1], operands[2][1] = label, length
            assert np.isfinite(call(op, operands, results)[0]).all()

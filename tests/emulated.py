# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as C++ over the emulator: compiles them, and calls them with NumPy arrays."""

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX") or shutil.which("g++")
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, ml_dtypes.bfloat16, np.float16)]
FLAGS = ["-std=gnu++17", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-math-errno"]


def build(library, sources=ROOT):
    """Compiles `sources`, a tree with kernels/ and tests/, to a shared library."""
    command = [
        COMPILER, *FLAGS, "-O1", "-fPIC", "-shared", f"-I{sources / 'tests'}",
        sources / "tests" / "emulated.cpp", "-o", library,
    ]  # fmt: skip
    built = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    return load(library)


def load(library):
    return Emulated(ctypes.CDLL(str(library)))


@dataclass
class Answer:
    cost: np.ndarray
    alone: np.ndarray  # the cost by the kernels of the loss without a gradient
    rows: np.ndarray
    columns: np.ndarray
    gradient: np.ndarray
    tangent: np.ndarray | None


def _dirty(shape, dtype, at=0):
    """NaN patterns, `at` elements past a 64-byte boundary: what is not written shows."""
    n = int(np.prod(shape))
    flat = np.empty(n * dtype.itemsize + 128, np.uint8)
    flat[:] = 0xFF
    start = -flat.ctypes.data % 64 + at * dtype.itemsize
    return flat[start : start + n * dtype.itemsize].view(dtype).reshape(shape)


class Emulated:
    def __init__(self, library):
        self.library = library
        library.launches.restype = ctypes.c_int64
        library.scratch_bytes.restype = ctypes.c_int64
        library.scratch_bytes.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 2

    def solve(
        self, acts, labels, lengths, *, blank=0, time_axis=0, cotangents=None, directions=None,
        in_place=False, seed=1, shared=227 << 10, shift=0,
    ):  # fmt: skip
        """acts (T, B, V), or (B, T, V) with time_axis=1; labels (B, L); lengths (B,)."""
        given, acts = acts, _dirty(acts.shape, acts.dtype, shift)
        acts[...] = given
        (B, L), V, T = labels.shape, acts.shape[-1], acts.shape[time_axis]
        N, inner = (1, B) if time_axis == 0 else (B, 1)
        dtype, computed = DTYPES.index(acts.dtype), np.dtype(np.float64)
        if acts.dtype != np.float64:
            computed = np.dtype(np.float32)
        dense = V <= L + 1
        shape = np.array([N, T, inner, V, L], np.int64)
        labels, lengths = (np.ascontiguousarray(x, np.int32) for x in (labels, lengths))
        cotangents = np.ones(B) if cotangents is None else cotangents
        cotangents = np.ascontiguousarray(cotangents, computed)
        frames = acts.shape[:-1]
        rows = _dirty((*frames, 0 if dense else 2), computed)
        columns = _dirty((*frames, V if dense else L + 1), computed)
        alone, cost, tangent = (_dirty((B,), computed) for _ in range(3))
        gradient = acts if in_place else _dirty(acts.shape, acts.dtype, shift)
        scratch = [
            _dirty((max(B, 1) * self.library.scratch_bytes(op, dtype, T, L),), np.dtype(np.uint8))
            for op in range(3)
        ]
        self.library.set_shared_memory_limit(shared)

        def call(seed, cost, kept, scratch, gradient, directions, tangent, last):
            def address(x):
                return None if x is None else ctypes.c_void_p(x.ctypes.data)

            self.library.set_seed(seed)
            wrong = self.library.solve(
                dtype, address(shape), address(acts), address(labels), address(lengths), blank,
                address(cost), *map(address, kept), address(scratch), address(cotangents),
                *map(address, (gradient, directions, tangent, last)),
            )  # fmt: skip
            assert wrong == 0

        if directions is not None:
            directions = np.ascontiguousarray(directions, acts.dtype)
        call(seed, alone, (None, None), scratch[0], None, None, None, None)
        call(
            seed + 1000, cost, (rows, columns), scratch[1], gradient, directions,
            None if directions is None else tangent, scratch[2],
        )  # fmt: skip
        tangent = None if directions is None else tangent
        return Answer(cost, alone, rows, columns, gradient, tangent)

# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as C++ over the emulator: compiles them, and calls them with NumPy arrays."""

import ctypes
import functools
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from support.planted import choice, plant
from support.runs import ROOT, made_once, run

SOURCES = ROOT / "tests" / "kernels"
CUDA = ROOT / "kernels" / "cuda"
EMULATOR = SOURCES / "emulator"  # its machine.cuh takes the place of nvcc's
COMPILER = os.environ.get("CXX") or shutil.which("g++")
NEEDED = [  # marks of tests that compile the kernels
    pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="not in a source tree"),
    pytest.mark.skipif(not COMPILER, reason="no C++ compiler"),
]
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, ml_dtypes.bfloat16, np.float16)]
FLAGS = ["-std=gnu++17", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fno-math-errno"]


def _compile(*arguments):
    built = run(COMPILER, *FLAGS, "-O1", "-fPIC", *arguments)
    assert built.returncode == 0, built.stderr[-4000:]


# Other threads see stores as late as they may, and an alignment has blocks of few frames.
BUFFERS_STORES = ["-fsanitize=thread", "-DJAX_CTC_BLOCK_FRAMES=32"]


def handlers():
    """A library, compiled once for all test files and processes: the kernels, and XLA's handlers of
    them for calls on the CPU."""

    def make(library):
        _compile(
            "-shared", f"-I{EMULATOR}", "-isystem", jax.ffi.include_dir(),
            SOURCES / "emulated_handlers.cpp", "-o", library,
        )  # fmt: skip

    return made_once("handlers.so", make)


@functools.cache
def kernels():
    """The kernels of this tree."""
    return load(handlers())


@functools.cache
def kernels_that_buffer_stores():
    def make(library):
        _compile(
            *BUFFERS_STORES, f"-I{EMULATOR}", "-include", SOURCES / "emulated_kernels.h",
            "-c", SOURCES / "emulated.cpp", "-o", f"{library}.o",
        )  # fmt: skip
        _compile("-shared", f"{library}.o", "-o", library)  # no sanitizer is linked

    return load(made_once("emulated_stores.so", make))


def _with_bugs(bugs, name, buffers_stores):
    """A library that has one of `bugs` in kernels/cuda, in a run that chooses it."""

    def make(library):
        folder = library.with_name(f"{library.name}.sources")
        chosen = plant(folder, CUDA.relative_to(ROOT), bugs)
        sources = folder / SOURCES.relative_to(ROOT)
        _compile(
            *(BUFFERS_STORES if buffers_stores else []), *chosen,
            f"-I{folder / EMULATOR.relative_to(ROOT)}", "-include", sources / "emulated_kernels.h",
            "-c", sources / "emulated.cpp", "-o", f"{library}.o",
        )  # fmt: skip
        _compile("-shared", f"{library}.o", "-o", library)  # no sanitizer is linked

    return made_once(name, make)


def run_alone(program, bugs, bug=None, buffers_stores=False):
    """A program in a process of its own, because some bugs end it. It loads a library with `bugs`,
    of which `bug` is chosen, or none."""
    library = _with_bugs(bugs, f"{Path(program).stem}.so", buffers_stores)
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    chosen = choice(bugs, bug) if bug is not None else {}
    return run(sys.executable, program, library, PYTHONPATH=paths, **chosen)


def assert_caught(*arguments, **options):
    """By the program that run_alone runs."""
    result = run_alone(*arguments, **options)
    assert result.returncode != 0
    assert "AssertionError" in result.stderr or "emulator: block" in result.stderr, result.stderr


def assert_nothing_caught(program, bugs, **options):
    """Where no bug is chosen."""
    result = run_alone(program, bugs, **options)
    assert result.returncode == 0, result.stderr


def assert_each_has_a_place(folder, bugs):
    """A change of the kernels has to take the planted bugs along."""
    plant(folder, CUDA.relative_to(ROOT), bugs)


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


def _address(x):
    return None if x is None else ctypes.c_void_p(x.ctypes.data)


class Emulated:
    def __init__(self, library):
        self.library = library
        library.launches.restype = ctypes.c_int64
        library.scratch_bytes.restype = ctypes.c_int64
        library.scratch_bytes.argtypes = [ctypes.c_int] * 2 + [ctypes.c_int64] * 2

    def last_launches(self):
        """Of the last six: blocks, threads of a block, bytes of shared memory."""
        found = np.zeros((6, 3), np.int64)
        self.library.last_launches(_address(found))
        return found

    def solve(
        self, acts, labels, lengths, *, blank=0, time_axis=0, cotangents=None, directions=None,
        in_place=False, seed=1, shared=227 << 10, multiprocessors=132, shift=0,
    ):  # fmt: skip
        """acts (T, B, V), or (B, T, V) with time_axis=1; labels (B, L); lengths (B,)."""
        p = _Problem(acts, labels, lengths, blank, time_axis, shift)
        cotangents = p.cotangents(cotangents)
        rows, columns = (_dirty((*p.frames, n), p.computed) for n in p.kept_sizes())
        alone, cost, tangent = (_dirty((p.B,), p.computed) for _ in range(3))
        gradient = p.acts if in_place else _dirty(acts.shape, acts.dtype, shift)
        scratch = [self.scratch(op, p) for op in range(3)]
        self.library.set_shared_memory_limit(shared)
        self.library.set_multiprocessors(multiprocessors)

        def call(seed, cost, kept, scratch, gradient, directions, tangent, last):
            self.library.set_seed(seed)
            wrong = self.library.solve(
                *p.operands(), _address(cost), *map(_address, kept), _address(scratch),
                *map(_address, (cotangents, gradient, directions, tangent, last)),
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

    def cotangent(
        self, acts, labels, lengths, kept, cotangents, *, blank=0, place=None, seed=1
    ):  # fmt: skip
        """The gradient times cotangents, from what was kept; written to the place of "acts", of
        "columns", or beside them."""
        p = _Problem(acts, labels, lengths, blank, 0, 0)
        kept = [np.array(x, p.computed) for x in kept]
        gradient = {None: _dirty(acts.shape, acts.dtype), "acts": p.acts, "columns": kept[1]}[place]
        self.library.set_seed(seed)
        arrays = *kept, p.cotangents(cotangents), gradient
        assert self.library.cotangent(*p.operands(), *map(_address, arrays)) == 0
        return gradient

    def tangent(self, acts, labels, lengths, kept, directions, *, blank=0, seed=1):
        """The tangents of directions, from what was kept."""
        p = _Problem(acts, labels, lengths, blank, 0, 0)
        kept = [np.array(x, p.computed) for x in kept]
        directions = np.ascontiguousarray(directions, acts.dtype)
        tangents = _dirty((p.B,), p.computed)
        self.library.set_seed(seed)
        arrays = *kept, directions, tangents, self.scratch(2, p)
        assert self.library.tangent(*p.operands(), *map(_address, arrays)) == 0
        return tangents

    def hvp(
        self, acts, labels, lengths, directions, *, blank=0, time_axis=0, cotangents=None,
        kept=None, seed=1, shared=227 << 10, multiprocessors=132, shift=0,
    ):  # fmt: skip
        """The Hessian times directions. Arguments as for `solve`; `kept`, rows and columns, may
        come from elsewhere."""
        p = _Problem(acts, labels, lengths, blank, time_axis, shift)
        if kept is None:
            answer = self.solve(acts, labels, lengths, blank=blank, time_axis=time_axis)
            kept = answer.rows, answer.columns
        kept = [np.ascontiguousarray(x, p.computed) for x in kept]
        cotangents = p.cotangents(cotangents)
        directions = np.ascontiguousarray(directions, acts.dtype)
        out, scratch = _dirty(acts.shape, acts.dtype, shift), self.scratch(3, p)
        self.library.set_shared_memory_limit(shared)
        self.library.set_multiprocessors(multiprocessors)
        self.library.set_seed(seed)
        wrong = self.library.hvp(
            *p.operands(), *map(_address, (*kept, cotangents, directions, out, scratch))
        )
        assert wrong == 0
        return out

    def align(
        self, acts, labels, lengths, *, blank=0, time_axis=0, softmax=True, star=None, seed=1,
        shared=227 << 10, shift=0,
    ):  # fmt: skip
        """The path, the positions of its labels, and its score. Arguments as for `solve`."""
        p = _Problem(acts, labels, lengths, blank, time_axis, shift)
        path, label_index = (_dirty(p.frames, np.dtype(np.int32)) for _ in range(2))
        score, scratch = _dirty((p.B,), p.computed), self.scratch(4, p)
        self.library.set_shared_memory_limit(shared)
        self.library.set_seed(seed)
        wrong = self.library.align(
            *p.operands(), softmax, star is not None,
            *map(_address, (path, label_index, score, scratch)),
        )  # fmt: skip
        assert wrong == 0
        return path, label_index, score

    def scratch(self, operation, p):
        size = self.library.scratch_bytes(operation, p.dtype, p.T, p.L)
        return _dirty((max(p.B, 1) * size,), np.dtype(np.uint8))


class _Problem:
    """The operands that every operation has."""

    def __init__(self, acts, labels, lengths, blank, time_axis, shift):
        self.acts = _dirty(acts.shape, acts.dtype, shift)
        self.acts[...] = acts
        self.blank, self.frames = blank, acts.shape[:-1]
        (self.B, self.L), self.V, self.T = labels.shape, acts.shape[-1], acts.shape[time_axis]
        N, inner = (1, self.B) if time_axis == 0 else (self.B, 1)
        self.dtype = DTYPES.index(acts.dtype)
        self.computed = np.dtype(np.float64 if acts.dtype == np.float64 else np.float32)
        self.shape = np.array([N, self.T, inner, self.V, self.L], np.int64)
        self.labels = np.ascontiguousarray(labels, np.int32)
        self.lengths = np.ascontiguousarray(lengths, np.int32)

    def kept_sizes(self):
        return (0, self.V) if self.V <= self.L + 1 else (2, self.L + 1)

    def cotangents(self, given):
        return np.ascontiguousarray(np.ones(self.B) if given is None else given, self.computed)

    def operands(self):
        arrays = map(_address, (self.shape, self.acts, self.labels, self.lengths))
        return self.dtype, *arrays, self.blank

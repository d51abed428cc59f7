# SPDX-License-Identifier: Apache-2.0
"""Single kernels: cycles per frame of the lattice, bandwidth of the row kernels, the cost of a
Hessian-vector product, and the time of an alignment.

The numbers are estimated from differences between shapes. JAX's profiler gives them too if it
works.
"""

import glob
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jax_ctc

from .speed import Shape, problem, steps_of
from .timing import clock_under_load, copy_bandwidth, in_a_loop, median_of

LATTICE = [(200, 1, 32, 30), (400, 16, 32, 100)]
ROWS = (1000, 64, 5000, 100)
ALIGNED = [(400, 16, 32, 100), (1500, 32, 32, 100), (20_000, 1, 32, 4000), (100_000, 1, 32, 20_000)]
PROFILED = [*LATTICE, (250, 8, 10_000, 50), (1600, 256, 128, 200), ROWS]


def kernels(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    clock, bandwidth = clock_under_load(tiny), copy_bandwidth(tiny)
    write(what="clock under load, MHz", value=clock / 1e6)
    write(what="copy, GB/s", value=bandwidth / 1e9)
    lattice, rows = ([(20, 1, 8, 5)], (30, 2, 400, 9)) if tiny else (LATTICE, ROWS)
    for shape in lattice:
        for training in (False, True):
            write(**cycles(shape, training, clock))
    for training in (False, True):
        write(**row_bandwidth(rows, training, bandwidth))
    for shape in [*lattice, rows]:
        write(**with_a_product(shape))
    for shape in lattice if tiny else ALIGNED:
        write(**alignment(shape))
    for shape in [rows] if tiny else PROFILED:
        for training in (False, True):
            if time.monotonic() > deadline - 3:
                return write(what="profile", value="no time left")
            for row in profiled(shape, training, clock, bandwidth):
                write(**row)


def name_of(shape: Shape, training: bool) -> str:
    return f"{' '.join(map(str, shape))} {'loss+grad' if training else 'loss'}"


def step_time(shape: Shape, training: bool, n: int) -> float:
    step, first = steps_of(problem(shape, "float32"), training)
    return median_of(in_a_loop(step, first, n))


def cycles(shape: Shape, training: bool, clock: float) -> dict[str, Any]:
    """Cycles per frame, from T and 2 T frames. In the loss alone alpha and beta meet in the middle,
    so the chain has half as many steps as frames."""
    T, B, V, L = shape
    once, twice = (step_time((m * T, B, V, L), training, 1000) for m in (1, 2))
    frames = T if training else T / 2
    return {
        "what": name_of(shape, training),
        "kernel": "lattice, by slope",
        "us": once,
        "value": (twice - once) * 1e-6 * clock / frames,
        "unit": "cycles/frame",
    }


def with_a_product(shape: Shape) -> dict[str, Any]:
    """Time of loss + gradient + Hessian-vector product, relative to loss + gradient."""
    acts, labels, lengths = problem(shape, "float32")
    gradient = jax.grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())

    # The gradient and the product are the next step's operands.
    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(gradient, state[:1], state[1:])

    both = median_of(in_a_loop(step, (acts, acts + 1), 100))
    return {
        "what": f"{' '.join(map(str, shape))} loss+grad+product",
        "kernel": "all",
        "us": both,
        "value": both / step_time(shape, True, 100),
        "unit": "of loss+grad",
    }


def alignment(shape: Shape) -> dict[str, Any]:
    """Time of the best paths of a batch."""
    acts, labels, lengths = problem(shape, "float32")

    def next_lengths(n: jax.Array) -> jax.Array:  # no score is above 0, so lengths do not change
        return n + (jax_ctc.ctc_align(acts, labels, n).score > 0).astype(n.dtype)

    us = median_of(in_a_loop(next_lengths, lengths, 100 if shape[0] < 10_000 else 1))
    return {
        "what": f"{' '.join(map(str, shape))} alignment",
        "kernel": "all",
        "us": us,
        "value": us * 1e3 / shape[0],
        "unit": "ns/frame",
    }


def row_bandwidth(shape: Shape, training: bool, bandwidth: float) -> dict[str, Any]:
    """Bandwidth of the row kernels, from few and many classes with the same lattice."""
    T, B, V, L = shape
    few = max(2 * L, V // 10)
    less, all_of_it = (step_time((T, B, v, L), training, 20) for v in (few, V))
    added = (3 if training else 1) * T * B * (V - few) * 4
    speed = added / ((all_of_it - less) * 1e-6)
    return {
        "what": name_of(shape, training),
        "kernel": "rows and gradient, by slope" if training else "rows, by slope",
        "us": all_of_it,
        "value": speed / 1e9,
        "unit": "GB/s",
        "of the copy": speed / bandwidth,
    }


def profiled(shape: Shape, training: bool, clock: float, bandwidth: float) -> list[dict[str, Any]]:
    """Median time of each kernel over ten calls."""
    arguments = problem(shape, "float32")

    def loss(acts: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
        return jax_ctc.ctc(acts, labels, lengths).sum()

    f = jax.jit(jax.value_and_grad(loss) if training else loss)
    what = name_of(shape, training)
    try:
        jax.block_until_ready(f(*arguments))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            with jax.profiler.trace(folder):
                for _ in range(10):
                    out = f(*arguments)
                jax.block_until_ready(out)
            times = kernel_times(folder)
    except Exception as error:
        return [{"what": what, "kernel": f"profile: {type(error).__name__} {str(error)[:200]}"}]
    size = np.prod(shape[:3]) * 4
    compact = shape[2] > shape[3] + 1  # else the gradient is kept, and cotangents of 1 leave it
    found = []
    for kernel, all_times in sorted(times.items(), key=lambda item: -sum(item[1]))[:6]:
        us = statistics.median(all_times)
        row: dict[str, Any] = {"what": what, "kernel": kernel, "us": us, "calls": len(all_times)}
        if "lattice" in kernel:
            frames = shape[0] * (1 if training else 0.5)
            row |= {"value": us * 1e-6 * clock / frames, "unit": "cycles/frame"}
        elif kernel.startswith("rows") or (kernel.startswith("gradient") and compact):
            speed = (1 if kernel.startswith("rows") else 2) * size / (us * 1e-6)
            row |= {"value": speed / 1e9, "unit": "GB/s", "of the copy": speed / bandwidth}
        found.append(row)
    return found or [{"what": what, "kernel": "profile: no kernels in it"}]


def kernel_times(folder: str) -> dict[str, list[float]]:
    """Microseconds of every launch, by kernel, from the profiler's files in a folder."""
    times: dict[str, list[float]] = defaultdict(list)
    for file in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            for line in plane.lines if "/device:GPU" in plane.name else ():
                for event in line.events if "Stream" in line.name else ():
                    short = re.search(r"\w+_kernel(?=[<I(]|$|E)", event.name)
                    name = short.group() if short else event.name[:50]
                    times[name.split("jax_ctc")[-1]].append(event.duration_ns / 1e3)
    return times

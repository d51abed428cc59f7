# SPDX-License-Identifier: Apache-2.0
"""Timers of the sections. A timer is a function that returns microseconds."""

import functools
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Timer = Callable[[], float]
State = TypeVar("State")  # an array, or a tree of them


def median_of(timer: Timer) -> float:
    return statistics.median(timer() for _ in range(5))


def dispatched(f: Callable[..., Any], args: Any, n: int) -> Timer:
    """A call, when Python calls many times and waits once: what a program sees.

    Where the device is faster than Python, this is Python's time.
    """
    for _ in range(min(n, 20)):
        out = f(*args)
    jax.block_until_ready(out)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(n):
            out = f(*args)
        jax.block_until_ready(out)
        return 1e6 * (time.perf_counter() - start) / n

    return run


def in_a_loop(
    step: Callable[[State], State], state: State, n: int, unrolled: bool = False
) -> Timer:
    """A step, in one program that takes n of them: what the device needs, without Python.

    Each step needs the last one's result, so that XLA can neither drop nor hoist any. Unrolled,
    there is no loop but n steps in a row, which XLA makes one CUDA graph of.
    """

    def many(s: State) -> State:
        if unrolled:
            return functools.reduce(lambda s, _: step(s), range(n), s)
        return jax.lax.fori_loop(0, n, lambda _, s: step(s), s)

    f = jax.jit(many, donate_argnums=0)
    calls = 20 if unrolled else 1
    at = jax.block_until_ready(f(f(jax.tree.map(jnp.copy, state))))  # the caller's stays its own

    def run() -> float:
        nonlocal at
        start = time.perf_counter()
        for _ in range(calls):
            at = f(at)
        jax.block_until_ready(at)
        return 1e6 * (time.perf_counter() - start) / (n * calls)

    return run


def copy_bandwidth(tiny: bool) -> float:
    """Bytes per second, read plus written, for arrays of 1 GB."""
    x = jnp.zeros((1 << 16) if tiny else (1 << 28), jnp.float32)
    calls = dispatched(jax.jit(lambda x: -x), (x,), 20)
    return 2 * x.nbytes / (median_of(calls) * 1e-6)


def clock_under_load(tiny: bool) -> float:
    """Clock of the busy multiprocessors in Hz: of several GPUs, the highest. If nvidia-smi does not
    say, that of an H200."""
    x = jnp.zeros((1 << 10) if tiny else (1 << 26), jnp.float32)
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 10 if tiny else 10_000, lambda _, x: -x, x))
    jax.block_until_ready(work(x))
    busy = work(x)
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
        clock = max(map(float, said.split())) * 1e6
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        clock = 1.98e9
    jax.block_until_ready(busy)
    return clock

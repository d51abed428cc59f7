# SPDX-License-Identifier: Apache-2.0
"""The sections of gpu.py: python benchmarks/gpu_sections.py NAME RESULTS [--tiny]."""

import argparse
import functools
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc

ROOT = Path(__file__).parent.parent

# T, B, V, L: microseconds that the design predicts for float32 on an H200, loss and
# loss + gradient, of three simple kernels (v1) and of fused ones (v2).
SHAPES = {
    (32, 64, 80, 12): ((5, 7), (3, 5)),
    (400, 16, 32, 100): ((11, 21), (7, 14)),
    (400, 16, 1024, 60): ((15, 34), (8, 26)),
    (1000, 64, 5000, 100): ((318, 983), (302, 921)),
    (250, 8, 10_000, 50): ((26, 68), (21, 60)),
    (5000, 2, 64, 800): ((503, 1250), (77, 286)),
    (150, 64, 28, 40): ((6, 10), (4, 8)),
    (200, 1, 32, 30): ((6, 11), (4, 9)),
    (1600, 256, 128, 200): ((295, 1280), (91, 346)),
}
TINY = {(20, 2, 8, 5): ((1, 1), (1, 1)), (30, 3, 40, 6): ((1, 1), (1, 1))}


def problem(T: int, B: int, V: int, L: int, dtype: Any = np.float32) -> tuple[Any, ...]:
    """Random logits (T, B, V), full lengths, (B, L) labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(1, V, (B, L)).astype(np.int32)
    acts = jax.random.normal(jax.random.key(0), (T, B, V), jnp.float32).astype(dtype)
    return acts, jnp.asarray(labels), jnp.full(B, T, jnp.int32)


def median_of(run: Callable[[], float], turns: int = 5) -> tuple[float, float]:
    """Median and spread (largest less smallest) of the microseconds that `run` returns."""
    times = [run() for _ in range(turns)]
    return statistics.median(times), max(times) - min(times)


def looped(body: Callable[..., Any], state: Any, seconds: float = 0.1) -> Callable[[], float]:
    """Microseconds a step of `body`, a function of its own result, in one loop on the device.

    One program: no dispatch from Python in between, which takes longer than the small shapes do.
    """

    def many(n: int) -> Callable[..., Any]:
        return jax.jit(lambda s: jax.lax.fori_loop(0, n, lambda _, x: body(x), s))

    def timed(f: Callable[..., Any]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(f(state))
        return time.perf_counter() - start

    probe = many(5)
    timed(probe)
    n = int(min(2000, max(20, seconds / max(timed(probe) / 5, 1e-7))))
    f = many(n)
    timed(f)
    return lambda: 1e6 * timed(f) / n


def dispatched(f: Callable[..., Any], args: Any, n: int = 50) -> Callable[[], float]:
    """Microseconds a call when Python calls without waiting."""
    jax.block_until_ready(f(*args))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(n):
            out = f(*args)
        jax.block_until_ready(out)
        return 1e6 * (time.perf_counter() - start) / n

    return run


def ours_in_a_loop(shape: Any, dtype: Any, training: bool) -> Callable[[], float]:
    acts, labels, lengths = problem(*shape, dtype)
    if training:  # the gradient takes the place of acts and is the acts of the next step
        grad = jax.grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())
        return looped(grad, acts)

    def next_lengths(n: jax.Array) -> jax.Array:  # no cost is below 0: they stay what they are
        return n + (jax_ctc.ctc(acts, labels, n) < 0).astype(n.dtype)

    return looped(next_lengths, lengths)


def torch_loss(shape: Any, dtype: str, training: bool, cudnn: bool) -> Callable[[], float] | None:
    import torch

    if not torch.cuda.is_available() or (cudnn and dtype != "float32"):
        return None
    T, B, V, L = shape
    _, labels, _ = problem(*shape)
    logits = torch.randn(T, B, V, device="cuda", dtype=getattr(torch, dtype))
    logits.requires_grad_(training)
    targets = torch.tensor(np.array(labels), dtype=torch.int32 if cudnn else torch.int64)
    targets = targets.flatten() if cudnn else targets.cuda()  # cuDNN: concatenated, on the CPU
    kind = torch.int32 if cudnn else torch.int64
    lengths = torch.full((B,), T, dtype=kind), torch.full((B,), L, dtype=kind)

    def once() -> None:
        with torch.backends.cudnn.flags(enabled=cudnn):
            log_probs = logits.float().log_softmax(2)
            loss = torch.nn.functional.ctc_loss(log_probs, targets, *lengths, reduction="sum")
        if training:
            logits.grad = None
            loss.backward()

    for _ in range(3):
        once()

    def run() -> float:
        n = 10
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(n):
            once()
        end.record()
        torch.cuda.synchronize()
        return 1e3 * start.elapsed_time(end) / n

    return run


def optax_loss(shape: Any, dtype: Any, training: bool) -> Callable[[], float]:
    import optax

    acts, labels, _ = problem(*shape, dtype)
    logits = jnp.swapaxes(acts, 0, 1)
    frames = jnp.zeros(logits.shape[:2], dtype)
    padding = jnp.zeros(labels.shape, dtype)

    def loss(x: jax.Array) -> jax.Array:
        return optax.ctc_loss(x, frames, labels, padding).sum()

    return dispatched(jax.jit(jax.value_and_grad(loss) if training else loss), (logits,), 5)


# ---- the sections --------------------------------------------------------------------------------


def machine(write: Callable[..., None], tiny: bool) -> None:
    write(what="device", value=jax.devices()[0].device_kind)
    write(what="jax_ctc", value=json.dumps(jax_ctc.build_info()))
    for package in ("jax", "jaxlib", "torch", "optax", "numpy"):
        try:
            write(what=package, value=importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            write(what=package, value="not installed")
    if shutil.which("nvidia-smi"):
        query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        write(what=query, value=said.stdout.strip())
    write(what="copy, GB/s, read and written", value=copy_bandwidth(tiny) / 1e9)
    empty = dispatched(jax.jit(lambda x: x + 1), (jnp.zeros(1),), 200)
    write(what="an empty call, us", value=median_of(empty)[0])
    chain = looped(lambda x: jnp.sin(x) + 1, jnp.zeros(1))
    write(what="a kernel in a loop, us", value=median_of(chain)[0])


def copy_bandwidth(tiny: bool) -> float:
    """Bytes a second, read and written."""
    x = jnp.zeros(((1 << 16) if tiny else (1 << 28),), jnp.float32)
    step = looped(lambda x: -x, x)
    return 2 * x.size * 4 / (median_of(step)[0] * 1e-6)


def tests(write: Callable[..., None], tiny: bool) -> None:
    for where in ("tests/gpu", "tests"):
        ordinary = where == "tests"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", where]
        if ordinary:
            command += ["-m", "not slow", "--ignore=tests/gpu", "--maxfail=30", "-k", _GPU_SUITE]
        start = time.monotonic()
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = said.stdout.strip().splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        write(
            suite=where,
            result=lines[-1] if lines else said.stderr[-300:],
            seconds=round(time.monotonic() - start),
            failed="; ".join(failed)[:1500],
        )


# Of the ordinary suite what says something of a device's kernels.
_GPU_SUITE = "value or gradient or edges or dtypes or known or determinism or transforms or vmap"


def sanitizer(write: Callable[..., None], tiny: bool) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        write(what="compute-sanitizer", value="not found")
        return
    program = (
        "import jax, numpy as np, jax_ctc\n"
        "for T, B, V, L in ((9, 2, 5, 3), (40, 2, 60, 33), (20, 2, 700, 4), (90, 1, 9, 40)):\n"
        "    x = np.random.default_rng(0).normal(size=(T, B, V)).astype('f')\n"
        "    y = np.random.default_rng(1).integers(1, V, (B, L)).astype('i')\n"
        "    f = lambda x: jax_ctc.ctc(x, y, np.full(B, T, 'i')).sum()\n"
        "    print(jax.jit(jax.value_and_grad(f))(x)[0])\n"
    )
    for check in ("memcheck", "racecheck", "synccheck", "initcheck"):
        said = subprocess.run(
            [tool, "--tool", check, "--error-exitcode", "9", "--kernel-name-exclude",
             "kernel_substring=cutlass", sys.executable, "-c", program],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        summary = [line for line in said.stdout.splitlines() if "SUMMARY" in line]
        write(what=check, value=(summary or [said.stderr[-300:]])[-1], exit=said.returncode)


def cycles(write: Callable[..., None], tiny: bool) -> None:
    """Cycles a frame of the lattice, from the slope between T and 3 T, at the highest clock."""
    clock = 1.98e9
    for T, B, V, L in [(20, 1, 8, 5)] if tiny else [(200, 1, 32, 30), (400, 16, 32, 100)]:
        for training in (False, True):
            short, long = (
                median_of(ours_in_a_loop((n, B, V, L), jnp.float32, training))[0]
                for n in (T, 3 * T)
            )
            frames = 2 * T * (1 if training else 0.5)  # the loss alone meets in the middle
            write(
                shape=f"{T} {B} {V} {L}",
                what="gradient" if training else "loss",
                us=short,
                us_for_3T=long,
                cycles_a_frame=(long - short) * 1e-6 * clock / frames,
            )


def speed(write: Callable[..., None], tiny: bool) -> None:
    bandwidth = copy_bandwidth(tiny)
    for shape, (v1, v2) in (TINY if tiny else SHAPES).items():
        T, B, V, L = shape
        for dtype in ("float32", "bfloat16"):
            for training in (False, True):
                size = T * B * V * (4 if dtype == "float32" else 2)
                row: dict[str, Any] = {
                    "shape": f"{T} {B} {V} {L}",
                    "dtype": dtype,
                    "what": "loss+grad" if training else "loss",
                }
                ours, spread = median_of(ours_in_a_loop(shape, dtype, training))
                row |= {"ours_us": ours, "spread_us": spread}
                peers: dict[str, Any] = {
                    "torch": functools.partial(torch_loss, cudnn=False),
                    "cudnn": functools.partial(torch_loss, cudnn=True),
                }
                if size < 1e8:
                    peers["optax"] = optax_loss
                for name, make in peers.items():
                    try:
                        run = make(shape, dtype, training)
                        row[f"{name}_us"] = median_of(run, 3)[0] if run else "-"
                    except Exception as error:
                        row[f"{name}_us"] = type(error).__name__
                others = [v for k, v in row.items() if k[:5] in ("torch", "cudnn", "optax")]
                others = [v for v in others if isinstance(v, float)]
                row["times_faster"] = min(others) / ours if others else "-"
                row["memory_floor_us"] = (3 if training else 1) * size / bandwidth * 1e6
                row["predicted_v1_us"] = float(v1[training]) if dtype == "float32" else "-"
                row["predicted_v2_us"] = float(v2[training]) if dtype == "float32" else "-"
                write(**row)


def accuracy(write: Callable[..., None], tiny: bool) -> None:
    for T in (50,) if tiny else (100, 1000, 2000, 10_000):
        acts, labels, lengths = problem(T, 4, 40, min(30, T // 3))

        def both(x: jax.Array, labels: Any = labels, lengths: Any = lengths) -> Any:
            return jax.value_and_grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum())(x)

        cost, gradient = jax.jit(both)(acts)
        with jax.enable_x64(True):
            exact, slope = jax.jit(both)(jnp.asarray(np.asarray(acts), jnp.float64))
            error = float(jnp.abs(slope - jnp.asarray(np.asarray(gradient), jnp.float64)).max())
        write(T=T, gradient_error=error, relative_cost_error=abs(float(cost) / float(exact) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=sorted(_SECTIONS))
    parser.add_argument("results")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    with open(options.results, "a") as results:

        def write(**row: Any) -> None:
            results.write(json.dumps({"section": options.section, **row}) + "\n")
            results.flush()
            print(row, flush=True)

        _SECTIONS[options.section](write, options.tiny)


_SECTIONS = {f.__name__: f for f in (machine, tests, sanitizer, cycles, speed, accuracy)}

if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""jax_ctc beside PyTorch's own kernels, cuDNN's and optax, and beside what the device allows.

The columns are medians in microseconds per batch. All programs of a row take turns.
  loop      jax_ctc in one program of many steps, so without Python. A step of the loss has one more
            tiny kernel, which makes it depend on the last ("a step of an empty loop" in `machine`).
  spread    largest minus smallest time of loop
  graph     16 steps in a row, which XLA puts into one CUDA graph; small shapes only
  cold      a step of the loop after 256 MB were written, which empties the L2 cache
  call      jax_ctc called from Python without waiting; Python's time if that is longer
  torch, cudnn, optax  their calls; PyTorch by CUDA events, with Python and log_softmax
  floor     the larger of memory (acts are read; for the gradient read twice and written once, at
            the bandwidth measured here) and chain (46 cycles per frame; half the frames for the
            loss)
  v1        the prediction of the design for the first version, float32 on an H200
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc

from .timing import Timer, copy_bandwidth, dispatched, in_a_loop

# (T, B, V, L): microseconds predicted for the loss, and for loss and gradient.
PREDICTED = {
    (200, 1, 32, 30): (6, 11),
    (32, 64, 80, 12): (5, 7),
    (150, 64, 28, 40): (6, 10),
    (400, 16, 32, 100): (11, 21),
    (400, 16, 1024, 60): (15, 34),
    (250, 8, 10_000, 50): (26, 68),
    (5000, 2, 64, 800): (503, 1250),
    (1600, 256, 128, 200): (295, 1280),
    (1000, 64, 5000, 100): (318, 983),
}
TINY = {(20, 2, 8, 5): (5, 5), (30, 3, 40, 6): (5, 5)}
CHAIN_CYCLES, CLOCK = 46, 1.98e9
TURNS = 5
Shape = tuple[int, int, int, int]
Batch = tuple[jax.Array, jax.Array, jax.Array]  # acts, labels, lengths
Step = Callable[[jax.Array], jax.Array]


def problem(shape: Shape, dtype: str) -> Batch:
    """Random logits (T, B, V), (B, L) labels, full lengths, on the device."""
    T, B, V, L = shape
    acts = jax.random.normal(jax.random.key(0), (T, B, V), jnp.float32).astype(dtype)
    labels = np.random.default_rng(0).integers(1, V, (B, L)).astype(np.int32)
    return acts, jnp.asarray(labels), jnp.full(B, T, jnp.int32)


def steps_of(arguments: Batch, training: bool) -> tuple[Step, jax.Array]:
    """A step that depends on the result of the step before, and the operand of the first step."""
    acts, labels, lengths = arguments
    if training:  # the gradient is the next step's acts
        return jax.grad(lambda x: jax_ctc.ctc(x, labels, lengths).sum()), acts

    def next_lengths(n: jax.Array) -> jax.Array:  # no cost is below 0, so lengths do not change
        return n + (jax_ctc.ctc(acts, labels, n) < 0).astype(n.dtype)

    return next_lengths, lengths


def ours(shape: Shape, dtype: str, training: bool, guess: float) -> dict[str, Callable[[], Timer]]:
    """For each column a function that makes its timer. `guess`: microseconds per step."""
    arguments = problem(shape, dtype)
    step, first = steps_of(arguments, training)
    n = int(np.clip(20_000 / guess, 10, 1000))

    def loss(acts: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
        return jax_ctc.ctc(acts, labels, lengths).sum()

    f = jax.jit(jax.value_and_grad(loss) if training else loss)
    made = {
        "loop": lambda: in_a_loop(step, first, n),
        "call": lambda: dispatched(f, arguments, min(n, 200)),
    }
    if dtype == "float32" and arguments[0].nbytes < 5e6:
        made["graph"] = lambda: in_a_loop(step, first, 16, unrolled=True)
    if dtype == "float32" and arguments[0].nbytes < 6e7:
        made["cold"] = lambda: after_a_flush(step, first, min(n, 200))
    return made


def after_a_flush(step: Step, first: jax.Array, n: int) -> Timer:
    buffer = jnp.zeros(1 << (26 if jax.default_backend() == "gpu" else 10), jnp.float32)
    alone = in_a_loop(lambda x: x + 1, buffer, n)
    both = in_a_loop(lambda state: (step(state[0]), state[1] + 1), (first, buffer), n)
    return lambda: both() - alone()


def torch_timer(shape: Shape, dtype: str, training: bool, cudnn: bool) -> Timer:
    import torch

    T, B, V, L = shape
    logits = torch.randn(T, B, V, device="cuda", dtype=getattr(torch, dtype))
    logits.requires_grad_(training)
    labels = torch.tensor(np.asarray(problem((1, B, V, L), "float32")[1]))
    # cuDNN takes concatenated labels on the CPU. PyTorch's own kernels take them on the device.
    targets = labels.flatten() if cudnn else labels.long().cuda()
    lengths = [T] * B, [L] * B

    def once() -> None:
        with torch.backends.cudnn.flags(enabled=cudnn), torch.set_grad_enabled(training):
            log_probs = logits.log_softmax(2, dtype=torch.float32)
            loss = torch.nn.functional.ctc_loss(log_probs, targets, *lengths, reduction="sum")
        if training:
            logits.grad = None
            loss.backward()

    if cudnn:  # if cuDNN does not apply, PyTorch silently uses its own kernels
        log_probs = logits.detach().log_softmax(2, dtype=torch.float32)
        if not torch._use_cudnn_ctc_loss(log_probs, targets, *lengths, 0):
            raise NotImplementedError("not by cuDNN")
        del log_probs

    def run(n: int | None = None) -> float:
        n = n or most
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(n):
            once()
        end.record()
        torch.cuda.synchronize()
        return 1e3 * start.elapsed_time(end) / n

    run(3)
    most = int(np.clip(30_000 / run(2), 3, 100))
    return run


def optax_timer(shape: Shape, dtype: str, training: bool) -> Timer:
    import optax

    acts, labels, _ = problem(shape, dtype)
    logits = jnp.swapaxes(acts, 0, 1)
    no_padding = jnp.zeros(logits.shape[:2], dtype), jnp.zeros(labels.shape, dtype)

    def loss(x: jax.Array) -> jax.Array:
        return optax.ctc_loss(x, no_padding[0], labels, no_padding[1]).sum()

    f = jax.jit(jax.value_and_grad(loss) if training else loss)
    return dispatched(f, (logits,), 3)


def torch_works_beside_jax() -> bool:
    """Tries it in a process of its own, because two sets of CUDA libraries may end the process."""
    program = (
        "import jax, torch\njax.numpy.ones(3).sum().block_until_ready()\n"
        "assert torch.cuda.is_available()\ntorch.ones(3, device='cuda').log_softmax(0).sum().item()"
    )
    try:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, timeout=60, capture_output=True, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def speed(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    torch_works = torch_works_beside_jax()
    bandwidth = copy_bandwidth(tiny)
    for dtype in ("float32", "bfloat16"):
        for shape, guesses in (TINY if tiny else PREDICTED).items():
            for training in (False, True):
                row = {
                    "shape": " ".join(map(str, shape)),
                    "dtype": dtype,
                    "what": "loss+grad" if training else "loss",
                }
                if time.monotonic() > deadline - 5:
                    return write(**row, notes="no time left for this and what follows")
                makers = ours(shape, dtype, training, guesses[training])
                if torch_works:
                    makers["torch"] = lambda a=(shape, dtype, training): torch_timer(*a, False)
                    if dtype == "float32":
                        makers["cudnn"] = lambda a=(shape, dtype, training): torch_timer(*a, True)
                if dtype == "float32" and shape[0] <= 400 and np.prod(shape[:3]) < 1e7:
                    makers["optax"] = lambda a=(shape, dtype, training): optax_timer(*a)
                times, notes = take_turns(makers, deadline)
                if not torch_works:
                    notes.append("no torch beside jax with a GPU")
                size = float(np.prod(shape[:3]) * np.dtype(dtype).itemsize)
                predicted = float(guesses[training]) if dtype == "float32" else None
                row |= compared(times, shape, size, training, bandwidth, predicted)
                write(**row, notes="; ".join(notes))


def take_turns(
    makers: dict[str, Callable[[], Timer]], deadline: float
) -> tuple[dict[str, list[float]], list[str]]:
    """Times by column, and errors by column. An error in one column does not stop the others."""
    timers: dict[str, Timer] = {}
    times: dict[str, list[float]] = {}
    notes: list[str] = []

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            notes.append(f"{name}: {type(error).__name__} {str(error).strip()[:80]}")
            return None

    for name, make in makers.items():
        if timer := attempt(name, make):
            timers[name] = timer
    for turn in range(TURNS):
        if turn > 0 and time.monotonic() > deadline:
            break
        for name, timer in list(timers.items()):
            taken = attempt(name, timer)
            if taken is None:
                del timers[name]
            else:
                times.setdefault(name, []).append(taken)
    return times, notes


def compared(
    times: dict[str, list[float]],
    shape: Shape,
    size: float,
    training: bool,
    bandwidth: float,
    predicted: float | None,
) -> dict[str, Any]:
    """Medians and their ratios."""
    row: dict[str, Any] = {}
    for name in ("loop", "graph", "cold", "call", "torch", "cudnn", "optax"):
        row[name] = statistics.median(times[name]) if name in times else None
        if name == "loop":
            row["spread"] = max(times[name]) - min(times[name]) if name in times else None
    memory = (3 if training else 1) * size / bandwidth * 1e6
    chain = CHAIN_CYCLES * shape[0] * (1 if training else 0.5) / CLOCK * 1e6
    row |= {"memory": memory, "chain": chain, "v1": predicted}
    device = min((row[name] for name in ("loop", "graph") if row[name]), default=None)
    peers = [row[name] for name in ("torch", "cudnn", "optax") if row[name]]
    if device:
        row["x floor"] = device / max(memory, chain)
        row["x v1"] = device / predicted if predicted else None
    if peers:
        row["peer / loop"] = min(peers) / row["loop"] if row["loop"] else None
        row["peer / call"] = min(peers) / row["call"] if row["call"] else None
    return row

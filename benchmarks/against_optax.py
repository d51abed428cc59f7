# SPDX-License-Identifier: Apache-2.0
"""jax_ctc beside optax.ctc_loss: time as a ratio, and the error of the gradient against float64.

    python benchmarks/against_optax.py            # needs optax and tqdm

Both run through jax.jit on the same inputs, in one process, taking turns; a time is the best of all
turns. The truth is jax_ctc in float64, which the tests hold against an oracle of their own.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jax_ctc

SHAPES = {  # T, B, V, L
    "handwriting": (150, 64, 28, 40),
    "speech, letters": (400, 16, 32, 100),
    "speech, word pieces": (400, 16, 1024, 60),
    "characters": (250, 8, 10_000, 50),
    "long": (2000, 2, 64, 200),
}


def problem(T: int, B: int, V: int, L: int) -> tuple[Any, ...]:
    """Random logits (T, B, V), ragged lengths, (B, L) labels with -1 as padding."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(T // 2, T + 1, B).astype(np.int32)
    labels = rng.integers(1, V, (B, L)).astype(np.int32)
    counts = rng.integers(L // 2, L + 1, B)
    labels[np.arange(L) >= counts[:, None]] = -1
    return rng.normal(size=(T, B, V)).astype(np.float32), labels, lengths


def ours(acts: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
    return jax_ctc.ctc(acts, labels, lengths).sum()


def optax_loss(acts: jax.Array, labels: jax.Array, lengths: jax.Array) -> jax.Array:
    frames = jnp.arange(acts.shape[0]) >= lengths[:, None]
    logits = jnp.swapaxes(acts, 0, 1)
    paddings = frames.astype(acts.dtype), (labels < 0).astype(acts.dtype)
    return optax.ctc_loss(logits, paddings[0], jnp.maximum(labels, 0), paddings[1]).sum()


def best_times(functions: list[Callable[..., Any]], args: Any, turns: int) -> list[float]:
    """Best milliseconds of each, taking turns."""
    best = [float("inf")] * len(functions)
    for turn in range(turns + 1):
        for k, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            if turn > 0:  # the first compiles
                best[k] = min(best[k], 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    turns = parser.parse_args().turns
    rows = []
    for name, shape in tqdm(SHAPES.items()):
        args = problem(*shape)
        placed = jax.tree.map(jnp.asarray, args)
        losses = best_times([jax.jit(ours), jax.jit(optax_loss)], placed, turns)
        gradients = [jax.jit(jax.value_and_grad(f)) for f in (ours, optax_loss)]
        both = best_times(gradients, placed, turns)
        with jax.enable_x64(True):
            truth = jax.jit(jax.grad(ours))(args[0].astype(np.float64), *args[1:])
        errors = [
            float(np.abs(np.asarray(g(*placed)[1], np.float64) - truth).max()) for g in gradients
        ]
        rows.append((name, shape, losses, both, errors))
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax_ctc.build_info()['cpu']}, ms")
    print("| (T, B, V, L) | loss | optax | | loss + gradient | optax | | gradient error | optax |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, shape, (a, b), (c, d), (e, f) in rows:
        times = f"{a:.2f} | {b:.2f} | {b / a:.0f}x | {c:.2f} | {d:.2f} | {d / c:.0f}x"
        print(f"| {name} {shape} | {times} | {e:.0e} | {f:.0e} |")


if __name__ == "__main__":
    main()

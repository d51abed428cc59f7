# SPDX-License-Identifier: Apache-2.0
"""`ctc_linear` beside an output layer whose logits are stored, followed by `ctc` or by optax.

    python -m benchmarks.cpu.output_layer            # some five minutes
    python -m benchmarks.cpu.output_layer --tiles    # the size of a tile instead
    python -m benchmarks.cpu.output_layer --quick    # small layers, to see that it runs

Times are medians of rounds in which the programs take turns: loss and gradients of hidden, kernel
and bias. Memory is what the compiled program needs beside its arguments and results, and by how
much the resident size of a process grows while it runs the program once. The results are a table
and pictures in benchmarks/results/.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from .. import ROOT, import_what_is_installed, need

import_what_is_installed()
need("optax", "rich", "matplotlib")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import jax_ctc  # noqa: E402

from .. import pictures  # noqa: E402
from .compare import file_name, machine  # noqa: E402
from .resident import growth  # noqa: E402
from .transcript import Transcript  # noqa: E402
from .turns import taking_turns  # noqa: E402

Shape = tuple[int, int, int, int, int]  # T, B, V, L, D
Loss = Callable[..., jax.Array]  # hidden, kernel, bias, labels, lengths
SHAPES: list[Shape] = [
    (250, 8, 10_000, 50, 256),
    (150, 4, 50_000, 30, 256),
    (400, 16, 1024, 60, 512),
]
LARGE: Shape = (375, 32, 50_000, 40, 512)
CLASSES = (1000, 3000, 10_000, 30_000, 100_000, 200_000)
TILES = (1, 2, 4, 8, 16, 32, 64)  # MiB


def logits(hidden: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jnp.einsum("tbd,dv->tbv", hidden, kernel) + bias


def stored(hidden, kernel, bias, labels, lengths):
    return jax_ctc.ctc(logits(hidden, kernel, bias), labels, lengths).sum()


def of_optax(hidden, kernel, bias, labels, lengths):
    frames = (jnp.arange(hidden.shape[0]) >= lengths[:, None]).astype(hidden.dtype)
    x = logits(jnp.swapaxes(hidden, 0, 1), kernel, bias)  # (B, T, V), as optax takes it
    return optax.ctc_loss(x, frames, labels, jnp.zeros(labels.shape, hidden.dtype)).sum()


def linear(hidden, kernel, bias, labels, lengths, **options):
    return jax_ctc.ctc_linear(hidden, kernel, labels, lengths, bias=bias, **options).sum()


PEERS: dict[str, Loss] = {
    "ctc_linear": linear,
    "layer + ctc": stored,
    "layer + optax": of_optax,
}


def problem(shape: Shape, full: bool) -> list[jax.Array]:
    T, B, V, L, D = shape
    rng = np.random.default_rng(0)
    lengths = np.full(B, T) if full else rng.integers(T // 2, T + 1, B)
    return [
        jnp.asarray(rng.normal(size=(T, B, D)), jnp.float32),
        jnp.asarray(rng.normal(size=(D, V)) / np.sqrt(D), jnp.float32),
        jnp.asarray(rng.normal(size=V), jnp.float32),
        jnp.asarray(rng.integers(1, V, (B, L)), jnp.int32),
        jnp.asarray(lengths, jnp.int32),
    ]


def step(loss: Loss, arguments: list[jax.Array]) -> jax.stages.Compiled:
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arguments).compile()


def temporaries(program: jax.stages.Compiled) -> float:
    """In MB."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes / 1e6 if memory else float("nan")


def times(shapes: list[Shape], peers: dict[str, Loss], say: Callable[[str], None]) -> None:
    say("| T, B, V, L, D | frames in use | " + " | ".join(f"{p}, ms" for p in peers) + " |")
    say("|---|---|" + "---|" * len(peers))
    for shape in shapes:
        for full in (True, False):
            arguments = problem(shape, full)
            programs = {name: step(loss, arguments) for name, loss in peers.items()}
            found = taking_turns({k: partial(f, *arguments) for k, f in programs.items()})
            ours = found[next(iter(found))]
            cells = [f"{ms:.1f} ({ms / ours:.2f}x)" for ms in found.values()]
            frames = "all" if full else f"{float(arguments[4].mean()) / shape[0]:.0%}"
            say(f"| {', '.join(map(str, shape))} | {frames} | {' | '.join(cells)} |")


def memory(classes: tuple[int, ...], say: Callable[[str], None]) -> dict[str, list[float]]:
    T, B, _, L, D = LARGE
    say("| V | logits, MB | " + " | ".join(f"{p}, MB" for p in PEERS) + " |")
    say("|---|---|" + "---|" * len(PEERS))
    found: dict[str, list[float]] = {name: [] for name in PEERS}
    for V in classes:
        shapes = (T, B, D), (D, V), (V,)
        types = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
        types += [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((B, L), (B,))]
        for name, loss in PEERS.items():
            program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*types).compile()
            found[name].append(temporaries(program))
        cells = [f"{values[-1]:.1f}" for values in found.values()]
        say(f"| {V:,} | {4e-6 * T * B * V:.0f} | {' | '.join(cells)} |")
    return found


def growth_of(loss: Loss) -> float:
    """Returns by how many MB the resident size grows at most in one run of LARGE (Linux)."""
    T, B, V, L, D = LARGE
    keys = jax.random.split(jax.random.key(0), 3)
    arguments = [
        jax.random.normal(key, shape)
        for key, shape in zip(keys, ((T, B, D), (D, V), (V,)), strict=True)
    ]
    arguments += [jnp.ones((B, L), jnp.int32), jnp.full(B, T, jnp.int32)]
    program = step(loss, jax.block_until_ready(arguments))
    return growth(lambda: program(*arguments))


def resident(name: str, say: Callable[[str], None]) -> float:
    """Returns `growth_of` in a process of its own, or NaN where that ends with an error."""
    command = [sys.executable, "-m", "benchmarks.cpu.output_layer", "--run", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        say(f"\n{name}: one run ends with an error ({why[0]})")
        return float("nan")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu.output_layer", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--tiles", action="store_true", help="compare sizes of a tile")
    parser.add_argument("--quick", action="store_true", help="small layers; nothing is written")
    parser.add_argument("--run", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(growth_of(PEERS[options.run]))
        return
    transcript = Transcript()
    say = transcript.say
    if options.tiles:
        sizes = {f"{m} MiB": partial(linear, tile_bytes=m << 20) for m in TILES}
        times(SHAPES, sizes, say)
        return
    where = machine([])
    say(f"{where['cpu']}, {where['threads']} threads; " + str(where["versions"]))
    say("\nLoss and gradients of hidden, kernel and bias; in brackets the ratio to ctc_linear.\n")
    times([(20, 2, 50, 5, 8)] if options.quick else SHAPES, PEERS, say)
    T, B, V, L, D = LARGE
    say(f"\nMemory beside arguments and gradients at T, B, L, D = {T}, {B}, {L}, {D}.\n")
    classes = CLASSES[:2] if options.quick else CLASSES
    found = memory(classes, say)
    if options.quick:
        return
    ours, theirs = (resident(name, say) for name in ("ctc_linear", "layer + ctc"))
    gradients = 4e-6 * (T * B * D + D * V + V)
    say(
        f"\nOne run at V = {V:,}: the resident size grows by {ours:,.0f} MB with ctc_linear, by "
        f"{theirs:,.0f} MB with layer + ctc. The gradients are {gradients:,.0f} MB of both."
    )
    results = ROOT / "benchmarks" / "results"
    name = f"{file_name(where)}-output-layer"
    transcript.write(name)
    stored_memory = {"shape": LARGE, "V": classes, "MB": found}
    (results / f"{name}.json").write_text(json.dumps(stored_memory, indent=1) + "\n")
    pictures.memory(stored_memory, results / name)


if __name__ == "__main__":
    main()

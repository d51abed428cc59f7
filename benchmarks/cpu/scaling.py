# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of second order, many hypotheses and many devices, for docs/scaling.md.

    python -m benchmarks.cpu.scaling

Times are medians of rounds in which the programs of a table take turns. The devices are virtual
devices of this CPU. So the number of bytes communicated is read from the compiled program, and no
time is measured for them.
"""

import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import import_what_is_installed

import_what_is_installed()

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import jax_ctc  # noqa: E402

from .problems import SHAPES, problem  # noqa: E402

Function = Callable[[jax.Array], jax.Array]
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
SECONDS = 2.0  # per row of a table
KINDS = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"


def taking_turns(programs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each program."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(program())
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def second_order(console: Console) -> None:
    table = Table("(T, B, V, L)", "loss + gradient, ms", "and a product, ms", "ratio", title="H v")
    for shape in SHAPES.values():
        acts, *rest, _ = map(jnp.asarray, problem(shape))
        direction = jax.random.normal(jax.random.key(0), acts.shape)

        def loss(acts: jax.Array, rest: list[jax.Array] = rest) -> jax.Array:
            return jax_ctc.ctc(acts, *rest).sum()

        first = jax.jit(jax.value_and_grad(loss))
        second = jax.jit(lambda x, u, f=loss: jax.jvp(jax.grad(f), (x,), (u,)))
        times = taking_turns({"1": partial(first, acts), "2": partial(second, acts, direction)})
        one, two = times.values()
        table.add_row(str(shape), f"{one:.3f}", f"{two:.3f}", f"{two / one:.2f}")
    console.print(table)


def gradient_of_sum(f: Function) -> Function:
    return jax.grad(lambda acts: f(acts).sum())


def hypotheses(console: Console) -> None:
    table = Table(
        "(T, B, V, L)", "K", "shared, ms", "copied, ms", "ratio", "temporaries, MB",
        title="K hypotheses of an utterance: costs, and the gradient of their sum",
    )  # fmt: skip
    for T, B, V, L, K in [(200, 8, 5000, 30, 10), (400, 8, 1024, 60, 10), (400, 8, 200, 60, 10)]:
        acts, _, lengths, _ = problem((T, B, V, L))
        labels = np.random.default_rng(0).integers(1, V, (K, B, L), dtype=np.int32)
        acts, labels, lengths = map(jnp.asarray, (acts, labels, lengths))
        each = jax.vmap(jax_ctc.ctc, (None, 0, None))
        copies = jax.vmap(jax_ctc.ctc, (0, 0, None))

        def shared(
            acts: jax.Array, labels: jax.Array = labels, lengths: jax.Array = lengths,
            f: Loss = each,
        ) -> jax.Array:  # fmt: skip
            return f(acts, labels, lengths)

        def copied(
            acts: jax.Array, labels: jax.Array = labels, lengths: jax.Array = lengths,
            f: Loss = copies, K: int = K,
        ) -> jax.Array:  # fmt: skip
            return f(jnp.broadcast_to(acts, (K, *acts.shape)), labels, lengths)

        for wrap in (lambda f: f, gradient_of_sum):
            programs = [jax.jit(wrap(f)) for f in (shared, copied)]
            times = taking_turns({str(i): partial(f, acts) for i, f in enumerate(programs)})
            temporary = [
                f.lower(acts).compile().memory_analysis().temp_size_in_bytes / 1e6 for f in programs
            ]
            a, b = times.values()
            table.add_row(
                str((T, B, V, L)), str(K), f"{a:.2f}", f"{b:.2f}", f"{b / a:.1f}",
                f"{temporary[0]:.1f} / {temporary[1]:.1f}",
            )  # fmt: skip
    console.print(table)


def communicated(compiled: jax.stages.Compiled) -> str:
    """Bytes communicated per device, by kind of collective."""
    found = re.findall(rf"= \(?([^=]*?) ({KINDS})(?:-start)?\(", compiled.as_text() or "")
    parts = []
    for shapes, kind in found:
        for shape in re.findall(r"f32\[([\d,]*)\]", shapes):
            count = int(np.prod([int(n) for n in shape.split(",") if n], dtype=int))
            parts.append(f"{kind} {4 * count:,}")
    return "; ".join(sorted(parts)) or "nothing"


def devices(console: Console) -> None:
    T, B, L = 200, 16, 40
    table = Table(
        "V", "mesh", "acts over", "bytes per device of loss + gradient", title="8 devices"
    )
    for V in (1024, 16384):
        acts, labels, lengths, _ = problem((T, B, V, L))
        for data, model in [(8, 1), (2, 4), (1, 8)]:
            mesh = Mesh(np.array(jax.devices()).reshape(data, model), ("data", "model"))
            spec = P(None, "data", "model" if model > 1 else None)
            put = [
                jax.device_put(x, NamedSharding(mesh, s))
                for x, s in zip((acts, labels, lengths), (spec, P("data"), P("data")), strict=True)
            ]
            axis = {"vocab_axis": "model"} if model > 1 else {}
            loss = jax.shard_map(
                partial(jax_ctc.ctc, **axis), mesh=mesh, in_specs=(spec, P("data"), P("data")),
                out_specs=P("data"),
            )  # fmt: skip
            step = jax.jit(jax.value_and_grad(lambda acts, *rest, f=loss: f(acts, *rest).mean()))
            compiled = step.lower(*put).compile()
            table.add_row(f"{V:,}", f"{data} x {model}", str(spec), communicated(compiled))
    console.print(table)


def main() -> None:
    console = Console(width=150)
    info = jax_ctc.build_info()
    console.print(f"jax {info['jax']}, kernels {info['cpu']}")
    second_order(console)
    hypotheses(console)
    devices(console)


if __name__ == "__main__":
    main()

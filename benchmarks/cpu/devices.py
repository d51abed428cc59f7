# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes that devices exchange for loss and gradient, for docs/scaling.md.

    python -m benchmarks.cpu.devices

The devices are eight virtual devices of this CPU. So the bytes are read from the compiled program,
and no time is measured. Programs that measure times have one device, because XLA's thread pool is
another one with eight.
"""

import re
from functools import partial

from .. import import_what_is_installed, need, no_options

import_what_is_installed()
need("rich")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import jax_ctc  # noqa: E402

from .problems import problem  # noqa: E402

KINDS = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"


def communicated(compiled: jax.stages.Compiled) -> str:
    """Bytes communicated per device, by kind of collective."""
    found = re.findall(rf"= \(?([^=]*?) ({KINDS})(?:-start)?\(", compiled.as_text() or "")
    parts = []
    for shapes, kind in found:
        for shape in re.findall(r"f32\[([\d,]*)\]", shapes):
            count = int(np.prod([int(n) for n in shape.split(",") if n], dtype=int))
            parts.append(f"{kind} {4 * count:,}")
    return "; ".join(sorted(parts)) or "nothing"


def table_of_bytes() -> Table:
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
    return table


if __name__ == "__main__":
    no_options("cpu.devices", __doc__)
    Console(width=150).print(table_of_bytes())

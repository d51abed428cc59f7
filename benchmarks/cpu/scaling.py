# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of second order and of many hypotheses, for docs/scaling.md.

    python -m benchmarks.cpu.scaling

Times are medians of rounds in which the programs of a table take turns.
"""

from collections.abc import Callable
from functools import partial

from .. import import_what_is_installed, need, no_options

import_what_is_installed()
need("rich")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import jax_ctc  # noqa: E402

from .problems import SHAPES, problem  # noqa: E402
from .turns import taking_turns  # noqa: E402

Function = Callable[[jax.Array], jax.Array]
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


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


def main() -> None:
    console = Console(width=150)
    info = jax_ctc.build_info()
    console.print(f"jax {info['jax']}, kernels {info['cpu']}")
    second_order(console)
    hypotheses(console)


if __name__ == "__main__":
    no_options("cpu.scaling", __doc__)
    main()

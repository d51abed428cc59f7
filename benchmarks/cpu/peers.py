# SPDX-License-Identifier: Apache-2.0
"""Each peer as a function of no arguments that computes one problem and waits for the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .problems import Batch

if TYPE_CHECKING:  # a process of PyTorch runs without JAX
    import jax

    Loss = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


class Prepared:
    """A problem compiled by a peer: its call, its compile time and its temporary memory."""

    def __init__(
        self, call: Callable[[], Any], compile_seconds: float | None, temporary: int | None
    ) -> None:
        self.call = call
        self.compile_seconds = compile_seconds
        self.temporary_bytes = temporary  # beside arguments and results
        self.batch_major = False  # the layout of its acts and gradient: (B, T, V), else (T, B, V)


def through_jax(loss: Loss, training: bool, arguments: Batch) -> Prepared:
    """`loss(acts, labels, lengths, label_lengths)`: the sum of costs."""
    import jax

    arguments = jax.device_put(arguments)
    start = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(loss) if training else loss).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    call = lambda: jax.block_until_ready(compiled(*arguments))  # noqa: E731
    return Prepared(call, seconds, memory.temp_size_in_bytes if memory else None)


def jax_ctc_(training: bool, arguments: Batch) -> Prepared:
    import jax_ctc

    return through_jax(
        lambda acts, labels, lengths, counts: jax_ctc.ctc(acts, labels, lengths).sum(),
        training,
        arguments,
    )


def optax_(training: bool, arguments: Batch) -> Prepared:
    """In its own layout."""
    import jax.numpy as jnp
    import optax

    def loss(
        acts: jax.Array, labels: jax.Array, lengths: jax.Array, counts: jax.Array
    ) -> jax.Array:
        frames = (jnp.arange(acts.shape[1]) >= lengths[:, None]).astype(acts.dtype)
        padding = (labels < 0).astype(acts.dtype)
        return optax.ctc_loss(acts, frames, jnp.maximum(labels, 0), padding).sum()

    acts, *others = arguments
    prepared = through_jax(loss, training, (acts.swapaxes(0, 1).copy(), *others))
    prepared.batch_major = True
    return prepared


def scan_(training: bool, arguments: Batch) -> Prepared:
    """A plain implementation: log space, 2 L + 1 states, a gather of the labels, JAX's gradient."""
    import jax
    import jax.numpy as jnp

    low = -1e30

    def loss(
        acts: jax.Array, labels: jax.Array, lengths: jax.Array, counts: jax.Array
    ) -> jax.Array:
        T, B, _ = acts.shape
        states = jnp.zeros((B, 2 * labels.shape[1] + 1), jnp.int32)
        states = states.at[:, 1::2].set(jnp.maximum(labels, 0))
        S = states.shape[1]
        differs = jnp.pad(states[:, 2:] != states[:, :-2], ((0, 0), (2, 0)))
        skip = differs & (jnp.arange(S) % 2 == 1)
        picked = jnp.take_along_axis(acts, jnp.broadcast_to(states, (T, B, S)), 2)
        emissions = picked - jax.nn.logsumexp(acts, 2, keepdims=True)

        def left(alpha: jax.Array, by: int) -> jax.Array:
            return jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=low)[:, :S]

        def frame(alpha: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            emission, t = inputs
            two = jnp.logaddexp(alpha, left(alpha, 1))
            three = jnp.where(skip, jnp.logaddexp(two, left(alpha, 2)), two)
            return jnp.where((t < lengths)[:, None], three + emission, alpha), None

        start = jnp.where(jnp.arange(S) < 2, emissions[0], low)
        alpha, _ = jax.lax.scan(frame, start, (emissions[1:], jnp.arange(1, T)))
        last = jnp.take_along_axis(alpha, 2 * counts[:, None], 1)[:, 0]
        before = jnp.take_along_axis(alpha, jnp.maximum(2 * counts - 1, 0)[:, None], 1)[:, 0]
        return -jnp.where(counts > 0, jnp.logaddexp(last, before), last).sum()

    return through_jax(loss, training, arguments)


def torch_(training: bool, arguments: Batch) -> Prepared:
    import torch

    acts, labels, lengths, counts = arguments
    x = torch.tensor(acts, requires_grad=training)
    targets = torch.tensor(np.maximum(labels, 0).astype(np.int64))
    frames, sizes = torch.tensor(lengths.astype(np.int64)), torch.tensor(counts.astype(np.int64))

    def call() -> Any:
        cost = torch.nn.functional.ctc_loss(
            x.log_softmax(2), targets, frames, sizes, reduction="sum"
        )
        if not training:
            return cost
        x.grad = None
        cost.backward()
        return cost, x.grad

    return Prepared(call, None, None)


def warp_ctc_(training: bool, arguments: Batch) -> Prepared:
    """Baidu's library through its PyTorch binding, which must be built by hand."""
    import torch
    import warpctc_pytorch

    acts, labels, lengths, counts = arguments
    x = torch.tensor(acts, requires_grad=training)
    flat = torch.tensor(np.concatenate([row[row >= 0] for row in labels]))
    frames, sizes = torch.tensor(lengths), torch.tensor(counts)
    function = warpctc_pytorch.CTCLoss()

    def call() -> Any:
        cost = function(x, flat, frames, sizes)
        if not training:
            return cost
        x.grad = None
        cost.backward()
        return cost, x.grad

    return Prepared(call, None, None)


PEERS: dict[str, Callable[[bool, Batch], Prepared]] = {
    "jax_ctc": jax_ctc_,
    "optax": optax_,
    "scan": scan_,
    "torch": torch_,
    "warp-ctc": warp_ctc_,
}
NEEDS = {"optax": "optax", "torch": "torch", "warp-ctc": "warpctc_pytorch"}

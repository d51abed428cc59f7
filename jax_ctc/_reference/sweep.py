# SPDX-License-Identifier: Apache-2.0
"""A sweep of the recursion over frames: alpha, or beta if frames and states are reversed."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import scaled
from .scaled import Scaled

# Mantissas are brought back to [1, 2) after so many frames. A frame multiplies them by 0.7 to 4.3,
# so they stay between 2^-4 and 2^18, and no term of a sum is lost: pow2 reaches down to 2^-126.
UNFOLDED = 8

Tree = TypeVar("Tree")


class States(NamedTuple):
    """States of a frame, (..., 1 + L) of each kind. `labels` has the label before each blank, and
    first a state that is never reached, so that each blank has one."""

    blanks: Scaled
    labels: Scaled


class Emissions(NamedTuple):
    blank: Scaled  # (..., 1)
    labels: Scaled  # (..., L)


Pair = tuple[Scaled, Scaled]  # of blanks (..., 1 + L) and labels (..., L)


def unfolded(frames: int) -> int:
    """Returns after how many frames mantissas are brought back; 1 if the sizes are symbolic."""
    return min(frames, UNFOLDED) or 1 if isinstance(frames, int) else 1


def flipped(x: Tree, *axes: int) -> Tree:
    return jax.tree.map(lambda y: jnp.flip(y, axes), x)


def _part(x: Scaled, begin: int | None, end: int | None) -> Scaled:
    return Scaled(x.m[..., begin:end], x.e[..., begin:end])


def _advance(states: States, may_skip: Array) -> Pair:
    """Sums over the predecessors of each blank, (..., 1 + L), and of each label, (..., L): itself,
    one before, two before (eq. 4)."""
    blanks, labels = states
    before = _part(labels, None, -1)
    skipped = scaled.where(may_skip, before, scaled.none_like(before.m))
    return (
        scaled.total(blanks, labels),
        scaled.total(_part(labels, 1, None), _part(blanks, None, -1), skipped),
    )


def sweep(
    start: States,
    emissions: Emissions,
    used: Array,
    may_skip: Array,
    keep: Callable[[Pair, Pair], Tree],
) -> tuple[States, Tree]:
    """Runs the recursion over frames. Returns the last states, and for each frame the result of
    `keep` for its states before and after the emission."""

    def frame(states: States, inputs: tuple[Emissions, Array]) -> tuple[States, Tree]:
        emission, in_use = inputs
        before = _advance(states, may_skip)
        after = (
            scaled.times(before[0], emission.blank),
            scaled.times(before[1], emission.labels),
        )
        unreached, labels = _part(states.labels, None, 1), _part(states.labels, 1, None)
        blanks, labels = (
            scaled.where(in_use[..., None], *x)
            for x in zip(after, (states.blanks, labels), strict=True)
        )
        # The last step, because what is joined here is slow to compute on a CPU.
        pairs = zip(unreached, labels, strict=True)
        labels = Scaled(*(jnp.concatenate(x, axis=-1) for x in pairs))
        return States(blanks, labels), keep(before, after)

    def group(states: States, inputs: tuple[Emissions, Array]) -> tuple[States, Tree]:
        states, kept = lax.scan(frame, states, inputs)
        return States(*map(scaled.fold, states)), kept

    frames = used.shape[0]
    size = unfolded(frames)
    groups = jax.tree.map(
        lambda x: x.reshape(frames // size, size, *x.shape[1:]), (emissions, used)
    )
    end, kept = lax.scan(group, start, groups)
    return end, jax.tree.map(lambda x: x.reshape(frames, *x.shape[2:]), kept)


def nothing(before: Pair, after: Pair) -> None:
    del before, after

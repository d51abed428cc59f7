# SPDX-License-Identifier: Apache-2.0
"""The recursions over frames: alpha, and beta, of which frames and states run the other way."""

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

Carry = TypeVar("Carry")
Inputs = TypeVar("Inputs")
Kept = TypeVar("Kept")


class States(NamedTuple):
    """States of a frame, (..., 1 + L) of each kind. In alpha `labels` has the label before each
    blank, and first a state that is never reached. In beta it has the label after each blank, and
    that state is the last."""

    blanks: Scaled
    labels: Scaled


class Emissions(NamedTuple):
    blank: Scaled  # (..., 1)
    labels: Scaled  # (..., L)


Pair = tuple[Scaled, Scaled]  # of blanks (..., 1 + L) and labels (..., L)
Both = tuple[States, States]  # of alpha and beta
Frames = tuple[Emissions, Array]  # and which frames are in use


class Recursion(NamedTuple):
    """Alpha if `forward`, else beta. `may_skip` (N, L) says whether the state before a label may be
    another label; in beta, the state after it."""

    may_skip: Array
    forward: bool

    def own(self, x: Scaled) -> Scaled:
        """Returns the labels (..., L) of States.labels."""
        return _part(x, 1, None) if self.forward else _part(x, None, -1)

    def unreached(self, x: Scaled) -> Scaled:
        return _part(x, None, 1) if self.forward else _part(x, -1, None)

    def before(self, x: Scaled) -> Scaled:
        """Returns for each label (..., L) the state before it, of blanks or of States.labels."""
        return _part(x, None, -1) if self.forward else _part(x, 1, None)

    def with_unreached(self, unreached: Scaled, labels: Scaled) -> Scaled:
        both = (unreached, labels) if self.forward else (labels, unreached)
        return Scaled(*(jnp.concatenate(x, axis=-1) for x in zip(*both, strict=True)))


def padding(frames: int, parts: int) -> int:
    """Returns how many frames have to follow, for `parts` parts of whole groups."""
    if not isinstance(frames, int):  # symbolic, where nothing is known of quotients
        return (parts - 1) * frames
    part = -(-frames // parts)
    group = _group(part)
    return parts * -(-part // group) * group - frames


def _group(frames: int) -> int:
    """Returns after how many frames mantissas are brought back; 1 if the sizes are symbolic."""
    return min(frames, UNFOLDED) or 1 if isinstance(frames, int) else 1


def _part(x: Scaled, begin: int | None, end: int | None) -> Scaled:
    return Scaled(x.m[..., begin:end], x.e[..., begin:end])


def _advance(of: Recursion, states: States) -> Pair:
    """Sums over the predecessors of each blank, (..., 1 + L), and of each label, (..., L): itself,
    one before, two before (eq. 4)."""
    blanks, labels = states
    before = of.before(labels)
    skipped = scaled.where(of.may_skip, before, scaled.none_like(before.m))
    return (
        scaled.total(blanks, labels),
        scaled.total(of.own(labels), of.before(blanks), skipped),
    )


def _frame(of: Recursion, states: States, frame: Frames) -> tuple[States, Pair]:
    """Returns the states after a frame, and those before its emission if it is in use."""
    emission, in_use = frame
    before = _advance(of, states)
    after = scaled.times(before[0], emission.blank), scaled.times(before[1], emission.labels)
    blanks, labels = (
        scaled.where(in_use[..., None], *x)
        for x in zip(after, (states.blanks, of.own(states.labels)), strict=True)
    )
    # The last step, because what is joined here is slow to compute on a CPU.
    labels = of.with_unreached(of.unreached(states.labels), labels)
    return States(blanks, labels), before


def _scan(
    frame: Callable[[Carry, Inputs], tuple[Carry, Kept]],
    start: Carry,
    inputs: Inputs,
    reverse: bool = False,
) -> tuple[Carry, Kept]:
    """Returns what lax.scan does, and brings mantissas back after each group of frames. `inputs`
    are those of whole groups."""

    def group(states: Carry, inputs: Inputs) -> tuple[Carry, Kept]:
        states, kept = lax.scan(frame, states, inputs, reverse=reverse)
        return jax.tree.map(scaled.fold, states, is_leaf=lambda x: isinstance(x, Scaled)), kept

    frames = jax.tree.leaves(inputs)[0].shape[0]
    size = _group(frames)
    groups = jax.tree.map(lambda x: x.reshape(frames // size, size, *x.shape[1:]), inputs)
    end, kept = lax.scan(group, start, groups, reverse=reverse)
    return end, jax.tree.map(lambda x: x.reshape(frames, *x.shape[2:]), kept)


def sweep(of: Recursion, start: States, frames: Frames) -> States:
    """Returns the states after the last frame, or in beta before the first one."""
    return _scan(lambda *x: (_frame(of, *x)[0], None), start, frames, reverse=not of.forward)[0]


def meet(
    alpha: Recursion, beta: Recursion, starts: Both, frames: Frames
) -> tuple[States, tuple[Array, Array]]:
    """Runs both recursions over frames that have two halves of whole groups. Returns the last
    states of alpha, and for each frame alpha times beta, of blanks and of labels, with the emission
    in one of the two: numbers in a unit that is about as large as their sum.

    Each recursion keeps its states of half of the frames until the other one has come there."""
    half = frames[1].shape[0] // 2
    front = jax.tree.map(lambda x: lax.slice_in_dim(x, 0, half), frames)
    back = jax.tree.map(lambda x: jnp.flip(lax.slice_in_dim(x, half, 2 * half), 0), frames)

    def frame_of_each(
        states: Both, frames: tuple[Frames, Frames]
    ) -> tuple[Both, tuple[Pair, Pair]]:
        a, before_a = _frame(alpha, states[0], frames[0])
        b, before_b = _frame(beta, states[1], frames[1])
        return (a, b), (before_a, before_b)

    def keep(states: Both, frames: tuple[Frames, Frames]) -> tuple[Both, Both]:
        states = frame_of_each(states, frames)[0]
        # XLA copies a row with vectors, and the few states of each sequence without.
        return states, jax.tree.map(jnp.ravel, states)

    met, kept = _scan(keep, starts, (front, back))
    unit = _largest_exponent(alpha, met[0], _advance(beta, met[1]))

    def part(states: Both, inputs: tuple[tuple[Frames, Frames], Both]):
        frames, kept = inputs  # states after these frames, of those that were there
        a, b = jax.tree.map(lambda x, like: x.reshape(like.shape), kept, states)
        states, (before_a, before_b) = frame_of_each(states, frames)
        there_a, there_b = (a.blanks, alpha.own(a.labels)), (b.blanks, beta.own(b.labels))
        return states, (_product(there_a, before_b, unit), _product(before_a, there_b, unit))

    (end, _), (of_front, of_back) = _scan(part, met, ((back, front), kept), reverse=True)
    pairs = zip(of_front, of_back, strict=True)
    blanks, labels = (jnp.concatenate([x, jnp.flip(y, 0)]) for x, y in pairs)
    return end, (blanks, labels)


def _largest_exponent(alpha: Recursion, states: States, beta: Pair) -> Array:
    """Returns (..., 1): of the products of alpha, after a frame, and beta, before the next one."""
    e = (states.blanks.e + beta[0].e).max(-1, keepdims=True)
    if beta[1].e.shape[-1]:
        e = jnp.maximum(e, (alpha.own(states.labels).e + beta[1].e).max(-1, keepdims=True))
    return e


def _product(before: Pair, after: Pair, unit: Array) -> tuple[Array, Array]:
    # No product is more than their sum, so few exponents are above the unit, and those by little.
    # Without an alignment they may be anything.
    blanks, labels = (
        a.m * b.m * scaled.pow2(jnp.minimum(a.e + b.e - unit, 64), a.m.dtype)
        for a, b in zip(before, after, strict=True)
    )
    return blanks, labels

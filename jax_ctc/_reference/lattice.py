# SPDX-License-Identifier: Apache-2.0
"""The recursion in pure JAX: alpha and beta of a problem (problem.py), its cost and occupancies.

Values are m * 2^e with an exponent for every state (scaled.py), as in the kernels. Sums have a
fixed order, because XLA would choose another order, and so other bits, for another batch size.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import emission, problem, scaled
from .problem import Problem
from .scaled import Scaled
from .sweep import UNFOLDED, Emissions, Frames, Recursion, States, meet, padding, sweep

# If T * N * S is at most this, each recursion keeps its states of half of the frames. Otherwise
# beta keeps the states between blocks of frames, and those of a block are computed again.
_KEPT = 1 << 24

Index = Array | int


class _Blocks(NamedTuple):
    """`number` blocks of `size` frames. The last block ends with the last frame, so it may begin
    with frames of the block before it."""

    number: int
    size: int
    frames: int  # of all blocks together

    def start(self, i: Index) -> Index:
        return 0 if self.number == 1 else jnp.minimum(i * self.size, self.frames - self.size)

    def is_first_time(self, i: Index) -> Array | bool:
        """Returns (size, 1): False for frames that the block before has too."""
        if self.number == 1:
            return True
        return (self.start(i) + jnp.arange(self.size, dtype=jnp.int32) >= i * self.size)[:, None]

    def joined(self, x: Array) -> Array:
        """Returns (number, size, ...) as (frames, ...)."""
        rest = self.frames - (self.number - 1) * self.size
        return jnp.concatenate([x[:-1].reshape(-1, *x.shape[2:]), x[-1, self.size - rest :]])


def _blocks(p: Problem) -> _Blocks:
    (T, N), S = p.used.shape, p.states.shape[1]
    sizes = (T, N, S)
    if not all(isinstance(n, int) for n in sizes) or math.prod(sizes) <= _KEPT:
        return _Blocks(1, T, T)
    size = min(T, (math.isqrt(T - 1) // UNFOLDED + 1) * UNFOLDED)
    return _Blocks(-(-T // size), size, T)


def _of_block(p: Problem, blocks: _Blocks, i: Index, parts: int = 1) -> Frames:
    """Returns emissions (frames, N, ...) and frames in use (frames, N). Frames that are not in use
    are added at the end, so that there are `parts` parts of whole groups."""
    start = blocks.start(i)
    used, shift = (
        lax.dynamic_slice_in_dim(x, start, blocks.size) for x in (p.used, p.normaliser.shift)
    )
    more = padding(blocks.size, parts)

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)])

    # The barrier keeps the gather out of the loop of exp, which could not be vectorised with it.
    logits = problem.logits(p, p.lattice_classes, start, blocks.size)
    logits, shift = lax.optimization_barrier((padded(logits), padded(shift)[..., None]))
    dithers = emission.dithers(start + jnp.arange(logits.shape[0], dtype=jnp.int32))[:, None, None]
    of_blank, of_labels = (
        emission.of(x, shift, dithers) for x in (logits[..., :1], logits[..., 1:])
    )
    return Emissions(of_blank, of_labels), padded(used & blocks.is_first_time(i))


def _start(p: Problem, index: Array) -> States:
    """Returns states of which the blank at `index` (N,) is 1 and no other is reached."""
    # Made from an operand, so that inside shard_map it varies over the same mesh axes.
    none = scaled.none_like(jnp.zeros_like(p.normaliser.shift, shape=p.lattice_classes.shape))
    here = jnp.arange(none.m.shape[1], dtype=jnp.int32)[None] == index[:, None]
    return States(Scaled(none.m, jnp.where(here, 0, none.e)), none)


def _alpha(p: Problem) -> tuple[Recursion, States]:
    """Returns the recursion and where it starts."""
    return Recursion(p.label_may_skip, True), _start(p, jnp.zeros_like(p.label_count))


def _beta(p: Problem) -> tuple[Recursion, States]:
    may_skip = jnp.pad(p.label_may_skip, ((0, 0), (0, 1)))[:, 1:]
    return Recursion(may_skip, False), _start(p, p.label_count)


# ---- costs, occupancies -----------------------------------------------------------------------


def cost(p: Problem) -> Array:
    """Returns the costs (N,)."""
    blocks = _blocks(p)
    alpha, first = _alpha(p)
    if blocks.number == 1:
        return _cost(p, sweep(alpha, first, _of_block(p, blocks, 0)))[0]

    def block(states, i):
        return sweep(alpha, states, _of_block(p, blocks, i)), None

    return _cost(p, lax.scan(block, first, jnp.arange(blocks.number, dtype=jnp.int32))[0])[0]


def cost_and_columns(p: Problem, dense: bool) -> tuple[Array, Array, Array]:
    """Returns costs (N,), occupancies (T, N, C), and whether there is an alignment (N,).

    The C occupancies are those of the blank and of each label position, or those of each class if
    `dense`. They have no meaning in a sequence without an alignment."""
    blocks = _blocks(p)
    (alpha, first), (beta, last) = _alpha(p), _beta(p)

    def back(states, i):
        return sweep(beta, states, _of_block(p, blocks, i)), states

    def block(states, inputs):
        i, after = inputs
        end, products = meet(alpha, beta, (states, after), _of_block(p, blocks, i, parts=2))
        columns = _occupancies(p, *(x[: blocks.size] for x in products))
        return end, by_class(p, columns) if dense else columns

    if blocks.number == 1:
        end, columns = block(first, (0, last))
    else:
        numbers = jnp.arange(blocks.number, dtype=jnp.int32)
        betas = lax.scan(back, last, numbers, reverse=True)[1]
        end, columns = lax.scan(block, first, (numbers, betas))
        columns = blocks.joined(columns)
    costs, possible = _cost(p, end)
    return costs, columns, possible


def _occupancies(p: Problem, blanks: Array, labels: Array) -> Array:
    """Returns occupancies (frames, N, 1 + L): alpha before times beta after each emission, divided
    by their sum (eq. 8)."""
    blank = problem.sum_in_order(blanks)
    total = blank + problem.sum_in_order(labels)
    labels = jax.vmap(lambda x, i: x.at[:, i].get(mode="promise_in_bounds"), (1, 0), 1)(
        labels, p.position
    )
    return jnp.concatenate([blank[..., None], labels], axis=-1) / total[..., None]


def by_class(p: Problem, columns: Array) -> Array:
    """Returns occupancies (frames, N, V) of each class, from those of the blank and the label
    positions."""
    V = p.acts.shape[-1]

    def one(classes: Array, columns: Array) -> Array:
        none = jnp.zeros((columns.shape[0], V), columns.dtype)
        return none.at[:, classes].add(columns, mode="promise_in_bounds")

    return jax.vmap(one, (0, 1), 1)(p.classes, columns)


def _cost(p: Problem, end: States) -> tuple[Array, Array]:
    """Returns costs (N,) from alpha after the last frame, and whether there is an alignment."""
    z = scaled.fold(scaled.total(*(x.at(p.label_count) for x in end)))  # eq. 6

    def add(total, x):
        return scaled.add_exactly(total, x), None

    nothing = jnp.zeros_like(z.m)
    total, _ = lax.scan(add, (nothing, nothing), p.normaliser.log_total)
    for x in scaled.log_terms(z):  # eq. 7
        total = scaled.add_exactly(total, -x)
    # What rounding lost of a sum that overflowed is NaN.
    costs = jnp.where(jnp.isinf(total[0]), total[0], total[0] + total[1])
    if p.softmax:
        costs = jnp.maximum(costs, 0)
    possible = z.e >= scaled.NO_PATH
    costs = jnp.where(possible, costs, jnp.inf)
    return jnp.where(p.invalid | p.undefined.any(0), jnp.nan, costs), possible

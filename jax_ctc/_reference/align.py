# SPDX-License-Identifier: Apache-2.0
"""The best alignment in pure JAX, in float64 even where jax_enable_x64 is off.

The arithmetic is that of the kernels (docs/ctc.md, section 7), addition by addition. So the path is
the same bit for bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import problem
from .batch import over_batch
from .problem import Problem

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # before JAX 0.8
    from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]
_LEAST_REFERENCE = -4.2e7  # a blank that is lower is no reference
_MOST = 1e290  # float64 emissions are bounded, so that no sum overflows


class _Star(NamedTuple):
    """What the star stands for at each frame, (T, N): the first class of the largest logit."""

    label: Array
    logit: Array  # -inf if the blank is the only class


@over_batch
def align(acts, labels, lengths, *, softmax, star, **params):
    """Returns the path, the position of its labels in the row of labels, and its score."""
    p = problem.make(acts, labels, lengths, softmax=softmax or star, star=star, **params)
    if star and not softmax:  # no row has a normaliser or needs one
        p = p._replace(used=p.used | p.undefined, undefined=jnp.zeros_like(p.used))
    stars = _stars(p) if star else None
    with enable_x64(True):
        choices, end, score = _forward(p, stars, softmax)
        states = _backward(p, choices, end)
    frames = [problem.swapped(x, p.time_axis) for x in _places(p, states, stars)]
    if acts.ndim == 2:
        frames = [x[:, 0] for x in frames]
    return [*frames, score.reshape(lengths.shape)]


def _stars(p: Problem) -> _Star:
    """A NaN or a +inf is the logit, if there is one."""

    def f(best: tuple[Array, Array], x: Array, first: Array, fresh: Array) -> tuple[Array, Array]:
        del fresh  # a class that is read twice is not larger than itself
        label, logit = best
        classes = first + lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        others = jnp.where(classes == p.blank, -jnp.inf, x)
        place = jnp.argmax(others, axis=-1)[..., None]
        here = jnp.take_along_axis(others, place, axis=-1)[..., 0]
        is_larger = (here > logit) | (jnp.isnan(here) & ~jnp.isnan(logit))
        there = first + place[..., 0].astype(np.int32)
        return jnp.where(is_larger, there, label), jnp.where(is_larger, here, logit)

    in_order = problem.swapped(p.used, p.time_axis)
    first = jnp.zeros_like(in_order, np.int32)
    nothing = jnp.full_like(in_order, -jnp.inf, p.dtype)
    best = problem.over_classes(f, (first, nothing), p.acts, in_order)
    label, logit = (problem.swapped(x, p.time_axis) for x in best)
    has_star = (p.states == p.acts.shape[-1]).any(-1)
    return _Star(label, jnp.where(p.used & has_star[None], logit, 0).astype(p.dtype))


def _logits(p: Problem, t: Array, stars: _Star | None) -> Array:
    """Returns the logit of each state at frame t, (N, S)."""
    if stars is None:
        return problem.logits(p, p.states, t, 1)[0]
    is_star = p.states == p.acts.shape[-1]
    x = problem.logits(p, jnp.where(is_star, p.blank, p.states), t, 1)[0]
    return jnp.where(is_star, stars.logit[t][:, None], x)


def _emissions(p: Problem, x: Array) -> tuple[Array, Array]:
    """Returns what each state adds at a frame, (N, S), from its logits, and the reference, (N,).
    The logit of the blank is the reference, or 0 if it is so low that labels would lose digits."""
    x = x.astype(np.float64)
    blank = x[:, 0]
    reference = jnp.where(blank < _LEAST_REFERENCE, 0, blank)
    relative = x - reference[:, None]
    if p.acts.dtype == np.float64:
        relative = jnp.where(relative < -_MOST, -jnp.inf, jnp.minimum(relative, _MOST))
    return relative, reference


def _forward(p: Problem, stars: _Star | None, softmax: bool) -> tuple[Array, Array, Array]:
    """Returns how many states before it the path came from, (T, N, S), for each state; the state at
    the end, -1 if there is none; and the score."""
    S = p.states.shape[1]
    normaliser = (p.normaliser.shift.astype(np.float64), p.normaliser.log_total.astype(np.float64))

    def step(carry, inputs):
        values, total, undefined = carry
        t, used, shift, log_total = inputs
        x = _logits(p, t, stars)
        emission, reference = _emissions(p, x)
        before = jnp.pad(values, ((0, 0), (2, 0)), constant_values=-jnp.inf)
        advance, skip = before[:, 1 : S + 1], jnp.where(p.may_skip, before[:, :S], -jnp.inf)
        either = jnp.maximum(values, advance)
        choice = jnp.where(skip > either, 2, jnp.where(advance > values, 1, 0)).astype(np.int8)
        best = jnp.maximum(either, skip) + emission
        if softmax:
            reference = (reference - shift) - log_total
        else:
            undefined |= used & ~(x < jnp.inf).all(-1)
        total = total + jnp.where(used, reference, 0)
        return (jnp.where(used[:, None], best, values), total, undefined), choice

    nothing = jnp.full_like(p.states, -jnp.inf, np.float64)
    undefined = p.invalid | p.undefined.any(0)
    start = nothing.at[:, 0].set(0), jnp.zeros_like(p.last, np.float64), undefined
    T = p.used.shape[0]
    if isinstance(T, int) and T == 0:  # there is no frame to trace the step with
        (values, total, undefined), choices = (
            start,
            jnp.zeros_like(p.states, np.int8, shape=(0, *nothing.shape)),
        )
    else:
        t = jnp.arange(T, dtype=np.int32)
        (values, total, undefined), choices = lax.scan(step, start, (t, p.used, *normaliser))

    def at(state: Array) -> Array:
        return jnp.take_along_axis(values, jnp.maximum(state, 0)[:, None], axis=1)[:, 0]

    # Of two equal ends, the last label.
    is_label = (p.last > 0) & (at(p.last - 1) >= at(p.last))
    end = jnp.where(is_label, p.last - 1, p.last)
    total = jnp.where(at(end) == -jnp.inf, -jnp.inf, at(end) + total)
    score = jnp.where(undefined, jnp.nan, jnp.minimum(total, 0) if softmax else total)
    score = score.astype(p.dtype)
    return choices, jnp.where(undefined | (score == -jnp.inf), -1, end), score


def _backward(p: Problem, choices: Array, end: Array) -> Array:
    """Returns the state of the path at each frame, (T, N); -1 if there is none."""

    def step(state, inputs):
        choice, used = inputs
        here = jnp.maximum(state, 0)
        back = jnp.take_along_axis(choice, here[:, None], axis=1)[:, 0].astype(np.int32)
        before = jnp.where(used & (state >= 0), here - back, state)
        return before, jnp.where(used, state, -1)

    return lax.scan(step, end, (choices, p.used), reverse=True)[1]


def _places(p: Problem, states: Array, stars: _Star | None) -> tuple[Array, Array]:
    """Returns the class of each state, and the position of its label; -1 if there is none."""
    here = jnp.maximum(states, 0).T  # (N, T)
    classes = jnp.take_along_axis(p.states, here, axis=1).T
    if stars is not None:
        classes = jnp.where(classes == p.acts.shape[-1], stars.label, classes)
    # Entry k of the inverse of `position` is where the k-th label stands.
    order = jnp.pad(jnp.argsort(p.position, axis=-1).astype(np.int32), ((0, 0), (0, 1)))
    positions = jnp.take_along_axis(order, here // 2, axis=1).T
    return (
        jnp.where(states < 0, -1, classes),
        jnp.where((states < 0) | (states % 2 == 0), -1, positions),
    )


if not hasattr(jax, "enable_x64"):  # JAX 0.7 would make constants of float64 ones of float32
    align.lowered_in = lambda: enable_x64(True)  # pyright: ignore[reportFunctionMemberAccess]

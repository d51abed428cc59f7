# SPDX-License-Identifier: Apache-2.0
"""Random problems for fuzz.py, with every edge of the contract in them, and their solutions."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from support import oracle

HYPOTHESES = 2
LABEL_DTYPES = (np.int32, np.int64, np.int8, np.int16, np.uint8, np.uint32)


class Setting(NamedTuple):
    """What a program is compiled for."""

    T: int
    B: int
    V: int
    L: int
    dtype: Any
    label_dtype: Any
    blank: int
    time_major: bool
    zero_infinity: bool
    with_label_lengths: bool

    @property
    def blank_class(self):
        return self.blank % self.V

    @property
    def options(self):
        return {name: getattr(self, name) for name in ("blank", "time_major", "zero_infinity")}


class Problem(NamedTuple):
    """Arguments, in the caller's layout. The first of the hypotheses is `labels` again."""

    acts: np.ndarray
    labels: np.ndarray  # (B, L)
    lengths: np.ndarray
    label_lengths: np.ndarray | None
    weights: np.ndarray  # (B,) cotangents of the costs, inf and NaN among them
    direction: np.ndarray  # of a product with the Hessian
    hypotheses: np.ndarray  # (HYPOTHESES, B, L)


class Solution(NamedTuple):
    """With T first whatever the layout; in long double precision."""

    cost: np.ndarray  # (B,)
    gradient: np.ndarray  # (T, B, V) times the weights
    occupancy: np.ndarray  # (T, B, V)
    product: np.ndarray  # (T, B, V)
    zero: np.ndarray  # (T, B, 1): the gradient is exactly 0
    free: (
        np.ndarray
    )  # (T, B, 1): a cotangent of inf or NaN meets a gradient; the contract is silent


def some(rng, probability):
    return rng.random() < probability


def draw_setting(rng):
    T = int(rng.choice([0, 1, 2, 5, 12, 33, 70], p=[0.03, 0.07, 0.1, 0.2, 0.3, 0.2, 0.1]))
    V = int(
        rng.choice([1, 2, 3, 5, 9, 17, 40, 130], p=[0.03, 0.07, 0.1, 0.2, 0.2, 0.2, 0.15, 0.05])
    )
    L = int(rng.choice([0, 1, 2, 4, 9, 18]))
    return Setting(
        T=T,
        B=int(rng.choice([1, 3, 5])),
        V=V,
        L=min(L, T) if some(rng, 0.7) else L,  # most labels fit their frames
        dtype=rng.choice(
            [jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16], p=[0.5, 0.2, 0.15, 0.15]
        ),
        label_dtype=rng.choice(LABEL_DTYPES, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]),
        blank=0 if some(rng, 0.4) else int(rng.integers(-V, V)),
        time_major=some(rng, 0.5),
        zero_infinity=some(rng, 0.2),
        with_label_lengths=some(rng, 0.4),
    )


def draw_labels(rng, s):
    """Few classes and so repeats, or all; padding anywhere or at the end; at times a bad one."""
    info = np.iinfo(s.label_dtype)
    classes = np.delete(np.arange(s.V), s.blank_class)
    if some(rng, 0.3):
        classes = classes[:2]
    labels = np.full((s.B, s.L), -1, object)
    for b in range(s.B):
        if len(classes):
            labels[b] = rng.choice(classes, s.L)
        holes = rng.random(s.L) < rng.choice([0, 0.2, 0.7, 1], p=[0.4, 0.3, 0.2, 0.1])
        if some(rng, 0.5):
            holes = np.sort(holes)
        labels[b, holes] = [int(rng.choice([-1, -2, info.min])) for _ in range(holes.sum())]
        if s.L and some(rng, 0.07):
            bad = [s.V, s.V + 3, s.blank_class, info.max, 2**32 + 1]
            labels[b, rng.integers(s.L)] = bad[rng.integers(len(bad))]
    if info.min == 0:  # no padding without a sign: any class does
        labels[labels < 0] = int(classes[0]) if len(classes) else s.V
    return np.minimum(labels, info.max).astype(s.label_dtype)


def draw_counts(rng, B, most):
    counts = np.where(rng.random(B) < 0.5, most, rng.integers(0, most + 1, B))
    wrong = rng.choice([-1, most + 1, -(2**31), 2**31 - 1], B)
    return np.where(rng.random(B) < 0.03, wrong, counts).astype(np.int32)


def draw_acts(rng, s, labels, lengths):
    acts = rng.choice([0, 0.1, 1, 10, 100, 1000]) * rng.normal(size=(s.T, s.B, s.V))
    if some(rng, 0.2):  # a number for each frame changes no cost
        acts += rng.choice([10, 1000]) * rng.normal(size=(s.T, 1, 1))
    if some(rng, 0.25):
        acts[rng.random(acts.shape) < rng.choice([0.02, 0.2])] = -np.inf
    frames = np.arange(s.T)[:, None]
    for b in range(s.B if s.T else 0):
        t = rng.integers(s.T)
        if some(rng, 0.05):  # a frame in which nothing of this sequence is possible
            own = [k for k in labels[b].tolist() if 0 <= k < s.V]
            acts[t, b, [*own, s.blank_class]] = -np.inf
        if some(rng, 0.05):
            acts[t, b, rng.integers(s.V)] = rng.choice([np.nan, np.inf])
        if some(rng, 0.02):
            acts[t, b] = -np.inf
    after = np.broadcast_to(frames >= lengths, (s.T, s.B))
    if some(rng, 0.7):
        acts[after] = rng.choice([np.nan, np.inf, -np.inf, 1e38, 0])
    with np.errstate(over="ignore"):  # 1e38 is inf in float16
        return acts.astype(s.dtype)


def draw(rng, s):
    labels = draw_labels(rng, s)
    lengths = draw_counts(rng, s.B, s.T)
    weights = rng.normal(size=s.B)
    special = rng.choice([0, np.inf, -np.inf, np.nan, 1], s.B)
    weights = np.where(rng.random(s.B) < 0.3, special, weights)
    direction = rng.normal(size=(s.T, s.B, s.V)) + rng.choice([0, 0, 1000])
    acts = draw_acts(rng, s, labels, lengths)
    swap = (lambda x: x) if s.time_major else (lambda x: x.swapaxes(0, 1))
    return Problem(
        acts=swap(acts),
        labels=labels,
        lengths=lengths,
        label_lengths=draw_counts(rng, s.B, s.L) if s.with_label_lengths else None,
        weights=weights.astype(np.float64 if s.dtype == jnp.float64 else np.float32),
        direction=swap(direction.astype(s.dtype)),
        hypotheses=np.stack([labels, *(draw_labels(rng, s) for _ in range(HYPOTHESES - 1))]),
    )


def is_bad(s, problem):
    """Whether a call outside of jit has to raise: as a bad label or length is defined."""
    counts = np.full(s.B, s.L) if problem.label_lengths is None else problem.label_lengths
    bad = ((problem.lengths < 0) | (problem.lengths > s.T) | (counts < 0) | (counts > s.L)).any()
    used = np.arange(s.L) < counts[:, None]
    labels = problem.labels.astype(object)
    return bool(bad or (used & (labels >= 0) & ((labels >= s.V) | (labels == s.blank_class))).any())


def solve(s, problem, labels):
    """The Solution with these labels."""
    swap = (lambda x: x) if s.time_major else (lambda x: x.swapaxes(0, 1))
    acts, direction = (swap(x).astype(np.longdouble) for x in (problem.acts, problem.direction))
    rest = (labels, problem.lengths, problem.label_lengths)
    options = {"blank": s.blank_class, "dtype": np.longdouble}
    truth = oracle.solve(acts, *rest, **options)

    # A direction that is the same for all classes of a frame changes nothing: without it the
    # differences keep their digits.
    direction = direction - direction.mean(axis=-1, keepdims=True)
    step = np.longdouble(1) / 8192

    def gradient(multiple):
        return oracle.solve(acts + multiple * step * direction, *rest, **options).gradient

    near, far = gradient(1) - gradient(-1), gradient(2) - gradient(-2)
    product = (8 * near - far) / (12 * step)

    without = (np.isinf(truth.cost) | (problem.weights == 0))[:, None]
    bad = np.isnan(truth.cost) & ~np.isnan(truth.gradient).any(axis=(0, 2))
    after = np.arange(s.T)[:, None, None] >= problem.lengths[:, None]
    zero = after | without | bad[:, None]
    wild = ~np.isfinite(problem.weights)[:, None]
    with np.errstate(invalid="ignore"):
        weighted = problem.weights[:, None].astype(np.longdouble) * truth.gradient
    return Solution(
        cost=np.where(s.zero_infinity & np.isinf(truth.cost), 0, truth.cost),
        gradient=np.where(zero, 0, weighted),
        occupancy=truth.occupancy,
        product=product,
        zero=zero,
        free=np.broadcast_to(wild & ~zero, zero.shape),
    )

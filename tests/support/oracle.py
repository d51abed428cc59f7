# SPDX-License-Identifier: Apache-2.0
"""What the loss has to be, in plain numpy and twice: by enumeration, and by alpha and beta."""

import itertools
from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    """What a batch of sequences costs, its gradient, and the posterior of each class."""

    cost: np.ndarray  # (B,)
    gradient: np.ndarray  # (T, B, V), of the sum of the costs
    occupancy: np.ndarray  # (T, B, V)


def log_softmax(logits):
    top = logits.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def enumerate_alignments(logits, labels, blank=0):
    """(cost, occupancy) of one (T, V) sequence, by walking through all V**T paths."""
    T, V = logits.shape
    log_p, frames = log_softmax(logits), np.arange(T)
    paths = [
        list(path)
        for path in itertools.product(range(V), repeat=T)
        if [k for k, _ in itertools.groupby(path) if k != blank] == list(labels)
    ]
    scores = np.array([log_p[frames, path].sum() for path in paths])
    top, occupancy = scores.max(initial=-np.inf), np.zeros((T, V))
    if top == -np.inf:
        return np.inf, occupancy
    weights = np.exp(scores - top)
    for path, weight in zip(paths, weights, strict=True):
        occupancy[frames, path] += weight / weights.sum()
    return -top - np.log(weights.sum()), occupancy


def _sweep(log_p, labels):
    """Log path sums per (frame, state), emission included, each row less its maximum; the maxima.

    There are 2L + 1 states: a blank, a label, a blank, ..., a label, a blank.
    """
    T, S = log_p.shape
    may_skip = np.zeros(S, bool)
    may_skip[3::2] = labels[1:] != labels[:-1]
    rows, tops = np.empty_like(log_p), np.empty(T, log_p.dtype)
    # Two unreachable states on the left, and before the first frame all weight on the first blank.
    padded = np.full(S + 2, -np.inf, log_p.dtype)
    padded[2] = 0
    for t in range(T):
        stay, step, skip = padded[2:], padded[1:-1], np.where(may_skip, padded[:-2], -np.inf)
        best = np.maximum(np.maximum(stay, step), skip)
        floor = np.where(best == -np.inf, 0, best)
        total = np.exp(stay - floor) + np.exp(step - floor) + np.exp(skip - floor)
        row = floor + np.log(total) + log_p[t]
        tops[t] = row.max()
        if tops[t] == -np.inf:  # no path is left
            rows[t:], tops[t:] = -np.inf, -np.inf
            break
        rows[t] = padded[2:] = row - tops[t]
    return rows, tops


def _sequence(logits, labels, blank):
    """(cost, softmax, occupancy) of one (T, V) sequence whose arguments and logits are in order."""
    T, S = len(logits), 2 * len(labels) + 1
    occupancy = np.zeros_like(logits)
    if T == 0:
        return (np.inf if len(labels) else 0.0), occupancy, occupancy
    classes = np.full(S, blank)
    classes[1::2] = labels
    log_p = log_softmax(logits)
    states = log_p[:, classes]
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha, tops = _sweep(states, labels)
        beta = _sweep(states[::-1, ::-1], labels[::-1])[0][::-1, ::-1]
        cost = -(tops.sum() + np.logaddexp.reduce(alpha[-1, -2:]))
        if cost == np.inf:
            return cost, np.exp(log_p), occupancy
        gamma = np.where(states == -np.inf, -np.inf, alpha + beta - states)  # one emission, not two
    gamma = np.exp(gamma - gamma.max(axis=1, keepdims=True))
    gamma /= gamma.sum(axis=1, keepdims=True)
    for s in range(S):
        occupancy[:, classes[s]] += gamma[:, s]
    return cost, np.exp(log_p), occupancy


def solve(acts, labels, lengths, label_lengths=None, *, blank=0, dtype=np.float64):
    """The Truth about (T, B, V) acts, (B, L) labels and (B,) lengths, edge cases included."""
    acts = np.asarray(acts).astype(dtype)
    labels, lengths = np.asarray(labels), np.asarray(lengths)
    (T, B, V), L = acts.shape, labels.shape[1]
    label_lengths = np.full(B, L) if label_lengths is None else np.asarray(label_lengths)
    truth = Truth(np.zeros(B, dtype), np.zeros_like(acts), np.zeros_like(acts))
    for b in range(B):
        length, label_length = int(lengths[b]), int(label_lengths[b])
        row = [k for k in labels[b, : max(label_length, 0)].tolist() if k >= 0]
        bad_length = not 0 <= length <= T or not 0 <= label_length <= L
        if bad_length or any(k >= V or k == blank for k in row):
            truth.cost[b] = np.nan
            continue
        used = acts[:length, b]
        if np.isnan(used).any() or not np.isfinite(used.max(axis=1)).all():
            truth.cost[b] = truth.gradient[:length, b] = truth.occupancy[:length, b] = np.nan
            continue
        cost, softmax, occupancy = _sequence(used, np.array(row, int), blank)
        truth.cost[b] = max(cost, 0)
        truth.occupancy[:length, b] = occupancy
        if cost < np.inf:
            truth.gradient[:length, b] = softmax - occupancy
    return truth


def cost_and_gradient(acts, labels, lengths, label_lengths=None, **options):
    return solve(acts, labels, lengths, label_lengths, **options)[:2]


def hessian_vector(acts, labels, lengths, direction, label_lengths=None, **options):
    """Five-point difference of the gradient of the summed costs along `direction`."""
    acts, step = np.asarray(acts).astype(float), 1e-3

    def gradient(multiple):
        moved = acts + multiple * step * direction
        return cost_and_gradient(moved, labels, lengths, label_lengths, **options)[1]

    near, far = gradient(1) - gradient(-1), gradient(2) - gradient(-2)
    return (8 * near - far) / (12 * step)

# SPDX-License-Identifier: Apache-2.0
"""What an alignment has to be, in plain numpy and twice: by enumeration and by Viterbi.

Of equally good paths both take the one of the rule: at the end the last label before the blank, and
going back stay before advance before skip. A star is one class more, whose logit is the largest of
the others but the blank's.
"""

import itertools

import numpy as np


def enumerate_paths(logits, labels, blank=0):
    """(states, sum of logits) of the best path of one (T, V) sequence, out of all V**T. Sums
    have to be exact, as those of small integers are, so that equal ones are equal."""
    T, V = logits.shape
    ranked = []
    for path in itertools.product(range(V), repeat=T):
        if [k for k, _ in itertools.groupby(path) if k != blank] != list(labels):
            continue
        total = sum(logits[t, k] for t, k in enumerate(path))
        states = _states(path, blank)
        # The smaller state at the end, and the larger one before.
        ranked.append((-total, states[-1:], [-s for s in states[-2::-1]], states, list(path)))
    if not ranked or min(ranked)[0] == np.inf:
        return None, -np.inf
    lowest, *_, states, _ = min(ranked)
    return states, -lowest


def _states(path, blank):
    """The state of each frame: 2 i + 1 in label i, 2 i in the blank before it."""
    states, before, state = [], blank, 0
    for k in path:
        if k == blank:
            state += state % 2
        elif k != before:
            state += 1 + state % 2
        states.append(state)
        before = k
    return states


def viterbi(logits, labels, blank=0):
    """(states, sum of logits) of the best path of one (T, V) sequence, in float64."""
    T, L = len(logits), len(labels)
    exact = logits.astype(np.float64)
    if T == 0:
        return ([], 0.0) if L == 0 else (None, -np.inf)
    classes = np.full(2 * L + 1, blank)
    classes[1::2] = labels
    may_skip = np.zeros(2 * L + 1, bool)
    may_skip[3::2] = classes[3::2] != classes[1:-2:2]
    values = np.full(2 * L + 3, -np.inf)  # two that are never reached on the left
    values[2] = 0
    back = np.empty((T, 2 * L + 1), np.int8)
    reference = np.where(exact[:, blank] < -4.2e7, 0, exact[:, blank])
    for t in range(T):
        stay, advance = values[2:], values[1:-1]
        skip = np.where(may_skip, values[:-2], -np.inf)
        either = np.maximum(stay, advance)
        back[t] = np.where(skip > either, 2, advance > stay)
        values[2:] = np.maximum(either, skip) + (exact[t, classes] - reference[t])
    state = 2 * L - 1 if L > 0 and values[2 * L + 1] >= values[2 * L + 2] else 2 * L
    best = values[2 + state]
    if best == -np.inf:
        return None, -np.inf
    states = []
    for t in reversed(range(T)):
        states.append(int(state))
        state -= int(back[t, state])
    return states[::-1], best + reference.sum()


def solve(
    acts, labels, lengths, label_lengths=None, blank=0, best=viterbi, softmax=True, star=None
):
    """path, label_index (T, B) and score (B,) of a batch (T, B, V); any entry may be bad."""
    T, B, V = acts.shape
    path, index = np.full((2, T, B), -1, np.int32)
    score = np.full(B, np.nan)
    for b in range(B):
        row = np.array(labels[b])
        if label_lengths is not None:
            row[label_lengths[b] :] = -1
        places = np.flatnonzero(row >= 0)
        wanted, used = row[places], acts[: max(lengths[b], 0), b].astype(np.float64)
        bad = (wanted >= V + (star is not None)) | (wanted == blank)
        if bad.any() or not 0 <= lengths[b] <= T:
            continue
        others = np.where(np.arange(V) == blank, -np.inf, used)
        column = others.max(axis=-1, keepdims=True, initial=-np.inf)
        extended = np.concatenate([used, column], axis=-1)
        read = used if softmax or V in wanted else used[:, [blank, *wanted]]
        if not (read < np.inf).all() or (softmax and (read == -np.inf).all(-1).any()):
            continue
        states, score[b] = best(extended if star is not None else used, wanted, blank)
        if states is None:
            continue
        if softmax:
            top = used.max(axis=-1, initial=-np.inf)
            score[b] -= (top + np.log(np.exp(used - top[:, None]).sum(axis=-1))).sum()
        for t, state in enumerate(states):
            index[t, b] = places[state // 2] if state % 2 else -1
            path[t, b] = wanted[state // 2] if state % 2 else blank
            if path[t, b] == V:
                path[t, b] = others[t].argmax()
    return path, index, score

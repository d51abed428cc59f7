# SPDX-License-Identifier: Apache-2.0
"""Small batches with a name, a line each. Rows of labels are padded with -1 to the longest.

The kernels keep occupancies by class ("dense") where V <= L + 1, by label ("compact") elsewhere.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from support.results import COMPILED
from support.runs import sweep


@dataclass(frozen=True)
class Case:
    name: str
    T: int
    V: int
    rows: list
    lengths: list | None = None
    label_lengths: list | None = None
    blank: int = 0
    impossible: tuple | None = None  # an index into acts: these logits are -inf

    SHARED_BLANK: ClassVar = 4

    @property
    def labels(self):
        L = max(len(row) for row in self.rows)
        return np.array([row + [-1] * (L - len(row)) for row in self.rows], np.int32)

    @property
    def is_dense(self):
        return self.V <= self.labels.shape[1] + 1

    def acts(self, dtype=np.float32):
        rng = np.random.default_rng(len(self.name))
        acts = rng.normal(scale=2, size=(self.T, len(self.rows), self.V)).astype(dtype)
        if self.impossible is not None:
            acts[self.impossible] = -np.inf
        return acts

    def arguments(self, dtype=np.float32):
        """What ctc and the oracle take, in their order."""
        lengths = [self.T] * len(self.rows) if self.lengths is None else self.lengths
        label_lengths = self.label_lengths and np.array(self.label_lengths, np.int32)
        return self.acts(dtype), self.labels, np.array(lengths, np.int32), label_lengths

    def in_one_shape(self, V, L):
        """acts (12, 4, V), labels (4, L), lengths: a shape that all EDGES fit, and a place of the
        blank, so that they share one program. Frames and sequences that are added are not in use;
        classes that are added have probability 0."""
        acts, labels, lengths, label_lengths = self.arguments()
        if label_lengths is not None:
            labels = np.where(np.arange(labels.shape[1]) < label_lengths[:, None], labels, -1)
        more = [(0, n - size) for n, size in zip((12, 4, V), acts.shape, strict=True)]
        by = self.SHARED_BLANK - self.blank
        acts = np.roll(np.pad(acts, more, constant_values=-np.inf), by, axis=-1)
        labels = np.where(labels < 0, labels, (labels + by) % V)
        more = [(0, n - size) for n, size in zip((4, L), labels.shape, strict=True)]
        return acts, np.pad(labels, more, constant_values=-1), np.pad(lengths, more[0])


def random_labels(L, V, seed=0):
    """Two rows, the second with many repeats; classes 1 to V - 1."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, V, L).tolist(), np.sort(rng.integers(1, V, L)).tolist()]


def around_a_vector(L):
    """L + 1 label columns against V classes: few classes, the last dense V, the first compact."""
    for V in (3, L + 1, L + 2):
        yield Case(
            f"{L} labels of {V} classes", 2 * L + 3, V, random_labels(L, V), [2 * L + 3, 2 * L]
        )


EDGES = [
    Case("no labels", 5, 4, [[]]),
    Case("no labels, as padding", 5, 4, [[-1, -1, -1, -1]]),
    Case("one label", 5, 4, [[2]]),
    Case("one frame", 1, 3, [[1], [], [2]]),
    Case("two classes", 7, 2, [[1, 1, 1], [1]]),
    Case("only the blank", 5, 1, [[]]),
    Case("only the blank, as padding", 5, 1, [[-1]]),
    Case("repeats", 9, 4, [[1, 1, 2, 2], [3, 3, 3]]),
    Case("repeats of many classes", 9, 8, [[1, 1, 2, 2], [7, 7, 7]]),
    Case("all labels the same", 12, 3, [[2, 2, 2, 2, 2]]),
    Case("all labels different", 7, 12, [[11, 4, 7, 1, 9]]),
    Case("frames exactly enough", 4, 5, [[1, 2, 3, 4]]),
    Case("frames exactly enough for the repeats", 6, 9, [[1, 1, 2, 2]]),
    Case("one frame short", 3, 5, [[1, 2, 3, 4], [1, 2]]),
    Case("one frame short of the repeats", 5, 9, [[1, 1, 2, 2], [1, 2, 3, 4]]),
    Case("last class is the blank", 6, 4, [[0, 1, 2], [2, 2]], blank=3),
    Case("middle class is the blank", 6, 7, [[0, 6, 2], [3, 3]], blank=4),
    Case("ragged", 8, 5, [[1, 2], [3], [], [4, 4, 1, 2]], [8, 5, 3, 6]),
    Case("ragged of many classes", 8, 11, [[1, 2], [3], [], [10, 10, 1, 2]], [7, 5, 8, 6]),
    Case("no frames in use", 4, 3, [[1, 2], [], [2]], [0, 0, 4]),
    Case("no frames at all", 0, 3, [[1], []]),
    Case("padding in the middle", 8, 7, [[-1, 3, -7, 3, -1, 5], [-2, -1, 6, -1, -1, 6]]),
    Case("padding in the middle of many classes", 8, 9, [[-1, 3, -7, 3, -1], [8, -1, -1, -1, 8]]),
    Case("label_lengths", 8, 4, [[1, 2, 99, 0], [0, 9, 9, 9], [3, -1, 2, 7]], None, [2, 0, 3]),
    Case("an impossible class that is not needed", 6, 6, [[1, 2]], impossible=np.s_[:, 0, 4]),
    Case("a needed class impossible at first", 6, 3, [[1, 2]], impossible=np.s_[:3, 0, 2]),
    Case("blank impossible", 4, 5, [[1, 2, 3]], impossible=np.s_[:, 0, 0]),
    Case("a needed class impossible", 6, 3, [[1, 2], [1, 1]], impossible=np.s_[:, 0, 2]),
    Case("blank impossible between repeats", 6, 9, [[1, 1], [1, 2]], impossible=np.s_[:, :, 0]),
]
# Vectors have 2 to 16 lanes.
LABELS = sweep((3, 4, 7, 8, 15, 16, 31, 32, 63, 64), (3, 4, 7, 8, 15, 16, 32))
WIDTHS = [case for L in LABELS for case in around_a_vector(L)]
CASES = EDGES + WIDTHS if COMPILED else EDGES  # plain JAX knows no vectors

DENSE = Case("dense", 9, 4, [[1, 2, 2, 3], [3, -1, 1, -1], [-1, 2, -1, -1]], [9, 7, 4])
COMPACT = Case("compact", 9, 8, [[1, 7, 7], [3, -1, 1], [-1, 6, -1]], [9, 7, 4])

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_edge = pytest.mark.parametrize("case", EDGES, ids=lambda case: case.name)
both_layouts = pytest.mark.parametrize("case", [DENSE, COMPACT], ids=lambda case: case.name)

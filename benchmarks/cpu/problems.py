# SPDX-License-Identifier: Apache-2.0
"""The batches that are timed: random logits, ragged in frames and in labels."""

import numpy as np

Shape = tuple[int, int, int, int]  # T, B, V, L
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
SHAPES: dict[str, Shape] = {
    "small": (32, 64, 80, 12),
    "letters": (400, 16, 32, 100),
    "word pieces": (400, 16, 1024, 60),
    "characters": (250, 8, 10_000, 50),
    "long": (5000, 2, 64, 800),
    "warp-ctc, V = 28": (150, 64, 28, 40),
    "one sequence": (200, 1, 32, 30),
    "warp-ctc, V = 5000": (150, 64, 5000, 20),
}


def problem(shape: Shape, full: bool = False) -> Batch:
    """acts (T, B, V) float32, labels (B, L) padded with -1, lengths (B,), label lengths (B,)."""
    T, B, V, L = shape
    rng = np.random.default_rng(0)
    lengths = np.full(B, T, np.int32)
    counts = np.full(B, L, np.int32)
    if not full:
        lengths = rng.integers(T // 2, T + 1, B).astype(np.int32)
        lengths[0] = T
        counts = rng.integers(L // 2, L + 1, B).astype(np.int32)
    labels = rng.integers(1, V, (B, L)).astype(np.int32)
    labels[np.arange(L) >= counts[:, None]] = -1
    return rng.normal(size=(T, B, V)).astype(np.float32), labels, lengths, counts

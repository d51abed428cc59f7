# SPDX-License-Identifier: Apache-2.0
"""Which axes the operands and results of each primitive have, and where; and their dtype.

Batch axes come first and in the same order everywhere. Arrays that have a time axis carry it at
position `time_axis` among the batch axes, plus at most one trailing axis. The caller's axis order
is kept, so no array is transposed.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import core

# JAX 0.7 has it in jax.core, later releases in jax.errors.
_INCONCLUSIVE: Any = getattr(jax.errors, "InconclusiveDimensionOperation", None) or getattr(
    core, "InconclusiveDimensionOperation", None
)

ACTS = "acts"  # batch with T, V
ROWS = "rows"  # batch with T, 2 (0 where dense): shift and scale of the softmax
COLUMNS = "columns"  # batch with T, min(L + 1, V)
FRAMES = "frames"  # batch with T
SCORES = "scores"  # batch with T, L: a number for each symbol
LABELS = "labels"  # batch, L; or symbols
BATCH = "batch"  # batch
SCRATCH = "scratch"  # batch, bytes: what the kernels of one call pass on to each other

_LAST = {ACTS: "v", ROWS: "r", COLUMNS: "c", SCORES: "l", LABELS: "l", SCRATCH: "s"}
WITH_FRAMES = (ACTS, ROWS, COLUMNS, FRAMES, SCORES)


class Signature(NamedTuple):
    operands: tuple[str, ...]
    results: tuple[str, ...]


_PROBLEM = (ACTS, LABELS, BATCH)
_KEPT = (*_PROBLEM, ROWS, COLUMNS)

SIGNATURES = {
    "loss": Signature(_PROBLEM, (BATCH,)),
    "forward": Signature(_PROBLEM, (BATCH, ROWS, COLUMNS)),
    "tangent": Signature((*_KEPT, ACTS), (BATCH,)),
    "cotangent": Signature((*_KEPT, BATCH), (ACTS,)),
    "hvp": Signature((*_KEPT, BATCH, ACTS), (ACTS,)),
    "left_out": Signature((SCORES, LABELS, BATCH, FRAMES, FRAMES, FRAMES), (BATCH,)),
    "sums": Signature(_PROBLEM, (FRAMES, FRAMES, FRAMES, SCORES)),
    "sums_centre": Signature((*_PROBLEM, FRAMES, ACTS), (FRAMES,)),
    "sums_tangent": Signature((*_PROBLEM, FRAMES, ACTS, FRAMES), (FRAMES, SCORES)),
    "sums_cotangent": Signature((*_PROBLEM, FRAMES, FRAMES, SCORES), (ACTS,)),
}


def axis_names(kind: str, batch_rank: int, time_axis: int) -> list[str]:
    """The axes of an array of this kind by name: b0, b1, ..., t, and v, r, c or l."""
    names = [f"b{i}" for i in range(batch_rank)]
    if kind in WITH_FRAMES:
        names.insert(time_axis, "t")
    if kind in _LAST:
        names.append(_LAST[kind])
    return names


def is_dense(V: Any, L: Any) -> bool | None:
    """Whether training keeps the gradient itself (V columns) rather than occupancies (L + 1). None
    where sizes are symbolic (jax.export) and it may be either."""
    try:
        return bool(V <= L + 1)
    except _INCONCLUSIVE:
        return None


def kept_sizes(V: Any, L: Any) -> tuple[Any, Any]:
    """Last axes of rows and columns. Symbolic ones become what is right at run time."""
    dense = is_dense(V, L)
    if dense is not None:
        return (0, V) if dense else (2, L + 1)
    return core.min_dim(2, 2 * core.max_dim(0, V - L - 1)), core.min_dim(V, L + 1)


def cost_dtype(acts_dtype: Any) -> np.dtype:
    """float64 for float64 acts, else float32."""
    return np.dtype(np.float64 if acts_dtype == np.float64 else np.float32)

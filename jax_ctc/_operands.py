# SPDX-License-Identifier: Apache-2.0
"""The operands and results of each primitive: their axes, shapes, dtypes and shardings.

Batch axes come first and in the same order everywhere. Arrays that have a time axis carry it at
position `time_axis` among the batch axes, plus at most one trailing axis. The caller's axis order
is kept, so no array is transposed.

A size may be symbolic (jax.export). It then computes like an int, but some comparisons raise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, core
from jax.core import ShapedArray
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

# JAX 0.7 has it in jax.core, later releases in jax.errors.
_INCONCLUSIVE: type[Exception] = (
    getattr(jax.errors, "InconclusiveDimensionOperation", None)
    or core.InconclusiveDimensionOperation  # pyright: ignore[reportAttributeAccessIssue]
)


def rounded(acts: Array) -> Array:
    """Returns acts, rounded to their dtype even if the program that is compiled computes them. XLA
    would convert halves back from numbers that it has not rounded, while kernels see rounded ones.
    """
    return jax.lax.optimization_barrier(acts) if acts.dtype.itemsize <= 2 else acts


def used(shape: tuple[int, ...], lengths: Array, time_axis: int) -> Array:
    """Returns which frames are in use, of the shape (batch with T)."""
    frame = jax.lax.broadcasted_iota(jnp.int32, shape, time_axis)
    return frame < jnp.expand_dims(lengths, time_axis)


def along_last_axis(f: Callable[..., Array], axes: int) -> Callable[..., Array]:
    """Returns f, which takes arrays without batch, mapped over so many leading axes of its arrays.
    They become batching dimensions, which a partitioner can split."""
    for _ in range(axes):
        f = jax.vmap(f)
    return f


def invalid(labels: Array, lengths: Array, *, T: int, V: int, blank: int) -> Array:
    """Returns which sequences have a label or a length that is not valid. Padding is negative."""
    return ((labels >= V) | (labels == blank)).any(-1) | (lengths < 0) | (lengths > T)


def in_loop(x: Array, i: Array) -> tuple[Array, Array]:
    """Returns an array and the index of a loop step that reads a part of it. XLA on a CPU does not
    slice bfloat16: it would convert the whole array before the loop. The barrier keeps the
    conversion in the loop, where it is fused with the slice."""
    return jax.lax.optimization_barrier((x, i)) if x.dtype == jnp.bfloat16 else (x, i)


Entry = TypeVar("Entry")
SpecEntry = str | tuple[str, ...] | None  # of a PartitionSpec: the mesh axes of one array axis


@dataclass(frozen=True)
class Kind:
    """Which axes one operand or result has beside those of the batch."""

    has_time: bool
    last: str | None = None  # name of the trailing axis
    is_integer: bool = False  # int32

    def axes(
        self, batch: Sequence[Entry], time: Entry, time_axis: int, last: Mapping[str, Entry]
    ) -> list[Entry]:
        """Returns one entry per axis, in the order of the array. Entries are sizes, names or mesh
        axes. `last` has an entry for each trailing axis by name."""
        entries = list(batch)
        if self.has_time:
            entries.insert(time_axis, time)
        if self.last is not None:
            entries.append(last[self.last])
        return entries

    def axis_names(self, batch_rank: int, time_axis: int) -> list[str]:
        batch = [f"batch{i}" for i in range(batch_rank)]
        return self.axes(batch, "time", time_axis, {name: name for name in _TRAILING})


_TRAILING = ("class", "factor", "column", "label", "byte", "path")

ACTS = Kind(has_time=True, last="class")  # V
ROWS = Kind(has_time=True, last="factor")  # 2: shift and scale of the softmax; 0 if dense or scores
COLUMNS = Kind(has_time=True, last="column")  # min(L + 1, V)
FRAMES = Kind(has_time=True)
PATH = Kind(has_time=True, is_integer=True)  # a class, or a position among the labels, or -1
SCORES = Kind(has_time=True, last="label")  # L: one number for each symbol
LABELS = Kind(has_time=False, last="label")  # L; or symbols
BATCH = Kind(has_time=False)
PATHS = Kind(has_time=True, last="path", is_integer=True)  # labels: one at most for each frame
PATH_LENGTHS = Kind(has_time=False, last="path", is_integer=True)
PATH_SCORES = Kind(has_time=False, last="path")
SCRATCH = Kind(has_time=False, last="byte")  # what the kernels of one call pass to each other


class Signature(NamedTuple):
    operands: tuple[Kind, ...]
    results: tuple[Kind, ...]


_PROBLEM = (ACTS, LABELS, BATCH)
_KEPT = (*_PROBLEM, ROWS, COLUMNS)

SIGNATURES = {
    "loss": Signature(_PROBLEM, (BATCH,)),
    "forward": Signature(_PROBLEM, (BATCH, ROWS, COLUMNS)),
    "tangent": Signature((*_KEPT, ACTS), (BATCH,)),
    "cotangent": Signature((*_KEPT, BATCH), (ACTS,)),
    "hvp": Signature((*_KEPT, BATCH, ACTS), (ACTS,)),
    "masked_hvp": Signature((*_KEPT, BATCH, ACTS), (ACTS,)),
    "align": Signature(_PROBLEM, (PATH, PATH, BATCH)),
    "left_out": Signature((SCORES, LABELS, BATCH, FRAMES, FRAMES, FRAMES), (BATCH,)),
    "sums": Signature(_PROBLEM, (FRAMES, FRAMES, FRAMES, SCORES)),
    "sums_centre": Signature((*_PROBLEM, FRAMES, ACTS), (FRAMES,)),
    "sums_tangent": Signature((*_PROBLEM, FRAMES, ACTS, FRAMES), (FRAMES, SCORES)),
    "sums_cotangent": Signature((*_PROBLEM, FRAMES, FRAMES, SCORES), (ACTS,)),
    "top_class": Signature(_PROBLEM, (PATH, FRAMES, FRAMES)),  # L = 0: there are no labels
    "beam": Signature(_PROBLEM, (PATHS, PATH_LENGTHS, PATH_SCORES)),  # L = 0
}


def is_dense(V: int, L: int) -> bool | None:
    """Says whether the residuals are dense: the gradient itself (V columns) instead of occupancies
    (L + 1 columns). Returns None if sizes are symbolic and either is possible."""
    try:
        return bool(V <= L + 1)
    except _INCONCLUSIVE:
        return None


def kept_sizes(V: int, L: int, softmax: bool = True) -> tuple[int, int]:
    """Returns the sizes of the last axes of rows and columns. If V or L is symbolic, so are these
    sizes."""
    dense = is_dense(V, L)
    if dense is not None:
        return (2 if softmax and not dense else 0), (V if dense else L + 1)
    factors = core.min_dim(2, 2 * core.max_dim(0, V - L - 1)) if softmax else 0
    return factors, core.min_dim(V, L + 1)


def has_softmax(acts: Array) -> Array:
    """Returns whether each row has a softmax: no NaN, no +inf, and an entry above -inf."""
    # XLA's maximum may lose a NaN.
    return ~jnp.isnan(acts).any(-1) & jnp.isfinite(acts.max(-1, initial=-jnp.inf))


def cost_dtype(acts_dtype: DTypeLike) -> np.dtype:
    """Returns float64 for float64 acts, else float32."""
    return np.dtype(np.float64 if acts_dtype == np.float64 else np.float32)


def result_avals(
    op: str,
    acts: ShapedArray,
    labels: ShapedArray,
    *,
    time_axis: int,
    softmax: bool = True,
    top_paths: int = 0,
    **_,
) -> list[ShapedArray]:
    """Returns the types of the results. Batch axes stay where acts have them, and so does their
    sharding. The parameters are those of the primitive."""
    kinds = SIGNATURES[op].results
    V, L = acts.shape[-1], labels.shape[-1]
    # Symbolic sizes are compared only if the op has such results.
    factors, columns = kept_sizes(V, L, softmax) if COLUMNS in kinds else (0, 0)
    sizes = {"class": V, "factor": factors, "column": columns, "label": L, "path": top_paths}
    batch = list(acts.shape[:-1])
    T = batch.pop(time_axis)
    mesh, of_batch = acts.sharding.mesh, batch_spec(acts, time_axis)

    def dtype_of(kind: Kind) -> np.dtype:
        if kind.is_integer:
            return np.dtype(np.int32)
        return acts.dtype if kind is ACTS else cost_dtype(acts.dtype)

    def aval(kind: Kind) -> ShapedArray:
        spec = kind.axes(of_batch, None, time_axis, dict.fromkeys(sizes))
        return acts.update(
            shape=tuple(kind.axes(batch, T, time_axis, sizes)),
            dtype=dtype_of(kind),
            weak_type=False,
            sharding=NamedSharding(mesh, PartitionSpec(*spec)),
        )

    return [aval(kind) for kind in kinds]


def batch_spec(acts: ShapedArray, time_axis: int) -> list[SpecEntry]:
    """Returns the mesh axes over which the type of acts shards its batch axes. Raises TypeError if
    the type shards T or V."""
    spec = list(acts.sharding.spec)
    for axis, name in ((time_axis, "time"), (acts.ndim - 1, "class")):
        if spec[axis] is not None:
            raise TypeError(
                f"`acts`: expected its {name} axis ({axis}) replicated, but its "
                f"type has it sharded over {spec[axis]!r}: {acts}. Shard batch axes only, or "
                "reshard it first (jax.sharding.reshard)."
            )
    del spec[-1], spec[time_axis]
    return spec

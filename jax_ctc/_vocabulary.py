# SPDX-License-Identifier: Apache-2.0
"""The loss of acts whose classes are spread over the devices of a mesh axis.

Each device reduces its slice of V to a row of few numbers, these are summed over the axis, and the
lattice runs on what results (_compact.py). What goes over the wire are (T, B) maxima and (T, B,
L + 3) sums, forward; backward nothing but what the split of the batch asks for; V is in none of it.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from . import _arguments, _compact, _primitives

Names = tuple[str, ...]


def axes_of(acts: Any, vocab_axis: str | Names | None) -> Names:
    """The mesh axes that V is spread over: those named, else those in the type of acts (explicit
    sharding). Raises TypeError (no name) and ValueError (no such axis, or no mesh)."""
    if vocab_axis is None:
        return _typed_axes(acts, acts.ndim - 1)
    names = vocab_axis if isinstance(vocab_axis, tuple) else (vocab_axis,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "`vocab_axis`: expected the name of a mesh axis, or a tuple of names, got "
            f"{vocab_axis!r}."
        )
    mesh = jax.sharding.get_abstract_mesh()
    missing = [name for name in names if name not in mesh.axis_names]
    if missing:
        has = f"has the axes {mesh.axis_names}" if mesh.axis_names else "is not set"
        raise ValueError(
            f"`vocab_axis`: expected an axis of the mesh in use, got {missing[0]!r}, but the mesh "
            f"{has}. Set one with jax.set_mesh(mesh), or call from inside jax.shard_map."
        )
    return names


def _typed_axes(x: Any, axis: int) -> Names:
    """The mesh axes in explicit mode that an axis of x is spread over."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    entry = ([*sharding.spec, *[None] * x.ndim] if sharding is not None else [None] * x.ndim)[axis]
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def slices_at_hand(names: Names) -> int | None:
    """In how many slices V is split where this device sees only its own: inside a shard_map over
    these axes; None elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = [name for name in names if name in mesh.manual_axes]
    if manual and len(manual) < len(names):
        raise ValueError(
            f"`vocab_axis`: expected all of {names} in the axis_names of the surrounding "
            f"shard_map, which has {tuple(mesh.manual_axes)}."
        )
    return math.prod(mesh.shape[name] for name in manual) if manual else None


def cost(a: _arguments.Arguments, names: Names, threads: int) -> Array:
    """Costs of `a`, whose acts are a slice (inside a shard_map over `names`) or whole."""
    slices = partial(
        _cost_of_slices, time_axis=a.time_axis, blank=a.blank, names=names, threads=threads
    )
    if slices_at_hand(names) is not None:
        return slices(a.acts, a.labels, a.lengths)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names:  # a concrete array says where it is
        mesh = jax.typeof(a.acts).sharding.mesh
    count = math.prod(mesh.shape[name] for name in names)
    V = a.acts.shape[-1]
    if V % count:
        raise ValueError(
            f"`acts`: expected V to be a multiple of the {count} devices along mesh axis "
            f"{', '.join(map(repr, names))}, got V = {V}. Pad the classes with logits of -inf."
        )
    if count == 1 and not _typed_axes(a.acts, a.acts.ndim - 1):
        return _primitives.loss_p.bind(
            a.acts, a.labels, a.lengths, time_axis=a.time_axis, blank=a.blank, threads=threads
        )
    # Where types say how the batch is spread those axes are manual too; all others stay open.
    specs: list[Any] = [_typed_axes(a.acts, axis) or None for axis in range(a.acts.ndim - 1)]
    if specs[a.time_axis] is not None:
        raise TypeError(
            f"`acts`: expected its time axis ({a.time_axis}) whole on every device, but its type "
            f"has it sharded over {specs[a.time_axis]}. Reshard it first (jax.sharding.reshard)."
        )
    batch = [spec for axis, spec in enumerate(specs) if axis != a.time_axis]
    return jax.shard_map(
        slices,
        mesh=mesh,
        in_specs=(P(*specs, names), P(*batch), P(*batch)),
        out_specs=P(*batch),
        axis_names={*names, *(name for spec in batch for name in spec or ())},
    )(a.acts, a.labels, a.lengths)


def _cost_of_slices(
    acts: Array,
    labels: Array,
    lengths: Array,
    *,
    time_axis: int,
    blank: int,
    names: Names,
    threads: int,
) -> Array:
    """On each device: acts (T, B, V / M), or another order, of the V of all M devices."""
    M, slice_size = lax.psum(1, names), acts.shape[-1]
    symbols, columns = _compact.symbols_of(labels, blank, M * slice_size)
    here = symbols - lax.axis_index(names) * slice_size
    here = jnp.where((symbols >= 0) & (here >= 0) & (here < slice_size), here, -1)
    alike = _arguments.vary_alike(acts, here, lengths)
    part = _compact.rows(alike[0], alike[1], alike[2], time_axis, threads)
    p: dict[str, Any] = {"time_axis": time_axis, "blank": 0, "threads": threads}

    def lattice(rows: _compact.Rows, symbols: Array, columns: Array, lengths: Array) -> Array:
        few = _compact.acts_of(rows, symbols, time_axis)
        few, columns, lengths = _arguments.vary_alike(few, columns, lengths)
        return _primitives.loss_p.bind(few, columns, lengths, **p)

    # Each device runs the lattice of its part of the batch where there are parts: the bytes are the
    # same, and the work is not done M times. Not where the batch is spread in ways unknown here.
    mesh = jax.sharding.get_abstract_mesh()
    known = all(name in mesh.manual_axes or mesh.shape[name] == 1 for name in mesh.axis_names)
    B = lengths.shape[0] if lengths.ndim == 1 else 0
    if not known or B == 0 or B % M:
        return lattice(_compact.over_slices(part, names), symbols, columns, lengths)
    mine = lax.axis_index(names) * (B // M)

    def own(x: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, mine, B // M, 0)

    some = _compact.over_slices(part, names, scatter=1 - time_axis)
    costs = lattice(some, own(symbols), own(columns), own(lengths))
    return _gathered(costs, names)


def _gathered(part: Array, names: Names) -> Array:
    """(B / M,) on each of M devices as (B,) on all: a sum in which each adds its own."""
    size = part.shape[0]
    everyone = jnp.zeros_like(part, shape=(size * lax.psum(1, names),))
    return lax.psum(
        lax.dynamic_update_slice_in_dim(everyone, part, lax.axis_index(names) * size, 0), names
    )

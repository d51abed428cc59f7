# SPDX-License-Identifier: Apache-2.0
"""The loss of acts whose classes are sharded over the devices of a mesh axis.

Each device reduces its slice of V to a few numbers per frame. A maximum and a sum over the mesh
axis combine them, and the recursion runs on the result (few_classes.py). The forward pass
communicates (T, B) maxima and (T, B, L + 3) sums. The backward pass communicates the gradient of
these sums, and only if the recursion is divided among the devices. No message has a size that
depends on V.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from . import _arguments, _mesh, _primitives
from ._primitives import few_classes

Names = tuple[str, ...]


def axes_of(acts: Array, vocab_axis: str | Names | None) -> Names:
    """Returns the mesh axes over which V is sharded: those named, else those in the type of acts
    (explicit sharding). Raises TypeError (no name) and ValueError (no such axis, or no mesh)."""
    typed = _mesh.sharded_over(acts, acts.ndim - 1) if acts.ndim else ()
    if vocab_axis is None:
        return typed
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
    if len(set(names)) < len(names):
        raise ValueError(f"`vocab_axis`: expected every axis once, got {names}.")
    if typed and typed != names:
        raise ValueError(
            f"`vocab_axis`: expected {_listed(typed)}, over which the type of `acts` has its "
            f"classes, got {_listed(names)}. It need not be given where types say it."
        )
    return names


def local_slices(names: Names) -> int | None:
    """Returns the number of slices of V inside a shard_map over these axes, where each device sees
    only its own slice. Returns None elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = [name for name in names if name in mesh.manual_axes]
    if manual and len(manual) < len(names):
        raise ValueError(
            f"`vocab_axis`: expected all of {names} in the axis_names of the surrounding "
            f"shard_map, which has {tuple(mesh.manual_axes)}."
        )
    return math.prod(mesh.shape[name] for name in manual) if manual else None


def cost(a: _arguments.Arguments, names: Names, threads: int) -> Array:
    """Returns the costs of `a`. Inside a shard_map over `names` its acts are a slice; elsewhere
    they have all classes."""
    slices = partial(
        _cost_of_slices, time_axis=a.time_axis, blank=a.blank, names=names, threads=threads
    )
    if local_slices(names) is not None:
        _check_variation(a, names)
        return slices(a.acts, a.labels, a.lengths)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names:  # then acts are a concrete array, and its type has a mesh
        mesh = jax.typeof(a.acts).sharding.mesh
    count = math.prod(mesh.shape[name] for name in names)
    V = a.acts.shape[-1]
    if V % count:
        raise ValueError(
            f"`acts`: expected V to be a multiple of the {count} devices along mesh axis "
            f"{_listed(names)}, got V = {V}. Pad the classes with logits of -inf."
        )
    # Axes over which types shard the batch become manual too. All others stay as they are.
    sharded = [_mesh.sharded_over(a.acts, axis) for axis in range(a.acts.ndim - 1)]
    if sharded[a.time_axis]:
        raise TypeError(
            f"`acts`: expected its time axis ({a.time_axis}) replicated, but its type "
            f"has it sharded over {sharded[a.time_axis]}. Reshard it first (jax.sharding.reshard)."
        )
    batch = [axes for axis, axes in enumerate(sharded) if axis != a.time_axis]
    taken = [name for axes in batch for name in axes if name in names]
    if taken:
        raise ValueError(
            f"`vocab_axis`: expected axes that shard nothing else, but the type of `acts` has its "
            f"batch over {_listed(tuple(taken))}: {jax.typeof(a.acts)}."
        )
    if count == 1 and not _mesh.sharded_over(a.acts, a.acts.ndim - 1):
        return _primitives.loss_p.bind(
            a.acts, a.labels, a.lengths, time_axis=a.time_axis, blank=a.blank, threads=threads
        )
    specs = P(*(axes or None for axes in sharded), names), *[P(*(x or None for x in batch))] * 2
    arguments = (a.acts, a.labels, a.lengths)
    if _mesh.explicit_axes(mesh):  # in other modes shard_map reshards its arguments
        shardings = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in specs)
        arguments = jax.sharding.reshard(arguments, shardings)
    return jax.shard_map(
        slices,
        mesh=mesh,
        in_specs=specs,
        out_specs=specs[2],
        axis_names={*names, *(name for axes in batch for name in axes)},
    )(*arguments)


def _check_variation(a: _arguments.Arguments, names: Names) -> None:
    """Raises ValueError if acts are the same on all devices of an axis in `names`, or if labels or
    lengths differ. Types say so inside shard_map, except with check_vma=False."""
    if not all(_mesh.varying_axes(lax.axis_index(name)) for name in names):
        return
    alike = set(names) - _mesh.varying_axes(a.acts)
    if alike:
        raise ValueError(
            "`acts`: expected a slice of the classes on each device of mesh axis "
            f"{_listed(names)}, but it is the same all along {_listed(tuple(sorted(alike)))}. Its "
            "in_spec must name that axis in the last place."
        )
    for what, x in (("labels", a.labels), ("lengths", a.lengths)):
        different = set(names) & _mesh.varying_axes(x)
        if different:
            raise ValueError(
                f"`{what}`: expected the same on every device of mesh axis {_listed(names)}, over "
                f"which the classes are sharded, but it differs along "
                f"{_listed(tuple(sorted(different)))}. Its in_spec must not name that axis."
            )


def _listed(names: Names) -> str:
    return ", ".join(map(repr, names))


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
    """Runs on each of M devices, with acts (T, B, V / M) or (B, T, V / M)."""
    M, slice_size = lax.psum(1, names), acts.shape[-1]
    symbols, few_labels = few_classes.symbols_of(labels, blank, M * slice_size)
    local = symbols - lax.axis_index(names) * slice_size
    local = jnp.where((symbols >= 0) & (local >= 0) & (local < slice_size), local, -1)
    alike = _mesh.vary_alike(acts, local, lengths)
    part = few_classes.sums_of(alike[0], alike[1], alike[2], time_axis, threads)
    params = {"time_axis": time_axis, "blank": 0, "threads": threads}

    def costs_of(sums: few_classes.Sums, symbols: Array, labels: Array, lengths: Array) -> Array:
        few_acts = few_classes.acts_of(sums, symbols, time_axis)
        few_acts, labels, lengths = _mesh.vary_alike(few_acts, labels, lengths)
        few_cost = _primitives.loss_p.bind(few_acts, labels, lengths, **params)
        return few_classes.cost_of(few_cost, sums, symbols, lengths, time_axis)

    # If M divides the batch, each device runs the recursion for 1/M of the sequences, instead of
    # all M devices running all of them. The volume communicated is the same. Device m takes
    # sequences m, m + M, m + 2M, ...: the batch may also be sharded over other mesh axes that are
    # not visible here, and a strided split leaves that sharding as it is.
    mesh = jax.sharding.get_abstract_mesh()
    invisible = math.prod(n for name, n in mesh.shape.items() if name not in mesh.manual_axes)
    B = lengths.shape[0] if lengths.ndim == 1 else 0
    if B == 0 or B % (M * invisible):
        sums = few_classes.over_slices(part, names, share=None, scatters=False)
        return costs_of(sums, symbols, few_labels, lengths)

    def shares(x: Array, axis: int = 0) -> Array:
        return x.reshape(*x.shape[:axis], B // M, M, *x.shape[axis + 1 :])

    def own(x: Array) -> Array:
        return lax.dynamic_index_in_dim(shares(x), lax.axis_index(names), 1, keepdims=False)

    batch_axis = 1 - time_axis
    shared = few_classes.Sums(*(shares(x, batch_axis) for x in part))
    # If other axes are not manual, a reduce-scatter would first gather over them.
    scatters = invisible == 1
    sums = few_classes.over_slices(shared, names, batch_axis + 1, scatters=scatters)
    costs = costs_of(sums, own(symbols), own(few_labels), own(lengths))
    return _gathered(costs, names)


def _gathered(part: Array, names: Names) -> Array:
    """Returns (B,) on all M devices, from (B / M,), every M-th of B, on each. This is a sum in
    which each device contributes its own part."""
    M = lax.psum(1, names)
    everyone = jnp.zeros_like(part, shape=(part.shape[0], M))
    mine = lax.dynamic_update_index_in_dim(everyone, part, lax.axis_index(names), 1)
    return lax.psum(mine, names).reshape(-1)

# SPDX-License-Identifier: Apache-2.0
"""The loss of acts whose classes are sharded over the devices of a mesh axis.

Each device reduces its slice of V to a few numbers per frame. A maximum and a sum over the mesh
axis combine them, and the recursion runs on the result (few_classes.py). The forward pass
communicates (T, B) maxima and (T, B, L + 3) sums. The backward pass communicates the gradient of
these sums, and only if the recursion is divided among the devices. No message has a size that
depends on V.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from . import _arguments, _mesh, _primitives
from ._primitives import few_classes

Names = tuple[str, ...]


def axes_of(x: Array, vocab_axis: str | Names | None, name: str = "acts") -> Names:
    """Returns the mesh axes over which V is sharded: those named, else those in the type of x
    (explicit sharding), whose last axis is V. Raises TypeError (no name) and ValueError (no such
    axis, or no mesh)."""
    typed = _mesh.sharded_over(x, x.ndim - 1) if x.ndim else ()
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
            f"`vocab_axis`: expected {_listed(typed)}, over which the type of `{name}` has its "
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


@dataclass(frozen=True)
class Source:
    """The arrays that hold the classes, and how a device reduces its slice of them."""

    arrays: tuple[Array, ...]  # the first has the batch and T
    have_classes: tuple[bool, ...]  # whether their last axis is V
    name: str  # of the argument that holds the classes
    # Of arrays, symbols, lengths. Of log-scores: their entries at the symbols.
    sums: Callable[[tuple[Array, ...], Array, Array], few_classes.Sums | Array]
    softmax: bool = True  # False for log-scores

    @property
    def classes(self) -> Array:
        return self.arrays[self.have_classes.index(True)]


def source_of_acts(acts: Array, time_axis: int, threads: int) -> Source:
    def sums(arrays: tuple[Array, ...], symbols: Array, lengths: Array) -> few_classes.Sums:
        acts, symbols, lengths = _mesh.vary_alike(*arrays, symbols, lengths)
        return few_classes.sums_of(acts, symbols, lengths, time_axis, threads)

    return Source((acts,), (True,), "acts", sums)


def source_of_scores(scores: Array, time_axis: int) -> Source:
    """Of log-scores, whose rows are not summed."""

    def sums(arrays: tuple[Array, ...], symbols: Array, lengths: Array) -> Array:
        scores, symbols, lengths = _mesh.vary_alike(*arrays, symbols, lengths)
        return few_classes.scores_of(scores, symbols, lengths, time_axis)

    return Source((scores,), (True,), "acts", sums, softmax=False)


def cost(a: _arguments.Arguments, source: Source, names: Names, threads: int) -> Array:
    """Returns the costs of `a`. Inside a shard_map over `names` the source is a slice; elsewhere
    it has all classes."""

    def of_slices(labels: Array, lengths: Array, *arrays: Array) -> Array:
        part = replace(source, arrays=arrays)
        return _cost_of_slices(
            part, labels, lengths, V=a.V, time_axis=a.time_axis, blank=a.blank, names=names,
            threads=threads,
        )  # fmt: skip

    if local_slices(names) is not None:
        _check_variation(a, source, names)
        return of_slices(a.labels, a.lengths, *source.arrays)
    mesh = jax.sharding.get_abstract_mesh()
    frames = source.arrays[0]
    if not mesh.axis_names:  # then arrays are concrete, and the types of some have a mesh
        mesh = _mesh.mesh_of(source.arrays)
    count = math.prod(mesh.shape[name] for name in names)
    _check_types(a, source, names, count)
    # Axes over which types may shard the batch become manual too. All others stay as they are.
    sharded = [_mesh.sharded_over(frames, axis) for axis in range(frames.ndim - 1)]
    batch = [axes for axis, axes in enumerate(sharded) if axis != a.time_axis]
    if count == 1 and source.name == "acts" and not _mesh.sharded_over(frames, frames.ndim - 1):
        return _primitives.loss_p.bind(
            frames, a.labels, a.lengths, time_axis=a.time_axis, blank=a.blank, threads=threads,
            softmax=source.softmax,
        )  # fmt: skip
    manual = {*names, *(name for axes in batch for name in axes), *_mesh.explicit_axes(mesh)}
    if not manual:
        return of_slices(a.labels, a.lengths, *source.arrays)
    of_batch = P(*(x or None for x in batch))
    specs = [of_batch, of_batch]
    for x, has_classes in zip(source.arrays, source.have_classes, strict=True):
        before = sharded if x is frames else [()] * (x.ndim - 1)
        specs.append(P(*(axes or None for axes in before), names if has_classes else None))
    arguments = [a.labels, a.lengths, *source.arrays]
    if explicit := _mesh.explicit_axes(mesh):  # in other modes shard_map reshards its arguments
        arguments = [
            jax.sharding.reshard(x, jax.sharding.NamedSharding(mesh, _only(explicit, spec)))
            for x, spec in zip(arguments, specs, strict=True)
        ]
    return jax.shard_map(
        of_slices, mesh=mesh, in_specs=tuple(specs), out_specs=of_batch, axis_names=manual
    )(*arguments)


def _check_types(a: _arguments.Arguments, source: Source, names: Names, count: int) -> None:
    """Raises ValueError if V has no equal slices for the devices along `names`, or if types shard
    the batch over them, and TypeError if they shard time."""
    if a.V % count:
        remedy = (
            "Pad the classes with logits of -inf."
            if source.name == "acts"
            else "Pad the classes with columns of 0 and a bias of -inf."
        )
        raise ValueError(
            f"`{source.name}`: expected V to be a multiple of the {count} devices along mesh axis "
            f"{_listed(names)}, got V = {a.V}. {remedy}"
        )
    frames = source.arrays[0]
    of_frames = "acts" if source.have_classes[0] else "hidden"
    sharded = [_mesh.sharded_over(frames, axis) for axis in range(frames.ndim - 1)]
    if over := sharded.pop(a.time_axis):
        raise TypeError(
            f"`{of_frames}`: expected its time axis ({a.time_axis}) replicated, but its type "
            f"has it sharded over {over}. Reshard it first (jax.sharding.reshard)."
        )
    taken = tuple(name for axes in sharded for name in axes if name in names)
    if taken:
        expected, remedy = "`vocab_axis`: expected axes", ""
        if _mesh.sharded_over(source.classes, source.classes.ndim - 1):
            expected = f"`{source.name}`: expected V sharded over axes"
            remedy = " Reshard one of them first (jax.sharding.reshard)."
        raise ValueError(
            f"{expected} that shard nothing else, but the type of `{of_frames}` has its batch over "
            f"{_listed(taken)}: {jax.typeof(frames)}.{remedy}"
        )


def _only(names: Names, spec: P) -> P:
    """Returns the spec without other axes. Types name axes in explicit mode alone."""
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return P(*(tuple(name for name in entry if name in names) or None for entry in entries))


def _check_variation(a: _arguments.Arguments, source: Source, names: Names) -> None:
    """Raises ValueError if the classes are the same on all devices of an axis in `names`, or if
    another argument differs. Types say so inside shard_map, except with check_vma=False."""
    if not all(_mesh.varying_axes(lax.axis_index(name)) for name in names):
        return
    alike = set(names) - _mesh.varying_axes(source.classes)
    if alike:
        raise ValueError(
            f"`{source.name}`: expected a slice of the classes on each device of mesh axis "
            f"{_listed(names)}, but it is the same all along {_listed(tuple(sorted(alike)))}. Its "
            "in_spec must name that axis in the last place."
        )
    others = [("labels", a.labels), ("lengths", a.lengths)]
    if not source.have_classes[0]:
        others.append(("hidden", source.arrays[0]))
    for what, x in others:
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
    source: Source,
    labels: Array,
    lengths: Array,
    *,
    V: int,
    time_axis: int,
    blank: int,
    names: Names,
    threads: int,
) -> Array:
    """Runs on each of M devices, whose source has V / M classes."""
    symbols, few_labels = few_classes.symbols_of(labels, blank, V)
    costs_of = partial(few_classes.cost, time_axis=time_axis, threads=threads)
    if not names:
        sums = source.sums(source.arrays, symbols, lengths)
        return costs_of(sums, symbols, few_labels, lengths)
    M, slice_size = lax.psum(1, names), source.classes.shape[-1]
    local = symbols - lax.axis_index(names) * slice_size
    local = jnp.where((symbols >= 0) & (local >= 0) & (local < slice_size), local, -1)
    part = source.sums(source.arrays, local, lengths)
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
    shared = jax.tree.map(lambda x: shares(x, batch_axis), part)
    # If other axes are not manual, a reduce-scatter would first gather over them.
    scatters = invisible == 1
    sums = few_classes.over_slices(shared, names, batch_axis + 1, scatters=scatters)
    costs = costs_of(sums, own(symbols), own(few_labels), own(lengths))
    return _gathered(costs, names)


def _gathered(part: Array, names: Names) -> Array:
    """Returns (B,) on all M devices, from (B / M,), every M-th of B, on each. It is a sum in which
    each device contributes its own part, because the type of a sum says that it is the same on all
    devices, and that of an all_gather does not."""
    is_own = lax.iota(jnp.int32, lax.psum(1, names)) == lax.axis_index(names)
    return lax.psum(jnp.where(is_own, part[:, None], 0), names).reshape(-1)

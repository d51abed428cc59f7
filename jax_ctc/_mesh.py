# SPDX-License-Identifier: Apache-2.0
"""Mesh axes: which of them shard a value, over which it varies, and whether XLA partitions it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import ShapedArray
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec


def sharded_over(x: Array, axis: int) -> tuple[str, ...]:
    """Returns the mesh axes over which the type of x shards the given axis (explicit sharding)."""
    entry = jax.typeof(x).sharding.spec[axis]
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def resharded(x: Array, spec: Sequence[tuple[str, ...]], mesh: AbstractMesh) -> Array:
    """Returns x with a type that shards its axes over these mesh axes (explicit sharding). The mesh
    need not be set."""
    if [*spec] == [sharded_over(x, axis) for axis in range(x.ndim)]:
        return x
    entries = PartitionSpec(*(axes or None for axes in spec))
    return jax.sharding.reshard(x, NamedSharding(mesh, entries))


def sharded_with(x: Array, other: Array, axes: Sequence[int | None]) -> Array:
    """Returns x, resharded if its type shards it otherwise than another array (explicit sharding).
    `axes` has the axis of the other one for each axis of x, or None, which is replicated. An array
    that nothing shards stays so, because JAX accepts it beside any other."""
    if not any(sharded_over(x, axis) for axis in range(x.ndim)):
        return x
    spec = [() if axis is None else sharded_over(other, axis) for axis in axes]
    return resharded(x, spec, jax.typeof(x).sharding.mesh)


def varying_axes(x: Array) -> frozenset[str]:
    """Returns the manual mesh axes over which x differs from device to device."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)  # jax >= 0.10; `vma` before
    return frozenset(manual.varying if manual is not None else getattr(aval, "vma", ()))


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """Makes all arrays vary over the same mesh axes, as shard_map requires of operands."""
    axes = frozenset().union(*map(varying_axes, arrays))

    def cast(x: Array) -> Array:
        missing = tuple(sorted(axes - varying_axes(x)))
        if not missing:
            return x
        if hasattr(lax, "pcast"):  # jax >= 0.8; pvary before
            return lax.pcast(x, missing, to="varying")
        return getattr(lax, "pvary")(x, missing)  # noqa: B009

    return tuple(map(cast, arrays))


def mapped_over(args: Sequence[Array], dims: Sequence[int | None]) -> tuple[str, ...]:
    """Returns the mesh axes over which the types of operands shard the mapped axis of a vmap."""
    found = [sharded_over(x, d) for x, d in zip(args, dims, strict=True) if d is not None]
    return max(found, key=len)


def mapped_size(args: Sequence[Array], dims: Sequence[int | None]) -> int:
    """Returns the size of the mapped axis of a vmap."""
    return next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)


def mapped_to_front(args: Sequence[Array], dims: Sequence[int | None]) -> list[Array]:
    """Returns the operands with the mapped axis in front of all others."""
    size = mapped_size(args, dims)
    return [
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(args, dims, strict=True)
    ]


def mesh_of(args: Sequence[Array]) -> AbstractMesh:
    """Returns the mesh of the types of operands, which may not be set. It is empty if no type has
    one."""
    meshes = [jax.typeof(x).sharding.mesh for x in args]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


def explicit_axes(mesh: AbstractMesh) -> tuple[str, ...]:
    """Returns the mesh axes in explicit mode, in which types say how values are sharded."""
    kinds = zip(mesh.axis_names, mesh.axis_types or (), strict=False)
    return tuple(name for name, kind in kinds if kind == jax.sharding.AxisType.Explicit)


def with_auto_axes(f: Callable, results: ShapedArray | Sequence[ShapedArray]) -> Callable:
    """Returns f with all mesh axes in auto mode, so that the partitioner chooses the sharding of
    its intermediate arrays, in explicit mode too. `results` is the type of its result, or a list of
    types if it returns a list."""
    shardings = jax.tree.map(lambda aval: aval.sharding, results)  # their mesh may not be set
    axes = explicit_axes(jax.tree.leaves(shardings)[0].mesh)
    return jax.sharding.auto_axes(f, axes=axes, out_sharding=shardings) if axes else f


def taken_along(x: Array, places: Array) -> Array:
    """Returns x at `places` of its last axis. The result is sharded as `places` are. In explicit
    mode JAX has no rule for it if a vmap goes over an axis that shards `places` alone."""
    result = jax.typeof(places).update(dtype=x.dtype)

    def take(x: Array, places: Array) -> Array:
        return jnp.take_along_axis(x, places, axis=-1)

    return with_auto_axes(take, result)(x, places)


def is_unpartitioned(ctx: mlir.LoweringRuleContext) -> bool:
    """Says whether no partitioner will split the module: one device, or all mesh axes manual."""
    context = getattr(getattr(ctx, "module_context", None), "axis_context", None)
    if getattr(context, "num_devices", None) == 1:
        return True
    manual, mesh = getattr(context, "manual_axes", None), getattr(context, "mesh", None)
    if manual is None or mesh is None:
        return False
    return frozenset(manual) == frozenset(mesh.axis_names)

# SPDX-License-Identifier: Apache-2.0
"""Compiles programs for eight NVIDIA GPUs without having one, and prints what became of them.

For test_gpu_program.py, in a process of its own: XLA's CUDA plugin is on PYTHONPATH here alone.
"""

import glob
import json
import os
import sys
import tempfile

DUMP = tempfile.TemporaryDirectory()  # removed when this process ends
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ["XLA_FLAGS"] = (
    f"--xla_dump_to={DUMP.name} --xla_dump_hlo_as_text --xla_gpu_autotune_level=0 "
    "--xla_gpu_enable_triton_gemm=false"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding  # noqa: E402

import jax_ctc  # noqa: E402
import jax_ctc._primitives.ctc as primitives  # noqa: E402

primitives.most_bytes_of_copies = 0  # hypotheses of small problems too run on few classes

# An H100 with a driver new enough for command buffers.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""
T, B, L, D = 40, 16, 9, 32
LINEAR_V, LINEAR_TILE = 5000, 1 << 18


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile()


def report(program):
    return {
        "text": program.as_text(),
        "temporaries": program.memory_analysis().temp_size_in_bytes,
    }


def arguments(place, V, time_major=True, dtype=jnp.float32, K=None):
    """Shapes of acts, labels, lengths; `place(*batch axis names)` says where they lie."""
    shape = (T, B, V) if time_major else (B, T, V)
    axes = (None, "data", None) if time_major else ("data", None, None)
    many = () if K is None else (K,)
    none = () if K is None else (None,)
    return (
        jax.ShapeDtypeStruct((*many, *shape), dtype, sharding=place(*none, *axes)),
        jax.ShapeDtypeStruct((*many, B, L), jnp.int32, sharding=place(*none, "data", None)),
        jax.ShapeDtypeStruct((*many, B), jnp.int32, sharding=place(*none, "data")),
    )


def total(time_major):
    """The loss as a model has it: acts are made and used by others."""

    def cost(acts, labels, lengths):
        return jax_ctc.ctc(acts * 2, labels, lengths, time_major=time_major).sum()

    return cost


def align(time_major):
    """The best path of acts that are made and used by others."""

    def path(acts, labels, lengths):
        return jax_ctc.ctc_align(acts * 2, labels, lengths, time_major=time_major)

    return path


def transposed(acts, labels, lengths):  # what a copy would look like
    moved = jax.lax.optimization_barrier(jnp.swapaxes(acts, 0, 1))
    return jax_ctc.ctc(moved, labels, lengths, time_major=True).sum()


def gradient_of_an_argument(acts, labels, lengths):
    return jax.value_and_grad(lambda acts: jax_ctc.ctc(acts, labels, lengths).sum())(acts)


def gradient_of_hypotheses(acts, labels, lengths):  # of acts that are made here
    costs = jax.vmap(jax_ctc.ctc, in_axes=(None, 0, None))
    return jax.value_and_grad(lambda acts: costs(acts * 2, labels, lengths).sum())(acts)


def step(w, x, labels, lengths):
    """A training step of one dense layer."""

    def cost(w):
        return jax_ctc.ctc(x @ w, labels, lengths).sum()

    value, gradient = jax.value_and_grad(cost)(w)
    return w - 0.1 * gradient, value


def linear(hidden, kernel, bias, labels, lengths):
    """An output layer of many classes, whose logits are not stored."""

    def cost(*arrays):
        options = {"bias": arrays[2], "tile_bytes": LINEAR_TILE}
        return jax_ctc.ctc_linear(*arrays[:2], labels, lengths, **options).sum()

    return jax.value_and_grad(cost, (0, 1, 2))(hidden, kernel, bias)


def main():
    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x8")
    one = SingleDeviceSharding(topology.devices[0])
    mesh = Mesh(np.array(topology.devices).reshape(8), ("data",))

    def alone(*_):
        return one

    def sharded(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    programs = {}
    for size, V in (("dense", 8), ("compact", 50)):
        for time_major in (True, False):
            for dtype in (jnp.float32, jnp.bfloat16):
                name = f"{size} {'TBV' if time_major else 'BTV'} {np.dtype(dtype).name}"
                args = arguments(alone, V, time_major, dtype)
                f = total(time_major)
                programs[f"{name} value"] = compiled(f, *args)
                programs[f"{name} gradient"] = compiled(jax.value_and_grad(f), *args)
            args = arguments(alone, V, time_major)
            name = f"{size} {'TBV' if time_major else 'BTV'}"

            def jvp(acts, *rest, f=f):
                return jax.jvp(lambda x: f(x, *rest), (acts,), (acts + 1,))

            programs[f"{name} jvp"] = compiled(jvp, *args)

            def product(acts, *rest, f=f):  # with the gradient; the direction is made too
                gradient = jax.grad(lambda x: f(x, *rest))
                return jax.jvp(gradient, (acts,), (jnp.cos(acts),))

            programs[f"{name} product"] = compiled(product, *args)
            many = arguments(alone, V, time_major, K=3)
            programs[f"{name} vmap"] = compiled(jax.vmap(jax.grad(f)), *many)
            args = arguments(sharded, V, time_major)
            programs[f"{name} sharded value"] = compiled(f, *args)
            programs[f"{name} sharded gradient"] = compiled(jax.value_and_grad(f), *args)
            programs[f"{name} sharded product"] = compiled(product, *args)
    for time_major, layout in ((True, "TBV"), (False, "BTV")):
        for kind, place in (("", alone), (" sharded", sharded)):
            args = arguments(place, 50, time_major)
            programs[f"{layout} align{kind}"] = compiled(align(time_major), *args)
    programs["transposed"] = compiled(transposed, *arguments(alone, 50, time_major=False))
    for V in (50, 5000):
        f = lambda *args: jax_ctc.ctc(*args)  # noqa: E731
        programs[f"loss alone, V = {V}"] = compiled(f, *arguments(alone, V))
    x = jax.ShapeDtypeStruct((T, B, D), jnp.float32, sharding=one)
    w = jax.ShapeDtypeStruct((D, 50), jnp.float32, sharding=one)
    programs["step"] = compiled(step, w, x, *arguments(alone, 50)[1:], donate_argnums=0)

    for name, dtype in (("linear", jnp.float32), ("linear bfloat16", jnp.bfloat16)):
        shapes = (T, B, D), (D, LINEAR_V), (LINEAR_V,)
        arrays = [jax.ShapeDtypeStruct(s, dtype, sharding=one) for s in shapes]
        programs[name] = compiled(linear, *arrays, *arguments(alone, 50)[1:])
    for size, V in (("dense", 8), ("compact", 50)):
        for donated in (False, True):
            programs[f"{size} argument{' donated' * donated}"] = compiled(
                gradient_of_an_argument, *arguments(alone, V), donate_argnums=(0,) * donated
            )
    acts, _, lengths = arguments(alone, 50)
    labels = jax.ShapeDtypeStruct((3, B, L), jnp.int32, sharding=one)
    programs["compact hypotheses"] = compiled(gradient_of_hypotheses, acts, labels, lengths)

    answer = {name: report(program) for name, program in programs.items()}
    (thunks,) = glob.glob(f"{DUMP.name}/*jit_step*.thunk_sequence_after_thunk_passes.txt")
    with open(thunks) as file:
        answer["step"]["thunks"] = file.read()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

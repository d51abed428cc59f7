# SPDX-License-Identifier: Apache-2.0
"""The GPU's machine: its parts, versions, bandwidth and overheads."""

import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

PACKAGES = ("jax", "jaxlib", "numpy", "torch", "optax", "pytest", "hypothesis")


def machine(write: Callable[..., None], tiny: bool, deadline: float) -> None:
    import jax  # imported here, so that a failed import fails in this section

    write(what="device", value=jax.devices()[0].device_kind)
    write(what="jax's default backend", value=jax.default_backend())
    for package in PACKAGES:
        try:
            write(what=package, value=importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            write(what=package, value="not installed")
    for tool in ("nvidia-smi", "compute-sanitizer", "nvcc", "ncu"):
        write(what=tool, value="found" if shutil.which(tool) else "not on the path")
    write(what="processors", value=os.cpu_count())
    write(what="XLA_FLAGS", value=os.environ.get("XLA_FLAGS", ""))
    for query in ("name,driver_version,memory.total", "clocks.max.sm,clocks.max.mem,power.limit"):
        write(what=query, value=nvidia_smi(query))

    import jax_ctc

    info = jax_ctc.build_info()
    write(what="jax_ctc for CUDA", value=info["cuda"] or "NO CUDA KERNELS: all below is pure JAX")
    write(what="jax_ctc", value=json.dumps(info))

    import jax.numpy as jnp

    from .timing import copy_bandwidth, dispatched, in_a_loop, median_of

    write(what="one small loss", value=float(one_small_loss()))
    write(what="copy, GB/s, read and written", value=copy_bandwidth(tiny) / 1e9)
    calls = dispatched(jax.jit(lambda x: x + 1), (jnp.zeros(1),), 200)
    write(what="an empty call, us", value=median_of(calls))
    chain = in_a_loop(lambda x: x + (x < 0).astype(x.dtype), jnp.zeros(16, jnp.int32), 2000)
    write(what="a step of an empty loop, us", value=median_of(chain))
    try:
        write(what="copy by torch, GB/s", value=torch_bandwidth())
    except Exception as error:
        write(what="copy by torch, GB/s", value=f"{type(error).__name__}: {str(error)[:200]}")


def nvidia_smi(query: str) -> str:
    if not shutil.which("nvidia-smi"):
        return "no nvidia-smi"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return "no answer"
    return (said.stdout or said.stderr).strip().replace("\n", "; ")


def one_small_loss() -> "jax.Array":
    import jax
    import numpy as np

    import jax_ctc

    x = np.random.default_rng(0).normal(size=(20, 2, 9)).astype(np.float32)
    labels, lengths = np.array([[1, 2, 2], [3, -1, 8]]), np.array([20, 17])
    return jax.jit(lambda x: jax_ctc.ctc(x, labels, lengths).sum())(x)


def torch_bandwidth() -> float:
    import torch

    x = torch.zeros(1 << 28, device="cuda")
    y = torch.empty_like(x)
    for _ in range(3):
        y.copy_(x)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        y.copy_(x)
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * x.nbytes / (start.elapsed_time(end) * 1e-3) / 1e9

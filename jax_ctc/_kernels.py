# SPDX-License-Identifier: Apache-2.0
"""Finds the compiled kernels, registers their handlers with XLA, and says why where it cannot."""

import importlib
import importlib.util
import os
import re
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

import jax

_DISABLED = os.environ.get("JAX_CTC_KERNELS", "") == "none"


def _runtime_ffi_version() -> tuple[int, int]:
    """The version of XLA's FFI that the installed jaxlib speaks, from the header it ships."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    numbers = re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", header.read_text())
    return int(numbers[0]), int(numbers[1])


def _load(name: str) -> Any:
    """A module of compiled kernels. Raises ImportError that says what to do."""
    way_out = "JAX_CTC_KERNELS=none in the environment makes jax_ctc run in pure JAX instead."
    try:
        module = importlib.import_module(f"jax_ctc.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "jax_ctc has no compiled kernels here: this looks like its source tree and not an "
            f"installation. Run `pip install .` in it, and import it from elsewhere. {way_out}"
        ) from error
    except ImportError as error:
        raise ImportError(
            f"the compiled kernels of jax_ctc could not be loaded ({error}). Reinstall it for this "
            f"Python and machine: `pip install --force-reinstall --no-deps jax_ctc`. {way_out}"
        ) from error
    built, runtime = module.ffi_api_version, _runtime_ffi_version()
    if built > runtime:
        raise ImportError(
            f"jax_ctc was compiled for XLA's FFI {built[0]}.{built[1]}, but jaxlib "
            f"{_version('jaxlib')} speaks {runtime[0]}.{runtime[1]}. Upgrade jaxlib, or rebuild "
            f"jax_ctc against an older one (its own build uses jaxlib 0.7.1). {way_out}"
        )
    return module


def _register(module: Any, platform: str) -> None:
    for name, handler in module.targets().items():
        jax.ffi.register_ffi_target(name, handler, platform=platform)
        jax.ffi.register_ffi_target_as_batch_partitionable(name)


cpu = None if _DISABLED else _load("_cpu")
# A build without a CUDA compiler has no such module; one that has it needs no device to import it.
cuda: Any = None
if not _DISABLED and importlib.util.find_spec("jax_ctc._cuda") is not None:
    cuda = _load("_cuda")

# The lowering asks this: which kernels are registered on which platform. All else runs pure JAX.
TARGETS = {
    name: frozenset(module.targets())
    for name, module in (("cpu", cpu), ("cuda", cuda))
    if module is not None
}
for _name, _module in (("cpu", cpu), ("CUDA", cuda)):
    if _module is not None:
        _register(_module, _name)

# Up to so many labels a CUDA kernel can write the gradient in the place of acts.
most_labels_in_place = cuda.most_labels_in_place if cuda is not None else 0


def scratch_bytes(op: str, is_double: bool, T: Any, L: Any) -> Any:
    """Memory that a CUDA kernel wants for each sequence. T and L may be symbolic (jax.export)."""

    def count(T: int, L: int) -> int:
        return cuda.scratch_bytes(op, is_double, T, L)

    if isinstance(T, int) and isinstance(L, int):
        total = count(T, L)
    else:  # bilinear
        a, b, c = count(0, 0), count(1, 0), count(0, 1)
        total = a + (b - a) * T + (c - a) * L + (count(1, 1) - b - c + a) * T * L
    return -(-total // 16) * 16


def build_info() -> dict[str, Any]:
    """Which kernels are loaded, what they run on, and why a part is missing.

    Returns:
      A dict with
        ``version``  of jax_ctc; ``jax``, ``jaxlib``  the versions in use
        ``cpu``      the instruction set that runs, or None where pure JAX does
        ``cpu_available``  the instruction sets this machine could run
        ``cuda``     the architectures that CUDA kernels were compiled for ("80,90,..."), or None
                     where pure JAX runs on GPUs
        ``ffi``      XLA's FFI version the kernels were compiled for
        ``notes``    sentences that say why something is missing or not as asked for
    """
    notes = []
    if cpu is None:
        notes.append("JAX_CTC_KERNELS=none switches all kernels off; pure JAX runs everywhere.")
    elif cuda is None:
        notes.append(
            "cuda: this build has no CUDA kernels, and GPUs run pure JAX. Reinstall jax_ctc where "
            "nvcc is found: of a CUDA toolkit, or from `pip install nvidia-cuda-nvcc "
            "nvidia-cuda-cccl`."
        )
    if cpu is not None and cpu.isa_complaint():
        notes.append(f"cpu: {cpu.isa_complaint()}; running {cpu.instruction_set()}.")
    return {
        "version": _version("jax_ctc"),
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "cpu": cpu.instruction_set() if cpu is not None else None,
        "cpu_available": cpu.instruction_sets() if cpu is not None else [],
        "cuda": cuda.architectures if cuda is not None else None,
        "ffi": cpu.ffi_api_version if cpu is not None else None,
        "notes": notes,
    }

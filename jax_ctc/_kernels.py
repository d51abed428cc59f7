# SPDX-License-Identifier: Apache-2.0
"""Finds the compiled kernels, registers their handlers with XLA, and says why where it cannot."""

import importlib
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


def _load_cpu() -> Any:
    """The module of CPU kernels. Raises ImportError that says what to do."""
    way_out = "JAX_CTC_KERNELS=none in the environment makes jax_ctc run in pure JAX instead."
    try:
        module = importlib.import_module("jax_ctc._cpu")
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


cpu = None if _DISABLED else _load_cpu()
if cpu is not None:
    _register(cpu, "cpu")

# The lowering asks this: platforms whose kernels are registered. All others run pure JAX.
PLATFORMS = ("cpu",) if cpu is not None else ()


def build_info() -> dict[str, Any]:
    """Which kernels are loaded, what they run on, and why a part is missing.

    Returns:
      A dict with
        ``version``  of jax_ctc; ``jax``, ``jaxlib``  the versions in use
        ``cpu``      the instruction set that runs, or None where pure JAX does
        ``cpu_available``  the instruction sets this machine could run
        ``cuda``     None: pure JAX runs on GPUs
        ``ffi``      XLA's FFI version the kernels were compiled for
        ``notes``    sentences that say why something is missing or not as asked for
    """
    notes = ["cuda: this build has no CUDA kernels; GPUs run pure JAX."]
    if cpu is None:
        notes.append("cpu: switched off by JAX_CTC_KERNELS=none; the CPU runs pure JAX.")
    elif cpu.isa_complaint():
        notes.append(f"cpu: {cpu.isa_complaint()}; running {cpu.instruction_set()}.")
    return {
        "version": _version("jax_ctc"),
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "cpu": cpu.instruction_set() if cpu is not None else None,
        "cpu_available": cpu.instruction_sets() if cpu is not None else [],
        "cuda": None,
        "ffi": cpu.ffi_api_version if cpu is not None else None,
        "notes": notes,
    }

# SPDX-License-Identifier: Apache-2.0
"""Finds the compiled kernels and registers their handlers with XLA, or says why it cannot."""

import contextlib
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import jax
import jaxlib.version
from jax import core

from . import __version__, _gpus

_SETTING = os.environ.get("JAX_CTC_KERNELS", "")
_DISABLED = _SETTING.lower() == "none"
_WAY_OUT = "JAX_CTC_KERNELS=none in the environment makes jax_ctc run in pure JAX instead."
_notes: list[str] = []
if _SETTING and not _DISABLED:
    _notes.append(f"JAX_CTC_KERNELS={_SETTING} is ignored: expected none, or nothing.")


def _runtime_ffi_version() -> tuple[int, int] | None:
    """Returns the version of XLA's FFI in the installed jaxlib, from its header. Returns None if
    jaxlib has no such header; XLA then compares the versions when a handler is registered."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.is_file():
        return None
    numbers = re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", header.read_text())
    return int(numbers[0]), int(numbers[1])


def _search_installation() -> bool:
    """Makes the kernels of an installation of this version importable, if there is one.

    In the folder of a checkout Python finds these sources before the installed package, and only
    the installed package has kernels."""
    try:
        installed = metadata.distribution("jax_ctc")
    except metadata.PackageNotFoundError:
        return False
    search = sys.modules["jax_ctc"].__path__
    files = [f for f in installed.files or () if f.name.startswith("_cpu.")]
    folders = {str(Path(str(f.locate())).parent) for f in files} - set(search)
    if not folders:
        return False
    if installed.version != __version__:
        raise ImportError(
            f"these sources of jax_ctc ({Path(__file__).parent}) are version {__version__} and "
            f"have no compiled kernels, and the installed jax_ctc is version {installed.version}. "
            f"Run `pip install .` again, or import it from another folder. {_WAY_OUT}"
        )
    search.extend(folders)
    _notes.append(f"The compiled kernels are those of the installation: {', '.join(folders)}.")
    return True


def _installed_without_kernels() -> bool:
    """Says whether there are no kernels here because JAX_CTC_CPU=OFF was set when this version was
    installed: its wheel is for every platform then."""
    if any((Path(__file__).parent / f"_cpu{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        return False
    try:
        installed = metadata.distribution("jax_ctc")
    except metadata.PackageNotFoundError:
        return False
    wheel = installed.read_text("WHEEL") or ""
    return installed.version == __version__ and "Root-Is-Purelib: true" in wheel


def _reinstall() -> str:
    """Returns the command that installs jax_ctc again from where it came: a package index, or the
    folder, the archive or the repository that pip noted (PEP 610). A wheel would be the same
    again."""
    source, noted = "jax_ctc", None
    with contextlib.suppress(metadata.PackageNotFoundError):
        noted = metadata.distribution("jax_ctc").read_text("direct_url.json")
    origin: dict[str, Any] = json.loads(noted) if noted else {"url": ".whl"}
    if not origin["url"].endswith(".whl"):
        source, vcs = origin["url"], origin.get("vcs_info")
        if vcs:
            source = f"{vcs['vcs']}+{source}@{vcs['commit_id']}"
        if "subdirectory" in origin:
            source += f"#subdirectory={origin['subdirectory']}"
    # pip would take the wheel that it made and cached before.
    return f"pip install --force-reinstall --no-deps --no-cache-dir {source}"


def _missing(name: str) -> str:
    """Says why a module of compiled kernels is not beside this file, and what to do."""
    here = Path(__file__).parent
    if (here.parent / "CMakeLists.txt").is_file():
        return (
            "this looks like its source tree, and there is no installation. Run `pip install .` "
            "in it."
        )
    why = f"{here} lacks {name}{EXTENSION_SUFFIXES[0]}"
    if others := ", ".join(sorted(path.name for path in here.glob(f"{name}.*"))):
        why += f" ({others} is for another Python)"
    return f"{why}. Reinstall jax_ctc for this Python: `{_reinstall()}`."


def _load(name: str) -> ModuleType:
    """Imports a module of compiled kernels. Its ImportError says what to do."""
    try:
        module = importlib.import_module(f"jax_ctc.{name}")
    except ModuleNotFoundError as error:
        if _search_installation():
            return _load(name)
        raise ImportError(
            f"jax_ctc has no compiled kernels here: {_missing(name)} {_WAY_OUT}"
        ) from error
    except ImportError as error:
        raise ImportError(
            f"the compiled kernels of jax_ctc could not be loaded ({error}). Reinstall it for this "
            f"Python and machine: `{_reinstall()}`. {_WAY_OUT}"
        ) from error
    built, runtime = module.ffi_api_version, _runtime_ffi_version()
    if runtime is not None and built > runtime:
        raise ImportError(
            f"jax_ctc was compiled for XLA's FFI {built[0]}.{built[1]}, but jaxlib "
            f"{jaxlib.version.__version__} speaks {runtime[0]}.{runtime[1]}. Upgrade jaxlib, or "
            f"rebuild jax_ctc against an older one (its own build uses jaxlib 0.7.1). {_WAY_OUT}"
        )
    return module


def _register(module: ModuleType, platform: str) -> None:
    for name, handler in module.targets().items():
        jax.ffi.register_ffi_target(name, handler, platform=platform)
        jax.ffi.register_ffi_target_as_batch_partitionable(name)


def _load_cpu() -> ModuleType | None:
    if _DISABLED:
        _notes.append("JAX_CTC_KERNELS=none switches all kernels off; pure JAX runs everywhere.")
    elif _installed_without_kernels():
        _notes.append(
            "jax_ctc was installed without compiled kernels (JAX_CTC_CPU=OFF), and pure JAX runs "
            "everywhere. For kernels, install it without that: "
            f"`{_reinstall()}`."
        )
    else:
        return _load("_cpu")
    return None


cpu = _load_cpu()
# A build without a CUDA compiler has no module _cuda. The module needs no device to be imported,
# and looks for none. Its handlers are registered in any case, because exported programs name them.
cuda = None
if cpu is not None and importlib.util.find_spec("jax_ctc._cuda") is not None:
    cuda = _load("_cuda")

# The targets registered on each platform, for the lowerings. All other ops run pure JAX.
TARGETS = {
    name: frozenset(module.targets())
    for name, module in (("cpu", cpu), ("cuda", cuda))
    if module is not None
}
for _name, _module in (("cpu", cpu), ("CUDA", cuda)):
    if _module is not None:
        _register(_module, _name)

# The largest L for which the CUDA gradient kernel can overwrite `acts`.
most_labels_in_place = cuda.most_labels_in_place if cuda is not None else 0


def runs_on_all_gpus() -> bool:
    """Says whether programs for GPUs may call the CUDA kernels. One answer for the whole process,
    because a program does not know which of its GPUs it will run on."""
    return cuda is not None and not _gpus.complaint(cuda)


def has_scratch(op: str) -> bool:
    """Says whether the CUDA kernels of an op pass data to each other in scratch memory."""
    assert cuda is not None
    return cuda.scratch_bytes(op, False, 1, 1) > 0


def scratch_bytes(op: str, is_double: bool, T: int, L: int) -> int:
    """Returns the bytes of scratch memory per sequence on CUDA. T and L may be symbolic
    (jax.export)."""

    def count(T: int, L: int) -> int:
        assert cuda is not None
        return cuda.scratch_bytes(op, is_double, T, L)

    if isinstance(T, int) and isinstance(L, int):
        total = count(T, L)
    elif op == "align":
        total = _alignment_bytes(count, T, L)
    else:  # the bytes are a bilinear function of T and L
        a, b, c = count(0, 0), count(1, 0), count(0, 1)
        total = a + (b - a) * T + (c - a) * L + (count(1, 1) - b - c + a) * T * L
    return -(-total // 16) * 16


def _alignment_bytes(count: Callable[[int, int], int], T: int, L: int) -> int:
    """Returns `count` of symbolic sizes for an alignment, as align_workspace.h has it: words for
    the choices of a block, 16 bytes for each state pair before a later block, and what grows with T
    alone and with L alone."""
    assert cuda is not None
    tile, block = cuda.tile_and_block
    tiles, columns = core.min_dim(-(-T // tile), block // tile), core.min_dim(L + 1, block + 1)
    nothing = count(0, 0)
    per_frame = (count(tile, 0) - nothing - 4) // tile
    linear = nothing + per_frame * T + (count(0, 1) - nothing) * L
    return linear + 4 * tiles * columns + 16 * (T // block) * (L + 1)


class BuildInfo(TypedDict):
    version: str
    jax: str
    jaxlib: str
    cpu: str | None
    cpu_available: list[str]
    cuda: str | None
    ffi: tuple[int, int] | None
    notes: list[str]


def build_info() -> BuildInfo:
    """Says which kernels are loaded, what they run on, and why a part is missing.

    It asks the CUDA driver, if there is one, for the GPUs. After that a fork of this process has
    no GPU.

    Returns:
      A dict with
        ``version``  of jax_ctc; ``jax``, ``jaxlib``  the versions in use
        ``cpu``      the instruction set that runs, or None if pure JAX runs on CPUs
        ``cpu_available``  the instruction sets that this machine can run
        ``cuda``     the architectures that CUDA kernels were compiled for ("80,90,..."), or None
                     if pure JAX runs on GPUs, as it does if one of them has no compiled kernels
        ``ffi``      the version of XLA's FFI that the kernels were compiled for
        ``notes``    sentences that say why a part is missing, or why a setting has no effect
    """
    notes = list(_notes)
    if cpu is not None and cuda is None and sys.platform == "linux":
        notes.append(
            "cuda: this build has no CUDA kernels, and GPUs run pure JAX. Reinstall jax_ctc where "
            "nvcc is found: of a CUDA toolkit, or from `pip install nvidia-cuda-nvcc "
            "nvidia-cuda-cccl`. Where pip takes a wheel, `--no-binary jax_ctc --no-cache-dir` "
            "makes it compile."
        )
    elif cuda is not None and (complaint := _gpus.complaint(cuda)):
        notes.append(f"cuda: {complaint}")
    if cpu is not None and (complaint := cpu.isa_complaint().decode(errors="backslashreplace")):
        notes.append(f"cpu: {complaint}; running {cpu.instruction_set()}.")
    return {
        "version": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "cpu": cpu.instruction_set() if cpu is not None else None,
        "cpu_available": cpu.instruction_sets() if cpu is not None else [],
        "cuda": (
            cuda.architectures.replace("-real", "")
            if cuda is not None and runs_on_all_gpus()
            else None
        ),
        "ffi": cpu.ffi_api_version if cpu is not None else None,
        "notes": notes,
    }

# SPDX-License-Identifier: Apache-2.0
import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def import_what_is_installed() -> None:
    """Makes `import jax_ctc` find the installation.

    `python -m` puts the current folder first, and in the repository's root that folder has the
    sources of jax_ctc without compiled kernels. An entry of PYTHONPATH stays.
    """
    if sys.path and Path(sys.path[0] or ".").resolve() == ROOT:
        del sys.path[0]


def with_x64() -> Any:
    """A context in which JAX has 64-bit numbers (jax.enable_x64 came with JAX 0.8)."""
    import jax

    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def no_options(program: str, description: str | None) -> None:
    """Of a program without options: prints its help where it is asked for, and refuses the rest."""
    argparse.ArgumentParser(
        prog=f"python -m benchmarks.{program}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()  # fmt: skip


def need(*modules: str) -> None:
    """Ends the program where one of them is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"{', '.join(missing)}: not installed. In the repository: pip install --group bench"
        )


def threads() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

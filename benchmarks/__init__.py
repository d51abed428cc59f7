# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def import_what_is_installed() -> None:
    """Makes `import jax_ctc` find the installation.

    `python -m` puts the current folder first, and in the repository's root that folder has the
    sources of jax_ctc without compiled kernels. An entry of PYTHONPATH stays.
    """
    if sys.path and Path(sys.path[0] or ".").resolve() == ROOT:
        del sys.path[0]

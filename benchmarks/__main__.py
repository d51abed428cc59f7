# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: the comparison on a CPU."""

from . import import_what_is_installed
from .cpu.compare import main

if __name__ == "__main__":
    import_what_is_installed()
    main()

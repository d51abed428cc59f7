# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: the comparison on a CPU."""

from . import import_what_is_installed, need

if __name__ == "__main__":
    import_what_is_installed()
    need("rich", "matplotlib")
    from .cpu.compare import main

    main()

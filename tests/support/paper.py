# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu/paper.py as a module: benchmarks are no package of the tests."""

import functools
import importlib.util
import sys

from support.runs import ROOT

FILE = next((ROOT / "benchmarks").rglob("*paper.py"), None)


@functools.cache
def load():
    description = importlib.util.spec_from_file_location("gpu_paper", FILE)
    module = importlib.util.module_from_spec(description)
    sys.modules["gpu_paper"] = module  # for its dataclass
    description.loader.exec_module(module)
    return module

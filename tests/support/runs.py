# SPDX-License-Identifier: Apache-2.0
"""What runs and what is made in a run: how many cases, other programs, files made once, meshes."""

import collections
import os
import subprocess
from pathlib import Path

import jax
import jaxlib.version
import pytest

try:
    import fcntl
except ImportError:  # Windows, where the suite runs in one process
    fcntl = None

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("JAX_CTC_TEST_ALL", "") not in ("", "0")
only_all = pytest.mark.skipif(not ALL, reason="JAX_CTC_TEST_ALL=1 runs it: it takes long")


def sampled(count):
    """Marks a test of which `make test` runs so many cases, with as many values of each argument as
    they can have, and `make test-all` all. It is for tests that would take more than about a
    second."""
    return pytest.mark.sampled(count)


def without_most(items):
    """What is left of a collection in `make test`, and what is not."""
    cases = collections.defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark and not ALL:
            cases[item.path, item.originalname, *mark.args].append(item)
    left_out = set()
    for (*_, count), of_test in cases.items():
        left_out |= set(of_test) - set(sample(of_test, count))
    return [item for item in items if item not in left_out], list(left_out)


def sample(cases, count):
    """So many of the cases. Each has the most values of arguments that none before it has; of
    equals, those come first that are spread evenly over all cases."""
    steps = max(count - 1, 1)  # from the first case to the last
    even = [cases[k * (len(cases) - 1) // steps] for k in range(count)]
    left = list(dict.fromkeys([*even, *cases]))
    values = {case: set(case.callspec.indices.items()) for case in left}
    chosen, seen = [], set()
    while left and len(chosen) < count:
        best = max(left, key=lambda case: len(values[case] - seen))
        if values[best] <= seen:  # all values are there, and come once more
            seen.clear()
            best = left[0]
        chosen.append(best)
        left.remove(best)
        seen |= values[best]
    return chosen


def sweep(everything, few):
    """Parameters of a test: all of them in `make test-all`, a few that differ in what matters in
    `make test`. `few` are some of the parameters, or names of some where `everything` is a dict."""
    if isinstance(everything, dict):
        return everything if ALL else {name: everything[name] for name in few}
    assert all(x in everything for x in few)
    return everything if ALL else few


LEVEL = "--xla_backend_optimization_level="
OPTIMISED = f"{LEVEL}3"  # of programs of users


def without_optimisation():
    """XLA_FLAGS without LLVM's optimisation, and with the old emitters of fusions (before jaxlib
    0.11): tests of JAX take half the time. Kernels and HLO are the same. As they are, if they name
    a level."""
    flags = os.environ.get("XLA_FLAGS", "")
    if LEVEL in flags:
        return flags
    emitters = " --xla_cpu_use_fusion_emitters=false"
    return f"{flags} {LEVEL}0{emitters if jaxlib.version.__version_info__ < (0, 11) else ''}"


def run(*command, cwd=None, **environment):
    """A program with more in its environment; what it says, and how it ends."""
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


FOLDER = "JAX_CTC_TEST_FOLDER"  # of files that the processes of a run share


def made_once(name, make):
    """A file that `make(path)` writes: once in a run, by the process that asks first."""
    path = Path(os.environ[FOLDER], name)
    with open(path.with_name(f"{name}.lock"), "w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f"{name}.unfinished")
            make(unfinished)
            unfinished.rename(path)
    return path


def mesh_in_use(mesh):
    """A context in which `mesh` is the mesh (jax.set_mesh came with JAX 0.7.1)."""
    return (jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh)(mesh)

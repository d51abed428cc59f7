# SPDX-License-Identifier: Apache-2.0
"""The same promises on every instruction set and in pure JAX, and what build_info says of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jax_ctc

HERE = Path(__file__).parent
KERNELS = [
    "test_value.py",
    "test_gradient.py",
    "test_known_values.py",
    "test_edges.py",
    "test_dtypes.py",
]
PURE = ["test_known_values.py", "test_edges.py", "test_dtypes.py", "test_precision.py"]
FORCED = any(os.environ.get(name) for name in ("JAX_CTC_ISA", "JAX_CTC_KERNELS"))

pytestmark = pytest.mark.skipif(FORCED, reason="this run is one of those started here")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )


def other_backends():
    info = jax_ctc.build_info()
    for name in info["cpu_available"]:
        if name != info["cpu"]:
            yield pytest.param({"JAX_CTC_ISA": name}, name, KERNELS, id=name)
    yield pytest.param({"JAX_CTC_KERNELS": "none"}, None, PURE, id="pure JAX")


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "name", "files"), list(other_backends()))
def test_every_backend_keeps_the_contract(environment, name, files):
    said = python("import jax_ctc; print(jax_ctc.build_info()['cpu'])", **environment)
    assert said.stdout.strip() == str(name), said.stderr
    suite = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, **environment},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert suite.returncode == 0, suite.stdout[-4000:]


def test_an_instruction_set_that_is_not_there_is_said_and_not_run():
    said = python("import jax_ctc; print(jax_ctc.build_info()['notes'])", JAX_CTC_ISA="vax")
    assert "JAX_CTC_ISA=vax is not one of baseline" in said.stdout, said.stderr


NO_CUDA = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "jax_ctc._cuda" else find(name, *a)
"""


def test_build_info_says_why_a_part_is_missing():
    show = "import jax_ctc; print(jax_ctc.build_info()['cuda'], jax_ctc.build_info()['notes'])"
    said = python(NO_CUDA + show)
    assert said.stdout.startswith("None")
    assert "Reinstall jax_ctc where nvcc is found" in said.stdout
    said = python(show, JAX_CTC_KERNELS="none")
    assert "JAX_CTC_KERNELS=none switches all kernels off" in said.stdout, said.stderr


MODULE = "import sys, types, jax; sys.modules['jax_ctc._cpu'] = m = types.ModuleType('_cpu'); "


def test_kernels_built_on_newer_headers_than_jaxlib_are_an_import_error_that_says_so():
    failed = python(MODULE + "m.ffi_api_version = (0, 99); import jax_ctc")
    assert "ImportError: jax_ctc was compiled for XLA's FFI 0.99, but jaxlib" in failed.stderr
    assert "Upgrade jaxlib, or rebuild" in failed.stderr


def test_missing_kernels_are_an_import_error_that_says_so():
    failed = python("import sys; sys.modules['jax_ctc._cpu'] = None; import jax_ctc")
    assert "ImportError: jax_ctc has no compiled kernels here" in failed.stderr
    assert "pip install ." in failed.stderr

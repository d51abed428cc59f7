# SPDX-License-Identifier: Apache-2.0
"""`JAX_CTC_CPU=OFF pip install .`: no compiler, no kernels, and a word about it."""

import json
import sys
import zipfile

import pytest
from test_cuda_build import CMAKE, configure, needs_cmake

import jax_ctc
from support.runs import ROOT, run

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file() or not (ROOT / "kernels").is_dir(),
    reason="not in a source tree",
)

BUILD = """
import json, os, sys
from scikit_build_core import build
required = build.get_requires_for_build_wheel()
os.environ["JAX_CTC_CPU"] = ""
usual = build.get_requires_for_build_wheel()
os.environ["JAX_CTC_CPU"] = "Off"
print(json.dumps([required, usual, build.build_wheel(sys.argv[1])]))
"""
USE = """
import json, numpy, jax_ctc
cost = float(jax_ctc.ctc(numpy.zeros((4, 1, 3), "f"), [[1, 2]], [4])[0])
print(json.dumps([jax_ctc.__file__, cost, jax_ctc.build_info()]))
"""


def test_a_build_without_kernels_needs_no_tool_and_its_program_says_so(tmp_path):
    pytest.importorskip("scikit_build_core", minversion="1.0")
    command = [sys.executable, "-c", BUILD, tmp_path]
    built = run(*command, cwd=ROOT, JAX_CTC_CPU="Off", PATH=str(tmp_path))
    assert built.returncode == 0, built.stderr
    required, usual, name = json.loads(built.stdout.splitlines()[-1])
    assert required == []
    assert any("jaxlib==" in x for x in usual)
    assert name == f"jax_ctc-{jax_ctc.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert "jax_ctc/_loss.py" in names
    assert [
        x for x in names if x.startswith("jax_ctc/") and not x.endswith((".py", "py.typed"))
    ] == []
    used = run(sys.executable, "-c", USE, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert used.returncode == 0, used.stderr
    file, cost, info = json.loads(used.stdout)
    assert file == str(tmp_path / "site" / "jax_ctc" / "__init__.py")
    assert abs(cost - 1.686399) < 1e-6
    assert (info["cpu"], info["cuda"], info["cpu_available"]) == (None, None, [])
    (note,) = info["notes"]
    assert "installed without compiled kernels (JAX_CTC_CPU=OFF), and pure JAX runs" in note


@needs_cmake
def test_without_a_compiler_the_error_names_the_way_out(tmp_path):
    result = configure(tmp_path, CXX=tmp_path / "nothing", JAX_CTC_CUDA="OFF")
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "there is no C++ compiler here, or it does not work with CXX=" in message
    assert "/nothing and CXXFLAGS=" in message
    assert "Install GCC 12 or later, or Clang" in message
    assert "JAX_CTC_CPU=OFF in the environment" in message


@needs_cmake
def test_flags_of_the_environment_do_not_break_the_kernels(tmp_path):
    """platform.h is an error where infinities would be lost. So what compiles keeps them."""
    flags = "-ffast-math -funsafe-math-optimizations"
    result = configure(tmp_path, "-G", "Unix Makefiles", CXXFLAGS=flags, JAX_CTC_CUDA="OFF")
    assert result.returncode == 0, result.stderr
    built = run(CMAKE, "--build", tmp_path, "--target", "kernels/cpu/dispatch.cpp.o")
    assert built.returncode == 0, built.stderr
    link = (tmp_path / "CMakeFiles" / "_cpu.dir" / "link.txt").read_text()
    assert link.rindex("-fno-fast-math") > link.rindex("-ffast-math")
    assert link.rindex("-fno-unsafe-math") > link.rindex("-funsafe-math")


@needs_cmake
def test_a_python_without_headers_is_told_so(tmp_path):
    nothing = tmp_path / "include"
    nothing.mkdir()
    result = configure(tmp_path / "build", f"-DPython_INCLUDE_DIR={nothing}", JAX_CTC_CUDA="OFF")
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "the headers of Python 3.11 or later are missing. Install them (python3-dev" in message
    assert "JAX_CTC_CPU=OFF in the environment" in message


@needs_cmake
def test_an_unknown_value_of_JAX_CTC_CPU_is_an_error(tmp_path):
    result = configure(tmp_path, JAX_CTC_CPU="MAYBE")
    assert result.returncode != 0
    assert "expected ON or OFF, but got MAYBE" in " ".join(result.stderr.split())

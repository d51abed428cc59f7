# SPDX-License-Identifier: Apache-2.0
"""Which kernels a checkout's own `make` would compile. Nothing is compiled here."""

import re
import shutil
from pathlib import Path

import pytest

from support.runs import ROOT, run

pytestmark = [
    pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="not in a source tree"),
    pytest.mark.skipif(not shutil.which("make"), reason="no make"),
]


def commands_of(target, folder, capabilities=None, JAX_CTC_CUDA="", JAX_CTC_TEST_ALL=""):
    """What `make` would run on a machine with GPUs of these compute capabilities; or whose driver
    does not run."""
    (folder / "bin").mkdir()
    smi = folder / "bin" / "nvidia-smi"
    lines = "exit 9" if capabilities is None else "\n".join(f"echo {x}" for x in capabilities)
    smi.write_text(f"#!/bin/sh\n{lines}\n")
    smi.chmod(0o755)
    path = f"{smi.parent}:{Path(shutil.which('make')).parent}:/usr/bin:/bin"
    environment = {
        "MAKEFLAGS": "", "PATH": path, "JAX_CTC_CUDA": JAX_CTC_CUDA,
        "JAX_CTC_TEST_ALL": JAX_CTC_TEST_ALL,
    }  # fmt: skip
    done = run("make", "-n", "-C", ROOT, target, f"VENV={folder / 'venv'}", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kernels_in(commands):
    """(JAX_CTC_CUDA, architectures) of the one installation."""
    (kernels,) = re.findall(r"define.JAX_CTC_CUDA=(\w+)", commands)
    (architectures,) = re.findall(r"'cmake.define.CMAKE_CUDA_ARCHITECTURES=(.*)'", commands)
    return kernels, architectures


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (None, ("OFF", "")),
        (["7.5"], ("OFF", "")),  # older than the kernels support
        (["9.0"], ("AUTO", "90")),
        (["12.0", "7.5", "8.6", "8.6"], ("AUTO", "120;86")),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_checkout_compiles_for_the_gpus_that_are_visible(
    target, capabilities, expected, tmp_path
):
    commands = commands_of(target, tmp_path, capabilities)
    assert kernels_in(commands) == expected
    assert "JAX_CTC_CUDA=" in re.search(r"^echo .*kernels.*", commands, re.MULTILINE).group()


@pytest.mark.parametrize(("target", "variable"), [("test-all", ""), ("test", "1")])
@pytest.mark.parametrize(("capabilities", "expected"), [(None, "90"), (["8.0"], "80")], ids=str)
def test_long_tests_have_cuda_kernels_wherever_nvcc_is_found(
    target, variable, capabilities, expected, tmp_path
):
    commands = commands_of(target, tmp_path, capabilities, JAX_CTC_TEST_ALL=variable)
    assert kernels_in(commands) == ("AUTO", expected)
    assert "jax-cuda13-pjrt==" in commands


@pytest.mark.parametrize("target", ["demo", "test", "test-all"])
def test_the_environment_decides_which_kernels_are_compiled(target, tmp_path):
    commands = commands_of(target, tmp_path, ["9.0"], JAX_CTC_CUDA="OFF")
    assert kernels_in(commands) == ("OFF", "")

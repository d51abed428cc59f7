# SPDX-License-Identifier: Apache-2.0
"""A GPU for which there is no code runs pure JAX. No GPU is here: a module stands for the CUDA
kernels and says which GPUs there are."""

import ast
import os
import sys
from types import ModuleType

import pytest

import jax_ctc
from jax_ctc import _gpus
from support.runs import run, sampled

BUILT = "80-real,90-real,100-real,120"
H100, B300, THOR = ("NVIDIA H100", (9, 0)), ("NVIDIA B300", (10, 3)), ("NVIDIA Thor", (11, 0))
T4, GB10 = ("Tesla T4", (7, 5)), ("NVIDIA GB10", (12, 1))
FORCED = bool(os.environ.get("JAX_CTC_KERNELS"))


@pytest.mark.parametrize(
    ("architectures", "capability", "code", "code_without_ptx"),
    [
        (BUILT, (7, 5), False, False),
        (BUILT, (8, 0), True, True),
        (BUILT, (8, 9), True, True),
        (BUILT, (9, 0), True, True),
        (BUILT, (10, 3), True, True),
        (BUILT, (11, 0), False, False),  # nor the PTX of a newer one
        (BUILT, (12, 1), True, True),
        (BUILT, (13, 0), True, False),
        ("86-real", (8, 0), False, False),
        ("80", (11, 0), True, False),
        ("80-virtual", (8, 0), True, False),
        ("90a", (9, 0), True, True),
        ("90a", (10, 0), False, False),
        ("100f-real", (10, 3), True, True),
        ("100f", (11, 0), False, False),
        ("native", (7, 5), True, True),  # unknown
    ],
)
def test_code_runs_where_nvcc_says(architectures, capability, code, code_without_ptx):
    assert _gpus.has_code(architectures, capability, True) == code
    assert _gpus.has_code(architectures, capability, False) == code_without_ptx


def module(gpus, driver=13000, architectures=BUILT):
    cuda = ModuleType("cuda")
    cuda.runtime_version, cuda.architectures = 13000, architectures
    cuda.gpus, cuda.driver_version = (lambda: gpus), (lambda: driver)
    return cuda


@pytest.mark.parametrize("gpus", [[], [H100], [H100, H100, B300, GB10]])
def test_nothing_is_said_where_every_gpu_has_code_or_there_is_none(gpus):
    assert _gpus.complaint(module(gpus)) == ""
    assert _gpus.complaint(module([], driver=0)) == ""


def test_what_is_said_names_the_gpu_and_what_to_do():
    said = _gpus.complaint(module([H100, T4, T4, THOR]))
    assert "compiled for 80,90,100,120 and not for Tesla T4 (7.5), NVIDIA Thor (11.0)" in said
    assert "so all GPUs of this process run pure JAX" in said
    assert "-DCMAKE_CUDA_ARCHITECTURES=90;110' in the environment and pip's --no-cache-dir" in said
    assert ". Leave out of CUDA_VISIBLE_DEVICES" in _gpus.complaint(module([T4]))
    said = _gpus.complaint(module([], driver=12040))
    assert "the driver is for CUDA 12.4 and the kernels were compiled with CUDA 13.0" in said
    assert _gpus.complaint(module([H100], driver=13010)) == ""


def test_a_driver_as_new_as_the_kernels_compiles_their_ptx():
    assert _gpus.complaint(module([B300], architectures="90")) == ""


# Prints what is asked of the driver, and when; build_info; and the calls in a program for GPUs.
PROGRAM = """
import ctypes, importlib.machinery, json, sys, types
import jax
cuda = types.ModuleType("jax_ctc._cuda")
cuda.__spec__ = importlib.machinery.ModuleSpec("jax_ctc._cuda", None)
nothing = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda frame: None)
names = [f"jax_ctc_{op}_v1" for op in ("loss", "forward", "tangent", "cotangent", "hvp")]
names.append("jax_ctc_align_v2")
cuda.targets = lambda: {name: jax.ffi.pycapsule(nothing) for name in names}
cuda.scratch_bytes = lambda *_: 64
cuda.ffi_api_version, cuda.most_labels_in_place = (0, 0), 100
cuda.architectures, cuda.runtime_version = "80-real,90-real,100-real,120", 13000
asked = []
cuda.gpus = lambda: asked.append("gpus") or GPUS
cuda.driver_version = lambda: asked.append("driver") or 13000
sys.modules["jax_ctc._cuda"] = cuda

import numpy as np, jax_ctc
from jax import export
args = np.zeros((4, 1, 3), "f"), np.array([[1, 2]], "i"), np.array([4], "i")
step = jax.jit(jax.value_and_grad(lambda *args: jax_ctc.ctc(*args).sum()))
float(step(*args)[0])
told = {"before": list(asked)}
checks = jax_ctc.export_checks()
told["program"] = step.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
path = jax.jit(jax_ctc.ctc_align)
told["path"] = path.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
told["both"] = export.export(step, platforms=["cpu", "cuda"], disabled_checks=checks)(
    *args).mlir_module()
told["asked"] = asked
told["info"] = jax_ctc.build_info()
print(told)
"""


def told(gpus):
    result = run(
        sys.executable, "-c", PROGRAM.replace("GPUS", repr(gpus)), JAX_PLATFORMS="cpu"
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return ast.literal_eval(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(FORCED, reason="this run has no kernels")
@pytest.mark.parametrize("gpus", [[], [H100, B300], [H100, T4]], ids=["no", "covered", "not all"])
@sampled(2)
def test_programs_for_gpus_call_kernels_only_if_all_gpus_have_them(gpus):
    answer = told(gpus)
    covered = T4 not in gpus
    assert answer["before"] == []  # an import and a program for the CPU ask no driver
    assert answer["asked"] == ["driver", "gpus"]  # once
    assert ("jax_ctc_forward_v1" in answer["program"]) == covered
    assert ("jax_ctc_cotangent_v1" in answer["program"]) == covered
    assert ("jax_ctc_align_v2" in answer["path"]) == covered
    assert ("stablehlo.while" in answer["path"]) == (not covered)
    assert "jax_ctc_forward_v1" in answer["both"]  # on the CPU at least
    assert answer["both"].count("jax_ctc_forward_v1") == (2 if covered else 1)
    assert answer["info"]["cuda"] == ("80,90,100,120" if covered else None)
    assert any("Tesla T4 (7.5)" in note for note in answer["info"]["notes"]) == (not covered)


def test_the_module_lists_the_gpus_of_this_machine():
    if jax_ctc._kernels.cuda is None:
        pytest.skip("built without CUDA kernels")
    cuda = jax_ctc._kernels.cuda
    assert all(name and first >= 5 and second >= 0 for name, (first, second) in cuda.gpus())
    assert cuda.driver_version() >= 0
    assert bool(jax_ctc.build_info()["cuda"]) == (not _gpus.complaint(cuda))

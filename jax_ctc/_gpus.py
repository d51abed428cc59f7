# SPDX-License-Identifier: Apache-2.0
"""Whether each GPU of this process can run the compiled CUDA kernels."""

import functools
import re
from types import ModuleType

_LEAST_CAPABILITY = (8, 0)  # for which the kernels are written


@functools.cache
def complaint(cuda: ModuleType) -> str:
    """Says why the kernels of the module do not run on every GPU that this process sees; "" if they
    do, or if there is no GPU (programs may be compiled for one elsewhere).

    The first call initialises the CUDA driver. So nothing asks at import: a process that has not
    asked may still fork.
    """
    driver, runtime = cuda.driver_version(), cuda.runtime_version
    if 0 < driver < runtime // 1000 * 1000:
        return (
            f"the driver is for CUDA {_version(driver)} and the kernels were compiled with CUDA "
            f"{_version(runtime)}, so GPUs run pure JAX. Update the driver, or reinstall jax_ctc "
            "with an older toolkit."
        )
    gpus = dict.fromkeys(cuda.gpus())
    missing = [
        f"{name} ({capability[0]}.{capability[1]})"
        for name, capability in gpus
        if not has_code(cuda.architectures, capability, driver >= runtime)
    ]
    if not missing:
        return ""
    wanted = sorted({10 * a + b for _, (a, b) in gpus if (a, b) >= _LEAST_CAPABILITY})
    architectures = ";".join(map(str, wanted))
    reinstall = (
        f"Reinstall it with CMAKE_ARGS='-DCMAKE_CUDA_ARCHITECTURES={architectures}' in the "
        "environment and pip's --no-cache-dir, or leave"
    )
    return (
        f"jax_ctc was compiled for {cuda.architectures.replace('-real', '')} and not for "
        f"{', '.join(missing)}, so all GPUs of this process run pure JAX. "
        f"{reinstall if wanted else 'Leave'} out of CUDA_VISIBLE_DEVICES what has no kernels. They "
        f"need a compute capability of {_LEAST_CAPABILITY[0]}.{_LEAST_CAPABILITY[1]} or higher."
    )


def has_code(architectures: str, capability: tuple[int, int], runs_ptx: bool) -> bool:
    """Says whether a GPU runs what was compiled for these architectures, in CMake's words.

    Machine code runs on GPUs of the same major capability that are as new; PTX on all that are as
    new, if the driver is as new as the compiler. Suffix a: on this GPU alone. Suffix f: on its
    family, the same major capability.
    """
    for architecture in architectures.split(","):
        found = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
        if found is None:
            return True  # a word such as native, which only nvcc understands
        major, minor, only, kind = found.groups()
        compiled = int(major), int(minor)
        in_family = capability[0] == compiled[0] and capability >= compiled
        if (only == "a" and capability != compiled) or (only == "f" and not in_family):
            continue
        if kind != "-virtual" and in_family:
            return True
        if kind != "-real" and capability >= compiled and runs_ptx:
            return True
    return False


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"

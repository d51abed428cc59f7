# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: the suite on the CPU, but through everything that a GPU would run.

`pytest -p support.emulated_backend` lowers each primitive as for CUDA, and XLA calls the CUDA
handlers, whose kernels the emulator runs.
"""

import ctypes
import os

import jax
from jax.interpreters import mlir

from jax_ctc import _reference
from jax_ctc._primitives import ctc, custom_call, family, row_sums, top_class

library = ctypes.CDLL(os.environ["EMULATED_HANDLERS"])
library.handler.restype = ctypes.c_void_p
library.launches.restype = ctypes.c_int64
PURE = {  # what a GPU has no kernel for
    "masked_hvp": ctc._masked_hvp,
    "sums": row_sums._sums,
    "sums_cotangent": row_sums._sums_cotangent,
    "top_class": top_class._top_class,
    "beam": _reference.beam,
}
for op, target in list(custom_call.TARGETS.items()):
    primitive = family.primitives[op]
    handler = library.handler(target.encode())
    assert (handler is None) == (op in PURE)
    if handler is None:
        pure = custom_call._pure_rule(primitive, PURE[op])
        mlir.register_lowering(primitive, pure, platform="cpu")
        continue
    for names in (custom_call.TARGETS, custom_call.OF_SCORES):
        if op not in names:
            continue
        capsule = jax.ffi.pycapsule(library.handler(names[op].encode()))
        names[op] = f"emulated_{names[op]}"
        jax.ffi.register_ffi_target(names[op], capsule, platform="cpu")
        jax.ffi.register_ffi_target_as_batch_partitionable(names[op])
    direct = custom_call._kernel_rule(op, primitive, "cuda")
    mlir.register_lowering(primitive, direct, platform="cpu")
    moved = custom_call._moved_call_rule(op, "cuda")
    mlir.register_lowering(custom_call._moved_calls[op], moved, platform="cpu")


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{library.launches()} kernels were launched")

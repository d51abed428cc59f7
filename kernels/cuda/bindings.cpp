// SPDX-License-Identifier: Apache-2.0
// Hands the handlers for CUDA devices to Python as capsules, and says what was compiled. Nothing else: it imports on a
// machine without a device or a driver.
#include "../common/bindings.h"

#include <cuda_runtime_api.h>

#include "ctc.h"

PYBIND11_MODULE(_cuda, m) {
  using namespace jax_ctc;
  m.doc() = "Compiled CUDA kernels of jax_ctc.";
  define_handlers(m);
  // Bytes of the extra result of each target, for one sequence, before they are rounded up to a multiple of 16.
  m.def("scratch_bytes", [](const std::string& operation, bool is_double, int64_t T, int64_t L) {
    const Dtype dtype = is_double ? Dtype::kF64 : Dtype::kF32;
    if (operation == "loss") return cuda::scratch_bytes(cuda::Operation::kLoss, dtype, T, L);
    if (operation == "forward") return cuda::scratch_bytes(cuda::Operation::kForward, dtype, T, L);
    if (operation == "tangent") return cuda::scratch_bytes(cuda::Operation::kTangent, dtype, T, L);
    if (operation == "hvp") return cuda::scratch_bytes(cuda::Operation::kHvp, dtype, T, L);
    return int64_t(0);
  });
  m.attr("most_labels_in_place") = cuda::kMostLabelsInPlace;
  m.attr("architectures") = JAX_CTC_CUDA_ARCHITECTURES;
  m.attr("runtime_version") = CUDART_VERSION;
}

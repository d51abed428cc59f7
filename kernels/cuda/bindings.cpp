// SPDX-License-Identifier: Apache-2.0
// Hands the handlers for CUDA devices to Python as capsules, and says what was compiled and which devices there are. It
// imports on a machine without a device or a driver.
#include "../common/bindings.h"

#include <cuda_runtime_api.h>

#include <string>
#include <utility>
#include <vector>

#include "align_workspace.h"
#include "ctc.h"

// Name and compute capability of each device that this process sees; none without a driver that can be used. It makes
// no contexts, which would take memory of every device.
static std::vector<std::pair<std::string, std::pair<int, int>>> gpus() {
  std::vector<std::pair<std::string, std::pair<int, int>>> found;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp of_device;
    if (cudaGetDeviceProperties(&of_device, device) == cudaSuccess)
      found.push_back({of_device.name, {of_device.major, of_device.minor}});
  }
  cudaGetLastError();  // what went wrong here is nobody else's error
  return found;
}

// The newest CUDA that the driver knows, as CUDART_VERSION counts; 0 without a driver.
static int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) version = 0, cudaGetLastError();  // nobody else's error
  return version;
}

// Without the GIL: what is called here has no state but constants that C++ initialises once.
PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
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
    if (operation == "align") return cuda::scratch_bytes(cuda::Operation::kAlign, dtype, T, L);
    return int64_t(0);
  });
  m.attr("tile_and_block") = std::make_pair(cuda::kTileFrames, cuda::kBlockFrames);  // frames, of an alignment
  m.attr("most_labels_in_place") = cuda::kMostLabelsInPlace;
  m.def("gpus", gpus, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("driver_version", driver_version, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.attr("architectures") = JAX_CTC_CUDA_ARCHITECTURES;  // as CMake has them: with -real there is no PTX
  m.attr("runtime_version") = CUDART_VERSION;
}

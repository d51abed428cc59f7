// SPDX-License-Identifier: Apache-2.0
// Hands the compiled handlers to Python as capsules, and says what was compiled. Nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dispatch.h"
#include "ffi.h"

namespace py = pybind11;

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU kernels of jax_ctc.";
  m.def("targets", [] {
    py::dict targets;
    for (const auto& [name, handler] : jax_ctc::cpu_handlers())
      targets[name] = py::capsule(reinterpret_cast<void*>(handler));
    return targets;
  });
  m.def("instruction_set", [] { return jax_ctc::instruction_set().name; });
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const jax_ctc::InstructionSet* isa : jax_ctc::instruction_sets()) names.push_back(isa->name);
    return names;
  });
  m.def("isa_complaint", &jax_ctc::isa_complaint);
  m.attr("ffi_api_version") = jax_ctc::ffi_api_version();
}

// SPDX-License-Identifier: Apache-2.0
// Hands the handlers to Python, and says which instruction sets there are. Nothing else.
#include "../common/bindings.h"

#include "dispatch.h"

// Without the GIL: what is called here has no state but constants that C++ initialises once.
PYBIND11_MODULE(_cpu, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Compiled CPU kernels of jax_ctc.";
  jax_ctc::define_handlers(m);
  m.def("instruction_set", [] { return jax_ctc::instruction_set().name; });
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const jax_ctc::InstructionSet* isa : jax_ctc::instruction_sets()) names.push_back(isa->name);
    return names;
  });
  // Bytes, because a variable of the environment may hold any.
  m.def("isa_complaint", [] { return pybind11::bytes(jax_ctc::isa_complaint()); });
}

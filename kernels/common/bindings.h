// SPDX-License-Identifier: Apache-2.0
// What both modules, _cpu and _cuda, tell Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "handlers.h"

namespace jax_ctc {

// `targets()` returns the handlers as capsules, by target name. `ffi_api_version` is (major, minor).
inline void define_handlers(pybind11::module_& m) {
  m.def("targets", [] {
    pybind11::dict targets;
    for (const auto& [name, handler] : handlers()) targets[name] = pybind11::capsule(reinterpret_cast<void*>(handler));
    return targets;
  });
  m.attr("ffi_api_version") = ffi_api_version();
}

}  // namespace jax_ctc

// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <cstdlib>

#include "cpuid.h"

namespace jax_ctc {
namespace {

struct Choice {
  const InstructionSet* isa;
  std::string complaint;
};

Choice choose() {
  const std::vector<const InstructionSet*> available = instruction_sets();
  const char* wanted = std::getenv("JAX_CTC_ISA");
  if (wanted == nullptr || *wanted == '\0') return {available.back(), ""};
  std::string names;
  for (const InstructionSet* isa : available) {
    if (isa->name == std::string(wanted)) return {isa, ""};
    names += (names.empty() ? "" : ", ") + std::string(isa->name);
  }
  return {available.back(), "JAX_CTC_ISA=" + std::string(wanted) + " is not one of " + names + " on this machine"};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

std::vector<const InstructionSet*> instruction_sets() {
  std::vector<const InstructionSet*> available = {&kBaseline};
#if defined(__x86_64__)
  const Cpuid machine = Cpuid::of_this_machine();
  if (machine.avx2()) available.push_back(&kAvx2);
  if (machine.avx512()) available.push_back(&kAvx512);
#endif
  return available;
}

const InstructionSet& instruction_set() { return *choice().isa; }
std::string isa_complaint() { return choice().complaint; }

}  // namespace jax_ctc

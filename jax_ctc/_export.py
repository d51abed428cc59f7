# SPDX-License-Identifier: Apache-2.0
"""Serialised programs (jax.export)."""

from jax import export

from ._primitives import custom_call


def export_checks() -> list[export.DisabledSafetyCheck]:
    """Lets `jax.export.export` serialise a program that calls the kernels.

    The name of each custom call target carries a version. The operands, the attributes and the
    meaning of a name never change. So a program exported today runs with every later jax_ctc that
    has the target. The process that runs the program must have imported jax_ctc.

    Returns:
      A list for the argument ``disabled_checks``.

    Example:
      >>> from jax import export
      >>> checks = jax_ctc.export_checks()
      >>> program = export.export(
      ...     jax.jit(jax_ctc.ctc), platforms=["cpu", "cuda"], disabled_checks=checks
      ... )(acts, labels, lengths)
      >>> stored = program.serialize(vjp_order=1)  # whoever loads it can differentiate it
    """
    current = *custom_call.TARGETS.values(), *custom_call.OF_SCORES.values()
    names = *current, *custom_call.RETIRED
    return [export.DisabledSafetyCheck.custom_call(name) for name in names]

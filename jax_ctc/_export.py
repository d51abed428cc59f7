# SPDX-License-Identifier: Apache-2.0
"""Programs that outlive the process they were made in."""

from jax import export

from ._primitives import custom_call


def export_checks() -> list[export.DisabledSafetyCheck]:
    """What `jax.export.export` asks for before it serialises a program with the kernels in it.

    The names of their targets carry a version; what a name stands for (operands, attributes,
    meaning) never changes. So a program exported today runs with every later jax_ctc that has the
    target. The process that runs it must have imported jax_ctc.

    Returns:
      A list for ``disabled_checks``.

    Example:
      >>> from jax import export
      >>> checks = jax_ctc.export_checks()
      >>> program = export.export(
      ...     jax.jit(jax_ctc.ctc), platforms=["cpu", "cuda"], disabled_checks=checks
      ... )(acts, labels, lengths)
      >>> stored = program.serialize(vjp_order=1)  # to be differentiated by who loads it
    """
    return [export.DisabledSafetyCheck.custom_call(name) for name in custom_call.TARGETS.values()]

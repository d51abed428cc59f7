# SPDX-License-Identifier: Apache-2.0
"""The primitive of the prefix beam search.

    beam    acts, labels, lengths    -> labels found, label_lengths, score

The operand `labels` is empty, (batch, 0): it is there because every kernel has it. The labels found
lie as frames do, (batch with T, top_paths). Beside the parameters of the other primitives there are
`beam_width`, `top_paths`, `classes_per_frame` (0 means all) and `softmax`.
"""

from jax.interpreters import ad

from .. import _reference
from .family import define


def _beam_jvp(primals, tangents, **params):
    raise TypeError(
        "ctc_beam_search_decode has no derivative, because the labels it finds change in jumps. "
        "Give it jax.lax.stop_gradient(acts). For scores of the labels found that can be "
        "differentiated, take -jax.vmap(ctc) over the hypotheses: "
        "-jax.vmap(lambda labels: ctc(acts, labels, lengths), -2, -1)(decoded.labels)."
    )


beam_p = define("beam", _reference.beam)
ad.primitive_jvps[beam_p] = _beam_jvp

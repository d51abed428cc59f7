# SPDX-License-Identifier: Apache-2.0
"""CTC as Theano users know it: `theano.tensor.nnet.ctc`.

What is different: nothing is left over from an earlier call in the gradient of frames after the
length (it is 0), and a sequence too short for its labels costs +inf, where Theano returned 0.
"""

import jax
from jax import Array
from jax.typing import ArrayLike

from .. import _loss


def ctc(activations: ArrayLike, labels: ArrayLike, input_lengths: ArrayLike) -> Array:
    """Costs of a batch, in nats.

    Args:
      activations: (T, B, V) unnormalised; class 0 is the blank.
      labels: (B, L) classes; negative entries are padding wherever they stand.
      input_lengths: (B,) frames in use.

    Returns:
      (B,) costs. See `jax_ctc.ctc` for what raises and what is NaN or inf.
    """
    return _loss.ctc(activations, labels, input_lengths)


class ConnectionistTemporalClassification:
    """The op behind `ctc`, with its two switches.

    Args:
      compute_grad: False makes differentiation an error. JAX does no gradient work that nobody
        asked for, so there is nothing to save by it.
      openmp: False runs on one thread; None and True on all that JAX has.
    """

    def __init__(self, compute_grad: bool = True, openmp: bool | None = None):
        self.compute_grad = compute_grad
        self.openmp = openmp

    def __call__(
        self, activations: ArrayLike, labels: ArrayLike, input_lengths: ArrayLike
    ) -> Array:
        """(B,) costs of (T, B, V) activations, (B, L) labels and (B,) lengths, as in `ctc`."""
        num_threads = 1 if self.openmp is False else None
        if not self.compute_grad:
            activations = _not_differentiable(jax.numpy.asarray(activations))
        return _loss.ctc(activations, labels, input_lengths, num_threads=num_threads)


@jax.custom_jvp
def _not_differentiable(x: Array) -> Array:
    return x


@_not_differentiable.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    raise ValueError(
        "ConnectionistTemporalClassification(compute_grad=False) has no gradient. "
        "Make the op with compute_grad=True to differentiate it."
    )

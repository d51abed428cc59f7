# SPDX-License-Identifier: Apache-2.0
"""CTC with the names and signatures of Theano: `theano.tensor.nnet.ctc`.

It differs from Theano in four ways. The kernels are part of jax_ctc, so there is no
`config.ctc.root` to set. A label of 0 is an error (under `jit` a cost of NaN), because 0 is the
blank; padding is negative. A sequence too short for its labels costs +inf; in Theano it cost 0.
Frames after the length have a gradient of 0; in Theano they had whatever an earlier call wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import Array
from jax.typing import ArrayLike

from .. import _arrays, _kernels, _loss
from .._arrays import Integers
from ._names import names

_CALL = "ctc(activations, labels, input_lengths)"
_THEIRS = {"acts": "activations", "lengths": "input_lengths"}


def ctc(activations: ArrayLike, labels: Integers, input_lengths: Integers | None) -> Array:
    """Returns the costs of a batch, in nats.

    Args:
      activations: (T, B, V) unnormalised; class 0 is the blank.
      labels: (B, L) classes; negative entries are padding at any position.
      input_lengths: (B,) frames in use; None means all T frames.

    Returns:
      (B,) costs. `jax_ctc.ctc` says which inputs raise, and which costs are NaN or inf.
    """
    with names(_CALL, "(T, B, V)", **_THEIRS):
        return _loss.ctc(activations, labels, input_lengths)


def ctc_available() -> bool:
    """Says whether `ctc` runs. It always does, because pure JAX runs if no compiled kernels do.

    As in Theano, `ctc_available.msg` says why kernels are missing, or is None if those for CPUs
    are there. `jax_ctc.build_info` speaks of GPUs.
    """
    notes = _kernels.build_info()["notes"] if _kernels.cpu is None else []
    ctc_available.msg = " ".join(notes) or None  # pyright: ignore[reportFunctionMemberAccess]
    return True


ctc_available.msg = None  # pyright: ignore[reportFunctionMemberAccess]


@dataclass(frozen=True)
class ConnectionistTemporalClassification:
    """The op behind `ctc`, with its two options. Ops with the same options are equal, so an op can
    be a static argument of `jax.jit`.

    Args:
      compute_grad: False makes differentiation an error, also of a cost that a program only reports
        beside what it differentiates (`has_aux`), unless the op is given
        ``jax.lax.stop_gradient(activations)``. It saves no time, because JAX computes a gradient
        only if the program differentiates.
      openmp: False runs on one thread. None and True run on all threads of JAX.
    """

    compute_grad: bool = True
    openmp: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "compute_grad", bool(self.compute_grad))
        if self.openmp is not None:
            object.__setattr__(self, "openmp", bool(self.openmp))

    def __call__(
        self, activations: ArrayLike, labels: Integers, input_lengths: Integers | None
    ) -> Array:
        """Returns the (B,) costs of (T, B, V) activations, (B, L) labels and (B,) lengths."""
        num_threads = 1 if self.openmp is False else None
        with names(_CALL, "(T, B, V)", **_THEIRS):
            activations = _arrays.floats("acts", activations, labels)
            if not self.compute_grad:
                activations = _not_differentiable(activations)
            return _loss.ctc(activations, labels, input_lengths, num_threads=num_threads)


@jax.custom_jvp
def _not_differentiable(x: Array) -> Array:
    return x


@_not_differentiable.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    raise ValueError(
        "ConnectionistTemporalClassification(compute_grad=False) has no gradient. Make the op with "
        "compute_grad=True to differentiate it. If the cost is only reported, give the op "
        "jax.lax.stop_gradient(activations)."
    )

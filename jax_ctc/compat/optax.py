# SPDX-License-Identifier: Apache-2.0
"""CTC with the names and signatures of optax: `ctc_loss`, `ctc_loss_with_forward_probs`.

It differs from optax in five ways. A sequence without an alignment costs +inf and has a gradient
of 0; in optax it costs about 1e5. A label equal to `blank_id` is an error (under `jit` a cost of
NaN); optax computes something else. Padding of labels may stand anywhere, not only at the end.
Frames at the end that are padding have no influence, even if they are NaN. Paddings of frames have
to stand at the end; elsewhere they are an error (under `jit` a cost of NaN), because a frame in the
middle that does not count makes no sense for most models. `log_epsilon` has no effect, because log
0 is -inf.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from .. import _loss, _shapes, _values


def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> Array:
    """Returns the costs of a batch, in nats.

    Args:
      logits: (B, T, K) unnormalised.
      logit_paddings: (B, T), 1 for a frame that is padding, 0 for one in use.
      labels: (B, N) classes.
      label_paddings: (B, N), 1 for a label that is padding, 0 for one that counts.
      blank_id: the class of the blank.
      log_epsilon: has no effect.

    Returns:
      (B,) costs. `jax_ctc.ctc` says which inputs raise, and which costs are NaN or inf.
    """
    del log_epsilon
    labels, lengths = _labels_and_lengths(logits, logit_paddings, labels, label_paddings)
    return _loss.ctc(logits, labels, lengths, blank=blank_id, time_major=False)


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> tuple[Array, Array, Array]:
    """Returns costs as `ctc_loss`, and the forward variables of each frame.

    Args: as `ctc_loss`. Padding of labels has to stand at the end here.

    Returns:
      (B,) costs; (T, B, N + 1) logs of the sums over all paths that end in the blank after n
      labels; (T, B, N) the same in label n. Both are in nats, -inf for 0. In the last frame the
      first of them has paths that end in label n too, and after the length each repeats the frame
      before, as in optax. They are computed in float32 in log space, unlike the costs.
    """
    cost = ctc_loss(logits, logit_paddings, labels, label_paddings, blank_id, log_epsilon)
    scores = jax.nn.log_softmax(_shapes.floats("acts", logits).astype(cost.dtype))
    classes = jnp.maximum(jnp.asarray(_values.saturated(_shapes.integers("labels", labels))), 0)
    of_labels = jnp.take_along_axis(scores, classes[:, None], axis=-1, mode="fill")
    repeats = jnp.pad(classes[:, 1:] == classes[:, :-1], ((0, 0), (1, 0)))
    start = jnp.full((classes.shape[0], classes.shape[1] + 1), -jnp.inf, cost.dtype)
    start = start.at[:, 0].set(0)

    def frame(
        before: tuple[Array, Array], x: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (blank, label), (of_blank, of_label, padding) = before, x
        into_blank = blank.at[:, 1:].set(jnp.logaddexp(blank[:, 1:], label))
        skipped = jnp.pad(label[:, :-1], ((0, 0), (1, 0)), constant_values=-jnp.inf)
        skipped = jnp.where(repeats, -jnp.inf, skipped)
        into_label = jnp.logaddexp(jnp.logaddexp(label, blank[:, :-1]), skipped)
        stays = padding[:, None] > 0
        blank = jnp.where(stays, blank, into_blank + of_blank[:, None])
        label = jnp.where(stays, label, into_label + of_label)
        return (blank, label), (blank, label)

    each = scores[..., blank_id].T, of_labels.swapaxes(0, 1), jnp.asarray(logit_paddings).T
    _, (blank, label) = lax.scan(frame, (start, start[:, 1:]), each)
    if blank.shape[0]:
        last = jnp.logaddexp(blank[-1, :, 1:], label[-1])
        blank = blank.at[-1, :, 1:].set(last)
    return cost, blank, label


def _labels_and_lengths(
    logits: ArrayLike, logit_paddings: ArrayLike, labels: ArrayLike, label_paddings: ArrayLike
) -> tuple[Array, Array]:
    """Returns labels with -1 for padding, and lengths, -1 where a frame after padding is in use."""
    shape = jnp.shape(logits)
    if len(shape) != 3:
        raise ValueError(f"`logits`: expected shape (B, T, K), got shape {shape}.")
    frames, which = jnp.asarray(logit_paddings) > 0, jnp.asarray(label_paddings) > 0
    labels = jnp.asarray(_values.saturated(_shapes.integers("labels", labels)))
    for name, x, expected in (
        ("logit_paddings", frames, shape[:2]),
        ("label_paddings", which, labels.shape),
    ):
        if x.shape != expected:
            raise ValueError(f"`{name}`: expected shape {expected}, got shape {x.shape}.")
    lengths = (~frames).sum(-1, dtype=jnp.int32)
    in_the_middle = (frames[:, :-1] & ~frames[:, 1:]).any(-1)
    if not isinstance(in_the_middle, Tracer) and in_the_middle.any():
        raise ValueError(
            "`logit_paddings`: expected padding at the end of each sequence, got a frame in use "
            f"after padding in sequence {int(in_the_middle.argmax())}."
        )
    return jnp.where(which, -1, labels), jnp.where(in_the_middle, -1, lengths)

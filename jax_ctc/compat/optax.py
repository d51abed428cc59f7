# SPDX-License-Identifier: Apache-2.0
"""CTC with the names and signatures of optax: `ctc_loss`, `ctc_loss_with_forward_probs`.

It differs from optax in eleven ways. A sequence without an alignment costs +inf and has a gradient
of 0; in optax it costs about 1e5. A label equal to `blank_id` is an error (under `jit` a cost of
NaN), and so is one that is no class; optax computes something else. A negative label is padding. A
fraction in a padding counts as 1, and NaN as 0; in optax a fraction is a weight. Padding of labels
may stand anywhere, not only at the end. Frames at the end that are padding have no influence, even
if they are NaN. Paddings of frames have to stand at the end; elsewhere they are an error (under
`jit` a cost of NaN), because a frame in the middle that does not count makes no sense for most
models. Labels that are floats are an error; optax converts them. `log_epsilon` has no effect,
because log 0 is -inf. Costs of float32 logits are float32 under `jax_enable_x64` too, where optax
has float64.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from .. import _arrays, _loss, _mesh, _operands, _static, _values
from .._arrays import Integers
from ._names import names

_CALL = "ctc_loss(logits, logit_paddings, labels, label_paddings)"
_THEIRS = {"acts": "logits", "blank": "blank_id", "label_lengths": "label_paddings"}


def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: Integers,
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
    return _cost(logits, logit_paddings, labels, label_paddings, blank_id)[0]


def _cost(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: Integers,
    label_paddings: ArrayLike,
    blank_id: int,
) -> tuple[Array, Array, Array, Array]:
    """Returns the costs, and the logits, labels and lengths that they are of."""
    with names(_CALL, "(B, T, K)", **_THEIRS):
        acts = _arrays.floats("acts", logits, labels)
        rows, lengths = _labels_and_lengths(acts, logit_paddings, labels, label_paddings)
        cost = _loss.ctc(acts, rows, lengths, blank=blank_id, time_major=False)
    return cost, acts, rows, lengths


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: Integers,
    label_paddings: ArrayLike,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> tuple[Array, Array, Array]:
    """Returns costs as `ctc_loss`, and the forward variables of each frame.

    Args: as `ctc_loss`. Padding of labels has to stand at the end here; elsewhere it is an error
      (under `jit` the variables are NaN).

    Returns:
      (B,) costs; (T, B, N + 1) logs of the sums over all paths that end in the blank after n
      labels; (T, B, N) the same in label n. Both are in nats, -inf for 0. In the last frame the
      first of them has paths that end in label n too, and after the length each repeats the frame
      before, as in optax. Behind the labels that count they have no meaning, and differ from
      optax. They are computed in log space, unlike the costs, in the costs' dtype.
      Where one of them is -inf its gradient is 0. All are NaN, and have a gradient of 0, in a
      sequence that costs NaN.
    """
    del log_epsilon
    cost, acts, rows, lengths = _cost(logits, logit_paddings, labels, label_paddings, blank_id)
    gap = ((rows[:, :-1] < 0) & (rows[:, 1:] >= 0)).any(-1)
    if not isinstance(gap, Tracer) and gap.any():
        raise ValueError(
            "`label_paddings`: expected padding at the end of each row, got a label that counts "
            f"after padding in sequence {int(gap.argmax())}. `ctc_loss` takes it anywhere."
        )
    lengths = jnp.where(gap, -1, lengths)
    given = acts.astype(cost.dtype), rows, lengths
    given = [_mesh.sharded_with(x, acts, [0, None, None][: x.ndim]) for x in given]
    return cost, *_forward_variables(*_mesh.vary_alike(*given), blank_id=blank_id % acts.shape[-1])


@functools.partial(jax.jit, inline=True, static_argnames="blank_id")
def _forward_variables(
    logits: Array, labels: Array, lengths: Array, *, blank_id: int
) -> tuple[Array, Array]:
    """Returns (T, B, N + 1) of the blanks, (T, B, N) of the labels."""
    T, K = logits.shape[1:]
    invalid = _operands.invalid(labels, lengths, T=T, V=K, blank=blank_id)
    padded = ~_operands.used(logits.shape[:2], lengths, 1)
    defined = ~invalid & (padded | _operands.has_softmax(logits)).all(-1)
    # Rows of 0 in their place: a NaN times a cotangent of 0 is NaN.
    kept = (defined[:, None] & ~padded)[..., None]
    scores = jax.nn.log_softmax(jnp.where(kept, logits, 0))
    classes = jnp.clip(labels, 0, K - 1)
    of_labels = jnp.take_along_axis(scores, classes[:, None], axis=-1)
    of_blank = scores[..., blank_id, None]
    may_skip = classes != _after(-1, classes)[:, :-1]  # there is no label before the first
    unreached = jnp.full_like(of_labels.sum(1), -jnp.inf)  # (B, N), sharded as logits

    def frame(
        before: tuple[Array, Array], x: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        (blank, label), (of_blank, of_label, stays) = before, x
        label_before = _after(-jnp.inf, label)
        skipped = jnp.where(may_skip, label_before[:, :-1], -jnp.inf)
        into_label = _log_product(_log_sum(label, blank[:, :-1], skipped), of_label)
        into_blank = _log_product(_log_sum(blank, label_before), of_blank)
        after = jnp.where(stays, blank, into_blank), jnp.where(stays, label, into_label)
        return after, after

    blank, label, _ = _mesh.vary_alike(_after(0.0, unreached), unreached, scores)
    each = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (of_blank, of_labels, padded[..., None]))
    _, (blank, label) = lax.scan(frame, (blank, label), each)
    if T := blank.shape[0]:
        last = _log_sum(blank[-1], _after(-jnp.inf, label[-1]))
        blank = lax.dynamic_update_index_in_dim(blank, last, T - 1, 0)
    blank, label = (jnp.where(defined[:, None], x, jnp.nan) for x in (blank, label))
    return blank, label


def _after(first: float, x: Array) -> Array:
    """Returns x with one entry before those of its last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)], constant_values=first)


def _log_sum(*logs: Array) -> Array:
    """log(sum of exp), whose derivative is 0, not NaN, where all are -inf."""
    most = lax.stop_gradient(functools.reduce(jnp.maximum, logs))
    none = most == -jnp.inf  # a NaN is some
    most = jnp.where(none, 0, most)
    total = sum(jnp.exp(x - most) for x in logs)
    return jnp.where(none, -jnp.inf, most + jnp.log(jnp.where(none, 1, total)))


def _log_product(x: Array, y: Array) -> Array:
    """log of a product, whose derivative is 0 where it is -inf."""
    total = x + y
    return jnp.where(total == -jnp.inf, -jnp.inf, total)


def _is_padding(name: str, x: ArrayLike) -> Array:
    try:
        array = jnp.asarray(x)
        return array if array.dtype == bool else array > 0
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}`: expected an array, 1 for padding and 0 for what is in use, got "
            f"{_static.kind(x)}. The order is {_CALL}."
        ) from error


def _labels_and_lengths(
    logits: Array, logit_paddings: ArrayLike, labels: Integers, label_paddings: ArrayLike
) -> tuple[Array, Array]:
    """Returns labels with -1 for padding, and lengths, -1 where a frame after padding is in use."""
    shape = logits.shape
    if len(shape) != 3:
        raise ValueError(f"`logits`: expected shape (B, T, K), got shape {shape}.")
    frames = _is_padding("logit_paddings", logit_paddings)
    which = _is_padding("label_paddings", label_paddings)
    if _arrays.are_floats(labels):
        raise TypeError(
            "`labels`: expected integers (B, N), got floats. If they are classes, convert them: "
            f"labels.astype('int32'). The order is {_CALL}."
        )
    labels = _values.int32s("labels", labels)
    if frames.shape != shape[:2]:
        hint = " If `logits` is (T, B, K), transpose it." * (frames.shape == shape[1::-1])
        raise ValueError(
            f"`logit_paddings`: expected shape {shape[:2]}, got shape {frames.shape}.{hint}"
        )
    if labels.ndim != 2 or labels.shape[0] != shape[0]:
        raise ValueError(
            f"`labels`: expected shape ({shape[0]}, N) because `logits` has shape {shape} as "
            f"(B, T, K), got shape {labels.shape}."
        )
    if which.shape != labels.shape:
        raise ValueError(
            f"`label_paddings`: expected shape {labels.shape}, got shape {which.shape}."
        )
    lengths = (~frames).sum(-1, dtype=jnp.int32)
    in_the_middle = (frames[:, :-1] & ~frames[:, 1:]).any(-1)
    if not isinstance(in_the_middle, Tracer) and in_the_middle.any():
        raise ValueError(
            "`logit_paddings`: expected padding at the end of each sequence, got a frame in use "
            f"after padding in sequence {int(in_the_middle.argmax())}. 1 is padding, 0 is in use."
        )
    return jnp.where(which, -1, labels), jnp.where(in_the_middle, -1, lengths)

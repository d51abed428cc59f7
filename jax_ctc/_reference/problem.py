# SPDX-License-Identifier: Apache-2.0
"""A batch in the form that the recursion in pure JAX takes, and the softmax of its rows.

Arrays with frames but no classes are (T, N), whatever the order of acts. Arrays with V classes keep
the order of acts and are never copied: reductions over V and gathers of classes read them in place.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .. import _mesh, _operands

Carry = TypeVar("Carry")


class Normaliser(NamedTuple):
    """softmax = exp(acts - shift) / total. All are (T, N). In unused frames shift is 0, total 1.
    Of log-scores exp(acts) = exp(acts - shift - log_total), and total is 1."""

    shift: Array
    total: Array
    log_total: Array


class Problem(NamedTuple):
    acts: Array  # (T, N, V) or (N, T, V); unused frames may hold anything
    time_axis: int  # of acts, 0 or 1
    labels: Array  # (N, L) the operand, with the blank for padding
    position: Array  # (N, L) index of each entry of labels after padding is moved to the end
    states: Array  # (N, S) class of each state: blank, label, blank, ..., blank; S = 2 L + 1
    may_skip: Array  # (N, S) whether a path may enter from the state two before
    last: Array  # (N,) index of the last state
    invalid: Array  # (N,) whether a label or a length is not valid
    undefined: Array  # (T, N) frames in use of sequences in which a row has no softmax
    used: Array  # (T, N) frames in use of all other valid sequences
    normaliser: Normaliser
    blank: int
    softmax: bool  # whether acts are logits; else log-scores, of which only `states` are read

    @property
    def dtype(self) -> np.dtype:
        return _operands.cost_dtype(self.acts.dtype)

    @property
    def classes(self) -> Array:
        """(N, 1 + L): the blank and the labels, one for each column of the compact layout."""
        return _with_blank(self.labels, self.blank)

    @property
    def lattice_classes(self) -> Array:
        """(N, 1 + L): the blank and the labels with padding at the end, which the states have."""
        return _with_blank(self.states[:, 1::2], self.blank)

    @property
    def label_may_skip(self) -> Array:
        """(N, L): whether a path may enter a label from the label before."""
        return self.may_skip[:, 1::2]

    @property
    def label_count(self) -> Array:
        """(N,)"""
        return self.last // 2


def make(
    acts: Array,
    labels: Array,
    lengths: Array,
    *,
    time_axis: int,
    blank: int,
    threads: int,
    softmax: bool,
    star: bool = False,
) -> Problem:
    """Returns the problem of operands with one batch axis, or none. With `star`, label V is valid
    too, as that of an alignment."""
    del threads
    if acts.ndim == 2:
        acts, labels, lengths = acts[:, None], labels[None], lengths[None]
    T, V, L = acts.shape[time_axis], acts.shape[-1], labels.shape[-1]
    N, S = labels.shape[0], 2 * L + 1

    padding = labels < 0
    invalid = _operands.invalid(labels, lengths, T=T, V=V + star, blank=blank)
    label_count = jnp.where(invalid, 0, (~padding).sum(-1, dtype=jnp.int32))
    # Padding moves to the end. The order of the labels stays.
    order = jnp.argsort(padding, axis=-1, stable=True)
    labels = jnp.where(padding | invalid[:, None], blank, labels)
    states = jnp.full((N, S), blank, labels.dtype)
    states = states.at[:, 1::2].set(jnp.take_along_axis(labels, order, axis=-1))
    two_before = jnp.pad(states, ((0, 0), (2, 0)), constant_values=blank)[:, :S]
    s = jnp.arange(S, dtype=jnp.int32)[None, :]

    in_use = _operands.used((T, N), lengths, 0) & ~invalid[None]
    if softmax:
        top, has_nan = largest(acts, swapped(in_use, time_axis))
        top, has_nan = swapped(top, time_axis), swapped(has_nan, time_axis)
        has_nan |= top == -jnp.inf
    else:
        classes = _with_blank(labels, blank)
        entries = lax.stop_gradient(_entries(acts, classes, 0, T, time_axis))
        entries = jnp.where(in_use[..., None], entries, 0).astype(_operands.cost_dtype(acts.dtype))
        top, has_nan = entries.max(-1), jnp.isnan(entries).any(-1)
    undefined = (has_nan | (top == jnp.inf)).any(0)
    used = in_use & ~undefined[None]
    shift = lax.stop_gradient(jnp.where(used & (top > -jnp.inf), top, 0))
    of_scores = Normaliser(shift, jnp.ones_like(shift), -shift)
    return Problem(
        acts=acts,
        time_axis=time_axis,
        labels=labels,
        position=jnp.argsort(order, axis=-1),
        states=states,
        may_skip=(s % 2 == 1) & (s > 1) & (states != two_before),
        last=2 * label_count,
        invalid=invalid,
        undefined=in_use & undefined[None],
        used=used,
        normaliser=_of_softmax(acts, shift, used, time_axis) if softmax else of_scores,
        blank=blank,
        softmax=softmax,
    )


def _of_softmax(acts: Array, shift: Array, used: Array, time_axis: int) -> Normaliser:
    in_order = swapped(used, time_axis)
    ties, tail = ties_and_tail(acts, in_order, swapped(shift, time_axis))
    ties = jnp.where(in_order, ties, 1)
    parts = ties + tail, jnp.log(ties) + jnp.log1p(tail / ties)
    return Normaliser(shift, *(swapped(x, time_axis) for x in parts))


def _with_blank(labels: Array, blank: int) -> Array:
    first = jnp.full_like(labels, blank, shape=(labels.shape[0], 1))
    return jnp.concatenate([first, labels], axis=-1)


# ---- sums over V -------------------------------------------------------------------------------

# XLA on a CPU stores the terms of a sum. Classes are read in groups of at most this many, so that
# the memory does not grow with V. Sums in groups are more accurate too.
_GROUP = 256


def over_classes(
    f: Callable[[Carry, Array, Array, Array], Carry], start: Carry, acts: Array, used: Array
) -> Carry:
    """Folds `f(carry, x, first, fresh)` over groups of classes. `x` are logits in the dtype of
    costs, 0 in unused frames, of the classes from `first` on. `fresh` says which of them were in no
    group before."""
    V, dtype = acts.shape[-1], _operands.cost_dtype(acts.dtype)

    def masked(x: Array) -> Array:
        return jnp.where(used[..., None], x, 0).astype(dtype)

    if not isinstance(V, int) or V <= _GROUP:
        return f(start, masked(acts), jnp.int32(0), used[..., None])

    def group(carry, i):
        source, i = _operands.in_loop(acts, i)
        first = jnp.minimum(i * _GROUP, V - _GROUP)
        x = masked(lax.dynamic_slice_in_dim(source, first, _GROUP, axis=-1))
        fresh = first + lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) >= i * _GROUP
        return f(carry, x, first, fresh & used[..., None]), None

    groups = jnp.arange(-(-V // _GROUP), dtype=jnp.int32)
    return lax.scan(group, start, groups)[0]


def largest(acts: Array, used: Array) -> tuple[Array, Array]:
    """Returns the largest logit of each row, 0 in unused frames, and whether the row has a NaN. The
    second is needed because XLA's maximum over a large array may lose a NaN."""

    def f(carry: tuple[Array, Array], x: Array, *_: Array) -> tuple[Array, Array]:
        return jnp.maximum(carry[0], x.max(-1)), carry[1] | jnp.isnan(x).any(-1)

    lowest = jnp.full_like(acts, -jnp.inf, _operands.cost_dtype(acts.dtype), shape=used.shape)
    return over_classes(f, (lowest, jnp.zeros_like(used)), lax.stop_gradient(acts), used)


@jax.custom_jvp
def ties_and_tail(acts: Array, used: Array, shift: Array) -> tuple[Array, Array]:
    """Returns how many logits equal `shift`, the largest, and the sum of exp(acts - shift) over all
    others. Both are 0 in unused frames. They are kept apart so that a sum of 1 + 1e-9 keeps its
    digits."""

    def f(carry: tuple[Array, Array], x: Array, first: Array, fresh: Array) -> tuple[Array, Array]:
        del first
        is_top = x == shift[..., None]
        terms = jnp.exp(x - shift[..., None])
        # Partial evaluation drops the rule below (few_classes.py). So the largest logits have a
        # term of 0 with the derivatives of exp.
        terms = jnp.where(is_top, terms - lax.stop_gradient(terms), terms)
        terms = jnp.where(fresh, terms, 0)
        counted = (fresh & is_top).sum(-1, dtype=terms.dtype)
        return carry[0] + counted, carry[1] + sum_in_order(terms)

    nothing = jnp.zeros_like(shift)
    return over_classes(f, (nothing, nothing), acts, used)


@ties_and_tail.defjvp
def _(primals, tangents):
    """`shift` and the ties count as constants. So the tail has the derivative of the whole sum."""
    acts, used, shift = primals
    ties, tail = ties_and_tail(*primals)
    terms = softmax(acts, shift, used.astype(shift.dtype))
    change = jnp.where(used[..., None], tangents[0].astype(shift.dtype), 0)
    return (ties, tail), (jnp.zeros_like(ties), (terms * change).sum(-1))


def sum_in_order(x: Array) -> Array:
    """Sums over the last axis by halves. XLA's order of additions would depend on all sizes, also
    that of the batch."""
    size = x.shape[-1]
    if not isinstance(size, int):  # jax.export
        return x.sum(-1)
    width = 1 << max(size - 1, 0).bit_length()
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - size)])
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x[..., 0]


# ---- acts at frames and classes ----------------------------------------------------------------


def swapped(x: Array, time_axis: int) -> Array:
    """Returns (T, N, ...) in the order of acts, or the reverse."""
    return x if time_axis == 0 else jnp.swapaxes(x, 0, 1)


def logits(p: Problem, classes: Array, start: Array | int, count: int) -> Array:
    """Returns the logits (count, N, K) of classes (N, K) in `count` frames from `start` on, 0 in
    unused frames. No other logit is read."""
    acts, start = _operands.in_loop(p.acts, jnp.asarray(start))
    x = _entries(acts, classes, start, count, p.time_axis)
    used = lax.dynamic_slice_in_dim(p.used, start, count)
    return jnp.where(used[..., None], x, 0).astype(p.dtype)


def _entries(acts: Array, classes: Array, start: Array | int, count: int, time_axis: int) -> Array:
    """Returns acts (count, N, K) at classes (N, K)."""
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=(0,), collapsed_slice_dims=(1,), start_index_map=(0, 1)
    )

    def one(acts: Array, classes: Array) -> Array:  # (T, V), (S,)
        first = jnp.stack([jnp.full_like(classes, start), classes], axis=-1)
        return lax.gather(
            acts, first, dimensions, (count, 1), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS
        )

    return jax.vmap(one, (1 - time_axis, 0), 1)(acts, classes)


def softmax(acts: Array, shift: Array, scale: Array) -> Array:
    """Returns scale * exp(acts - shift), and 0 if scale is 0, whatever acts hold. All are in the
    order of acts; shift and scale have no V."""
    alive = (scale != 0)[..., None]
    x = jnp.where(alive, acts.astype(scale.dtype) - shift[..., None], 0)
    return jnp.where(alive, jnp.exp(x) * scale[..., None], 0)


def is_read(p: Problem) -> Array:
    """Returns (1, N, V): whether a class of log-scores is read."""

    def one(classes: Array) -> Array:
        return jnp.zeros_like(classes, bool, shape=p.acts.shape[-1]).at[classes].set(True)

    return jax.vmap(one)(p.classes)[None]


def minus_columns(x: Array, p: Problem, columns: Array) -> Array:
    """Returns x minus each of the 1 + L columns at its class. Both are in the order of acts: `vmap`
    would move the batch to the front, and so copy x twice if T comes first."""
    batch = 1 - p.time_axis
    dimensions = lax.ScatterDimensionNumbers(
        update_window_dims=(p.time_axis,),
        inserted_window_dims=(2,),
        scatter_dims_to_operand_dims=(2,),
        operand_batching_dims=(batch,),
        scatter_indices_batching_dims=(0,),
    )

    def added(x: Array, classes: Array, columns: Array) -> Array:
        in_bounds = lax.GatherScatterMode.PROMISE_IN_BOUNDS
        return lax.scatter_add(x, classes, columns, dimensions, mode=in_bounds)

    # JAX 0.7 has no rule for a scatter of what types shard.
    added = _mesh.with_auto_axes(added, jax.typeof(x))
    return added(x, p.classes[..., None], -columns)

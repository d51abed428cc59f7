# SPDX-License-Identifier: Apache-2.0
"""The recursion in plain JAX: what platforms without kernels run, and how higher derivatives go.

Log space, with the best state's value taken out of every frame and every frame's occupancies
normalised on their own (docs/ctc.md): 1e-4 of gradient error in float32 at T = 2000. Every function
here has the operands of the primitive of its name, and can be differentiated any number of times:
`where` keeps what is not needed out of every sum, so that no derivative meets an infinity.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import _axes

_NO_PATH = -jnp.inf


def loss(acts: Array, labels: Array, lengths: Array, **parameters: Any) -> Array:
    """Cost per sequence, in nats."""
    problem = _flatten(acts, labels, lengths, **parameters)
    return _cost(problem, _alpha(problem)[1]).reshape(lengths.shape)


def forward(acts: Array, labels: Array, lengths: Array, **parameters: Any) -> list[Array]:
    """Cost, and what the derivatives need: rows (shift, scale) and columns."""
    problem = _flatten(acts, labels, lengths, **parameters)
    cost, rows, columns = _forward(problem)
    frames = _axes.axis_names(_axes.ACTS, acts.ndim - 2, parameters["time_axis"]).index("t")

    def shaped(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*lengths.shape, *x.shape[1:]), -2, frames)

    return [cost.reshape(lengths.shape), shaped(rows), shaped(columns)]


def tangent(
    acts: Array,
    labels: Array,
    lengths: Array,
    rows: Array,
    columns: Array,
    directions: Array,
    **parameters: Any,
) -> Array:
    """Derivative of the cost along `directions`."""
    time_axis = parameters["time_axis"]
    problem = _flatten(acts, labels, lengths, **parameters)
    unit = _gradient(problem, _frames_of(rows, time_axis), _frames_of(columns, time_axis))
    along = _frames_of(directions, time_axis).astype(unit.dtype)
    # Where there is no gradient the direction is not looked at: it may be anything.
    return jnp.where(unit == 0, 0, unit * along).sum((-2, -1)).reshape(lengths.shape)


def cotangent(
    acts: Array,
    labels: Array,
    lengths: Array,
    rows: Array,
    columns: Array,
    cotangents: Array,
    **parameters: Any,
) -> Array:
    """Gradient of the costs, each times its cotangent; exactly 0 where that is 0."""
    time_axis = parameters["time_axis"]
    problem = _flatten(acts, labels, lengths, **parameters)
    unit = _gradient(problem, _frames_of(rows, time_axis), _frames_of(columns, time_axis))
    return _like(_scaled(unit, cotangents), acts, time_axis)


def hvp(
    acts: Array,
    labels: Array,
    lengths: Array,
    rows: Array,
    columns: Array,
    cotangents: Array,
    directions: Array,
    **parameters: Any,
) -> Array:
    """Hessian of the costs times `directions`, each times its cotangent. Reads no residuals."""
    del rows, columns  # functions of acts: their part of the derivative is taken here too
    time_axis = parameters["time_axis"]

    def unit_gradient(x: Array) -> Array:
        problem = _flatten(x, labels, lengths, **parameters)
        _, rows, columns = _forward(problem)
        return _gradient(problem, rows, columns)

    wide = acts.astype(cotangents.dtype)
    unit, change = jax.jvp(unit_gradient, (wide,), (directions.astype(wide.dtype),))
    change = jnp.where(jnp.isnan(unit), jnp.nan, change)
    return _like(_scaled(change, cotangents), acts, time_axis)


# ---- the problem in one shape ------------------------------------------------------------------


class _Problem(NamedTuple):
    """N sequences; rows that are not used are zeros, whatever stood there."""

    acts: Array  # (N, T, V), float32 or float64
    states: Array  # (N, S) class of each state: blank, label, blank, ..., blank; S = 2 L + 1
    reachable: Array  # (N, S) states up to the last label's blank
    may_skip: Array  # (N, S) from the state two before
    last: Array  # (N,) index of the last state
    bad: Array  # (N,) a label or a length is not valid
    broken: Array  # (N, T) frames in use of sequences in which a row has no softmax
    used: Array  # (N, T) frames in use of all other sequences
    blank: int
    dense: bool


def _flatten(
    acts: Array, labels: Array, lengths: Array, *, time_axis: int, blank: int, threads: int
) -> _Problem:
    del threads
    L = labels.shape[-1]
    x = _frames_of(acts, time_axis)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    N, T, V = x.shape
    labels, lengths = labels.reshape(N, L), lengths.reshape(N)

    padding = labels < 0
    bad = ((labels >= V) | (labels == blank)).any(-1) | (lengths < 0) | (lengths > T)
    count = jnp.where(bad, 0, (~padding).sum(-1, dtype=jnp.int32))
    # Padding goes to the end, the order of the labels stays.
    order = jnp.argsort(padding, axis=-1, stable=True)
    labels = jnp.take_along_axis(labels, order, axis=-1)
    labels = jnp.where(_counting(L) < count[:, None], labels, blank)
    states = jnp.full((N, 2 * L + 1), blank, labels.dtype).at[:, 1::2].set(labels)
    two_before = jnp.pad(states, ((0, 0), (2, 0)), constant_values=blank)[:, : 2 * L + 1]
    s = _counting(2 * L + 1)

    in_use = (_counting(T) < lengths[:, None]) & ~bad[:, None]
    top = jnp.where(in_use[..., None], x, 0).max(-1)  # NaN where the row has one
    undefined = (~jnp.isfinite(top)).any(-1)
    used = in_use & ~undefined[:, None]
    return _Problem(
        acts=jnp.where(used[..., None], x, 0),
        states=states,
        reachable=s <= 2 * count[:, None],
        may_skip=(s % 2 == 1) & (s > 1) & (states != two_before),
        last=2 * count,
        bad=bad,
        broken=in_use & undefined[:, None],
        used=used,
        blank=blank,
        dense=_axes.is_dense(V, L),
    )


def _counting(n: int) -> Array:
    return jnp.arange(n, dtype=jnp.int32)[None, :]


def _frames_of(x: Array, time_axis: int) -> Array:
    """(..., T at time_axis, ..., K) as (N, T, K)."""
    x = jnp.moveaxis(x, time_axis, -2)
    size = 1
    for d in x.shape[:-2]:
        size *= d
    return x.reshape(size, *x.shape[-2:])


def _like(x: Array, acts: Array, time_axis: int) -> Array:
    """(N, T, V) in the shape and dtype of acts."""
    batch = [d for axis, d in enumerate(acts.shape[:-1]) if axis != time_axis]
    return jnp.moveaxis(x.reshape(*batch, *x.shape[1:]), -2, time_axis).astype(acts.dtype)


def _scaled(unit: Array, cotangents: Array) -> Array:
    c = cotangents.reshape(-1, 1, 1)
    return jnp.where(c == 0, 0, c * unit)


# ---- the recursion -----------------------------------------------------------------------------


def _log_sum_exp(terms: Array, axis: int) -> Array:
    """-inf where all terms are; its derivatives are finite there too."""
    top = lax.stop_gradient(terms.max(axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.exp(terms - top).sum(axis)
    return jnp.where(
        total > 0, jnp.log(jnp.where(total > 0, total, 1)) + jnp.squeeze(top, axis), _NO_PATH
    )


def _normaliser(p: _Problem) -> tuple[Array, Array]:
    """Shift and log sum of every row: log softmax = acts - shift - log_sum."""
    shift = lax.stop_gradient(p.acts.max(-1))
    return shift, jnp.log(jnp.exp(p.acts - shift[..., None]).sum(-1))


def _log_emissions(p: _Problem) -> Array:
    """(T, N, S) log softmax of each state's class; -inf for states that are not there."""
    shift, log_sum = _normaliser(p)
    log_probs = p.acts - (shift + log_sum)[..., None]
    classes = jnp.broadcast_to(p.states[:, None, :], (*p.used.shape, p.states.shape[-1]))
    scores = jnp.take_along_axis(log_probs, classes, axis=-1)
    return jnp.moveaxis(jnp.where(p.reachable[:, None, :], scores, _NO_PATH), 1, 0)


def _from_before(alpha: Array, may_skip: Array) -> Array:
    """Log sum over the states one may come from: the state itself, one before, two before."""
    S = alpha.shape[-1]
    padded = jnp.pad(alpha, ((0, 0), (2, 0)), constant_values=_NO_PATH)
    skipped = jnp.where(may_skip, padded[:, :S], _NO_PATH)
    return _log_sum_exp(jnp.stack([alpha, padded[:, 1 : S + 1], skipped]), axis=0)


def _sweep(start: Array, emissions: Array, used: Array, may_skip: Array) -> tuple[Any, Any]:
    """Runs the recursion over frames. Returns the last states with what was taken out of them, and
    per frame the states before and after its emission."""

    def frame(carry: Any, inputs: Any) -> Any:
        states, taken_out = carry
        emission, in_use = inputs
        before = _from_before(states, may_skip)
        after = before + emission
        top = lax.stop_gradient(after.max(-1))
        top = jnp.where(jnp.isfinite(top), top, 0)
        after = jnp.where(in_use[:, None], after - top[:, None], states)
        taken_out = taken_out + jnp.where(in_use, top, 0)
        return (after, taken_out), (before, after)

    zero = jnp.zeros_like(emissions, shape=start.shape[:1])
    return lax.scan(frame, (start, zero), (emissions, used))


def _one_state(p: _Problem, index: Array) -> Array:
    here = _counting(p.states.shape[-1]) == index[:, None]
    return jnp.where(here, jnp.zeros((), p.acts.dtype), jnp.asarray(_NO_PATH, p.acts.dtype))


def _alpha(p: _Problem) -> tuple[Array, Array]:
    """States before each frame's emission (T, N, S), and log Z (N,)."""
    start = _one_state(p, jnp.zeros_like(p.last))
    emissions = _log_emissions(p)
    (end, taken_out), (before, _) = _sweep(start, emissions, p.used.T, p.may_skip)
    ends = jnp.stack(
        [
            jnp.take_along_axis(end, p.last[:, None], axis=-1)[:, 0],
            jnp.where(
                p.last > 0,
                jnp.take_along_axis(end, jnp.maximum(p.last - 1, 0)[:, None], axis=-1)[:, 0],
                _NO_PATH,
            ),
        ]
    )
    return before, _log_sum_exp(ends, axis=0) + taken_out


def _beta(p: _Problem) -> Array:
    """The same sweep over reversed frames and states: after each frame's emission (T, N, S)."""

    def reverse(x: Array) -> Array:
        return jnp.flip(x, -1)

    may_skip = jnp.pad(p.may_skip, ((0, 0), (0, 2)))[:, 2:]  # seen from the state it starts in
    emissions = jnp.flip(reverse(_log_emissions(p)), 0)
    start = reverse(_one_state(p, p.last))
    _, (_, after) = _sweep(start, emissions, jnp.flip(p.used.T, 0), reverse(may_skip))
    return jnp.flip(reverse(after), 0)


def _cost(p: _Problem, log_z: Array) -> Array:
    cost = jnp.maximum(-log_z, 0)
    return jnp.where(p.bad | p.broken.any(-1), jnp.nan, cost)


def _forward(p: _Problem) -> tuple[Array, Array, Array]:
    """Cost (N,), rows (N, T, 2 or 0) and columns (N, T, C)."""
    before, log_z = _alpha(p)
    log_gamma = before + _beta(p)
    top = lax.stop_gradient(log_gamma.max(-1, keepdims=True))
    gamma = jnp.exp(log_gamma - jnp.where(jnp.isfinite(top), top, 0))
    total = gamma.sum(-1, keepdims=True)
    gamma = jnp.moveaxis(gamma / jnp.where(total > 0, total, 1), 0, 1)  # (N, T, S)

    active = p.used & jnp.isfinite(log_z)[:, None]
    shift, log_sum = _normaliser(p)
    rows = jnp.stack([shift, jnp.exp(-log_sum)], axis=-1)
    columns = jnp.concatenate([gamma[..., ::2].sum(-1, keepdims=True), gamma[..., 1::2]], axis=-1)
    if p.dense:
        columns = _softmax(p, rows) - _by_class(p, columns)
        rows = rows[..., :0]

    def kept(x: Array) -> Array:
        x = jnp.where(active[..., None], x, 0)
        return jnp.where(p.broken[..., None], jnp.nan, x)

    return _cost(p, log_z), kept(rows), kept(columns)


def _softmax(p: _Problem, rows: Array) -> Array:
    return jnp.exp(p.acts - rows[..., :1]) * rows[..., 1:2]


def _by_class(p: _Problem, columns: Array) -> Array:
    """(N, T, 1 + L) occupancies of the blank and the labels, as (N, T, V)."""
    N = p.states.shape[0]
    classes = jnp.concatenate(
        [jnp.full((N, 1), p.blank, p.states.dtype), p.states[:, 1::2]], axis=-1
    )

    def one(classes: Array, columns: Array) -> Array:
        return jnp.zeros_like(columns, shape=p.acts.shape[-1]).at[classes].add(columns)

    return jax.vmap(jax.vmap(one, (None, 0)))(classes, columns)


def _gradient(p: _Problem, rows: Array, columns: Array) -> Array:
    """(N, T, V) gradient of the costs, from what `_forward` kept."""
    if p.dense:
        return columns
    gradient = _softmax(p, rows) - _by_class(p, columns)
    return jnp.where(rows[..., 1:2] == 0, 0, gradient)

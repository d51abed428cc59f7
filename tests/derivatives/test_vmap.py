# SPDX-License-Identifier: Apache-2.0
"""vmap over any axis of any arguments gives what a Python loop over the reference gives."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jax_ctc
from support import jnp_reference
from support.cases import COMPACT, DENSE, both_layouts
from support.runs import sampled, sweep

K = 2
OF_ACTS, OF_LABELS, OF_LENGTHS = [None, 0, 1, 2, 3], [None, 0, 2], [None, 0, 1]
AXES = sweep(
    list(product(OF_ACTS, OF_LABELS, OF_LENGTHS)),
    [  # each axis of an argument with each axis of another
        (of_acts, OF_LABELS[j], OF_LENGTHS[(i + j) % 3])
        for i, of_acts in enumerate(OF_ACTS)
        for j in range(3)
    ],
)
AXES.remove((None, None, None))
reference = jax.jit(jnp_reference.ctc)


def weighted(loss):
    return lambda *arguments: jnp.sum(jnp.sin(loss(*arguments)))


reference_gradient = jax.jit(jax.grad(weighted(jnp_reference.ctc)))


def copies(case):
    """K versions of each argument, along a new first axis."""
    acts, labels, lengths, _ = case.arguments(np.float64)
    return (
        np.stack([acts, -0.5 * acts]),
        np.stack([labels, labels[:, ::-1]]),
        np.stack([lengths, lengths - 1]),
    )


def along(axes, arguments):
    """The K versions along the wanted axes; where that is None, the first alone."""
    return [
        x[0] if a is None else np.moveaxis(x, 0, a) for x, a in zip(arguments, axes, strict=True)
    ]


def loop(function, axes, arguments):
    """What vmap is to give."""

    def version(k):
        return [x[0 if a is None else k] for x, a in zip(arguments, axes, strict=True)]

    return np.stack([function(*version(k)) for k in range(K)])


@both_layouts
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_vmap_is_a_loop(case, axes):
    arguments = copies(case)
    costs = jax.vmap(jax_ctc.ctc, axes)(*along(axes, arguments))
    np.testing.assert_allclose(costs, loop(reference, axes, arguments), rtol=1e-10)


@both_layouts
@pytest.mark.parametrize("axes", AXES, ids=str)
@sampled(8)
def test_vmap_of_grad_is_a_loop(case, axes):
    arguments = copies(case)
    gradients = jax.jit(jax.vmap(jax.grad(weighted(jax_ctc.ctc)), axes))(*along(axes, arguments))
    expected = loop(reference_gradient, axes, arguments)
    np.testing.assert_allclose(gradients, expected, atol=1e-10)


@both_layouts
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_grad_of_vmap_is_a_sum_over_the_loop(case, axes):
    arguments = copies(case)
    gradient = jax.grad(weighted(jax.vmap(jax_ctc.ctc, axes)))(*along(axes, arguments))
    expected = loop(reference_gradient, axes, arguments)
    if axes[0] is None:
        expected = expected.sum(axis=0)
    else:
        expected = np.moveaxis(expected, 0, axes[0])
    np.testing.assert_allclose(gradient, expected, atol=1e-10)


@both_layouts
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_vmap_of_batch_major_acts_is_a_loop(case, axis):
    acts, labels, lengths = copies(case)
    mapped = np.moveaxis(acts.swapaxes(1, 2), 0, axis)
    ctc = jax.vmap(partial(jax_ctc.ctc, time_major=False), (axis, 0, 1))
    costs, vjp = jax.vjp(lambda acts: ctc(acts, labels, lengths.T), mapped)
    expected = loop(reference, (0, 0, 0), (acts, labels, lengths))
    np.testing.assert_allclose(costs, expected, rtol=1e-10)
    gradient = np.moveaxis(vjp(jnp.cos(costs))[0], axis, 0).swapaxes(1, 2)
    expected = loop(reference_gradient, (0, 0, 0), (acts, labels, lengths))
    np.testing.assert_allclose(gradient, expected, atol=1e-10)


@both_layouts
@pytest.mark.parametrize("axes", list(product([0, 1, 2], [0, 1])), ids=str)
def test_vmap_of_one_sequence_is_the_batch(case, axes):
    acts, labels, lengths, _ = case.arguments(np.float64)
    mapped = np.moveaxis(acts, 1, axes[0]), np.moveaxis(labels, 0, axes[1]), lengths
    costs = jax.vmap(jax_ctc.ctc, (*axes, 0))(*mapped)
    np.testing.assert_allclose(costs, reference(acts, labels, lengths), rtol=1e-10)


@both_layouts
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_label_lengths_are_mapped_like_any_argument(case, axis):
    acts, labels, lengths, _ = case.arguments(np.float64)
    label_lengths = np.array([[3, 1, 2], [0, 2, 3]])
    given = label_lengths[0] if axis is None else np.moveaxis(label_lengths, 0, axis)
    costs = jax.vmap(jax_ctc.ctc, (None, None, 0, axis))(
        acts, labels, np.stack([lengths, lengths]), given
    )
    expected = [
        reference(acts, labels, lengths, label_lengths[k if axis is not None else 0])
        for k in (0, 1)
    ]
    np.testing.assert_allclose(costs, expected, rtol=1e-10)


def only_tangents(loss, acts, labels, lengths):
    cost = partial(loss, labels=labels[0], lengths=lengths[0])
    tangents = jnp.stack([acts[0, 1], acts[1, 0]], axis=2)
    return jax.vmap(lambda u: jax.jvp(cost, (acts[0, 0],), (u,)), in_axes=2)(tangents)


def only_cotangents(loss, acts, labels, lengths):
    _, vjp = jax.vjp(lambda acts: loss(acts, labels[0], lengths[0]), acts[0, 0])
    return jax.vmap(vjp, in_axes=1)(jnp.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]]))


def tangents_of_mapped_acts(loss, acts, labels, lengths):
    mapped = jax.vmap(loss, (2, 0, None))
    acts = jnp.moveaxis(acts[0], 0, 2)
    return jax.jvp(lambda acts: mapped(acts, labels, lengths[0]), (acts,), (jnp.cos(acts),))


def gradients_in_gradients(loss, acts, labels, lengths):
    inner = jax.vmap(jax.grad(weighted(loss)), (0, 0, None))

    def total(acts):
        return jnp.sum(inner(acts, labels, lengths[0]) ** 3)

    return jax.vmap(jax.grad(total), in_axes=4)(jnp.moveaxis(acts, 0, 4))


NESTINGS = {
    "two axes of acts, one of the rest": lambda loss, acts, labels, lengths: jax.vmap(
        jax.vmap(loss), (0, None, None)
    )(acts, labels, lengths),
    "every argument in turn": lambda loss, acts, labels, lengths: jax.vmap(
        jax.vmap(jax.vmap(loss, (None, 0, None)), (None, None, 0)), (0, None, None)
    )(acts[0], labels, lengths),
    "acts last and in the middle": lambda loss, acts, labels, lengths: jax.vmap(
        jax.vmap(loss, (2, None, 0)), (4, 0, None)
    )(jnp.moveaxis(acts, (0, 1), (4, 2)), labels, lengths),
    "out_axes": lambda loss, acts, labels, lengths: jax.vmap(loss, out_axes=1)(
        acts[0], labels, lengths
    ),
    "vmap of jit of vmap": lambda loss, acts, labels, lengths: jax.jit(
        jax.vmap(jax.jit(jax.vmap(loss, (1, 0, 0))), (0, None, None))
    )(jnp.swapaxes(acts, 1, 2), labels, lengths),
    "vmap of scan": lambda loss, acts, labels, lengths: jax.vmap(
        lambda acts: lax.scan(lambda c, xs: (c, loss(*xs)), 0, (acts, labels, lengths))[1]
    )(acts),
    "vmap of cond, both sides": lambda loss, acts, labels, lengths: jax.vmap(
        lambda acts, *rest: lax.cond(
            acts[0, 0, 0] > 0, loss, lambda acts, *rest: loss(-acts, *rest), acts, *rest
        )
    )(acts[0], labels, lengths),
    "vmap over tangents alone": only_tangents,
    "vmap over cotangents alone": only_cotangents,
    "jvp of vmap": tangents_of_mapped_acts,
    "vmap of grad of vmap of grad": gradients_in_gradients,
}


EACH_NESTING = list(product([DENSE, COMPACT], NESTINGS))


@pytest.mark.parametrize(
    ("case", "name"),
    sweep(EACH_NESTING, EACH_NESTING[::2]),  # an odd number of them: each in one layout
    ids=lambda x: getattr(x, "name", str(x)),
)
@sampled(2)
def test_nested_maps_agree_with_those_of_a_scan(case, name):
    nesting = NESTINGS[name]
    acts, labels, lengths = copies(case)
    arguments = jnp.stack([acts, jnp.tanh(acts)]), jnp.asarray(labels), jnp.asarray(lengths)
    actual = nesting(jax_ctc.ctc, *arguments)
    expected = jax.jit(partial(nesting, jnp_reference.ctc))(*arguments)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), actual, expected)


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.mark.parametrize("of", ["labels", "directions"])
def test_a_second_call_outside_of_jit_compiles_nothing(of):
    acts, labels, lengths = jnp.zeros((5, 2, 6)), jnp.ones((3, 2, 1), int), jnp.full(2, 5)

    def total(acts, labels):
        return jax_ctc.ctc(acts, labels, lengths).sum()

    def call():
        if of == "labels":
            return jax.vmap(jax.grad(total), (None, 0))(acts, labels)
        return jax.hessian(total)(acts, labels[0])

    call()
    assert COMPILED
    COMPILED.clear()
    call()
    assert not COMPILED


def test_a_tangent_and_a_gradient_of_mapped_batches_are_those_of_each():
    acts, direction = np.random.default_rng(0).normal(size=(2, 3, 5, 2, 4))
    cost = lambda acts: jax_ctc.ctc(acts, np.ones((2, 2), int), np.array([5, 4]))  # noqa: E731
    slopes = jax.jvp(jax.vmap(cost), (acts,), (direction,))[1]
    gradients = jax.grad(lambda acts: jax.vmap(cost)(acts).sum())(acts)
    for k in range(3):
        one = jax.jvp(cost, (acts[k],), (direction[k],))[1]
        np.testing.assert_allclose(slopes[k], one, rtol=1e-9)
        alone = jax.grad(lambda acts: cost(acts).sum())(acts[k])
        np.testing.assert_allclose(gradients[k], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("function", [jax_ctc.ctc, jax_ctc.ctc_align], ids=lambda f: f.__name__)
@pytest.mark.parametrize("of", ["acts", "labels", "lengths"])
def test_an_axis_of_size_0(function, of):
    given = [np.zeros((6, 2, 5), np.float32), np.ones((2, 3), np.int32), np.full(2, 6, np.int32)]
    axes = [0 if name == of else None for name in ("acts", "labels", "lengths")]
    mapped = [
        np.zeros((0, *x.shape), x.dtype) if axis == 0 else x
        for x, axis in zip(given, axes, strict=True)
    ]
    found = jax.vmap(function, axes)(*mapped)
    expected = jax.eval_shape(function, *given)
    for x, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.shape == (0, *one.shape)

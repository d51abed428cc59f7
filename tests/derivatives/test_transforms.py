# SPDX-License-Identifier: Apache-2.0
"""Whatever JAX makes of the loss, it makes the same of a scan that it can see through."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

import jax_ctc
from support import jnp_reference
from support.cases import COMPACT, DENSE, both_layouts
from support.programs import direction_like, scalar
from support.runs import sampled, sweep


def assert_trees_agree(actual, expected, tolerance=1e-9):
    def assert_leaves_agree(actual, expected):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)

    jax.tree.map(assert_leaves_agree, actual, expected)


def linearized(cost, acts):
    value, push = jax.linearize(cost, acts)
    return value, push(direction_like(acts))


def transposed(cost, acts):
    value, push = jax.linearize(cost, acts)
    return jax.linear_transpose(push, acts)(direction_like(value))


def descended(cost, acts):
    def step(acts, _):
        value, gradient = jax.value_and_grad(scalar(cost))(acts)
        return acts - 0.1 * gradient, value

    return lax.scan(step, acts, None, length=5)


def through_a_scan(cost, acts):
    def step(scale, factor):
        return scale * 1.1, scalar(cost)(scale * factor)

    return jax.grad(lambda acts: lax.scan(step, acts, jnp.arange(3.0))[1].sum())(acts)


def through_a_loop(cost, acts):
    def loop(acts):
        return lax.fori_loop(0, 3, lambda _, x: x + scalar(cost)(acts * x), jnp.float64(0.5))

    return jax.jvp(loop, (acts,), (direction_like(acts),))


def through_a_while_loop(cost, acts):
    def shrink(acts):
        return lax.while_loop(
            lambda a: jnp.abs(a).max() > 1, lambda a: a * jnp.tanh(0.1 * cost(a).mean()), acts
        )

    return jax.jvp(shrink, (acts,), (direction_like(acts),))


def through_a_branch(cost, acts):
    def branches(acts):
        return lax.cond(acts[0, 0, 0] > 0, scalar(cost), lambda acts: 2 * scalar(cost)(-acts), acts)

    return jax.grad(branches)(acts), jax.grad(branches)(-acts)


def checkpointed(policy):
    def gradient(cost, acts):
        layer = jax.checkpoint(lambda acts: scalar(cost)(jnp.tanh(acts)), policy=policy)
        return jax.jit(jax.grad(layer))(acts)

    return gradient


def partly_perturbed(cost, acts):
    return jax.grad(lambda frame: scalar(cost)(acts.at[2].set(frame)))(acts[2])


def beside_a_stopped_gradient(cost, acts):
    return jax.grad(lambda acts: (cost(acts) * cost(lax.stop_gradient(acts))).sum())(acts)


def with_weights_alone(cost, acts):
    return jax.grad(lambda weights: (cost(lax.stop_gradient(acts)) * weights).sum())(jnp.ones(3))


def some_costs_alone(cost, acts):
    return jax.grad(lambda acts: cost(acts)[1])(acts)


TRANSFORMS = {
    "nothing": lambda cost, acts: cost(acts),
    "jit": lambda cost, acts: jax.jit(cost)(acts),
    "grad": lambda cost, acts: jax.grad(scalar(cost))(acts),
    "jit of grad": lambda cost, acts: jax.jit(jax.grad(scalar(cost)))(acts),
    "grad of jit": lambda cost, acts: jax.grad(scalar(jax.jit(cost)))(acts),
    "value_and_grad": lambda cost, acts: jax.value_and_grad(scalar(cost))(acts),
    "jvp": lambda cost, acts: jax.jvp(cost, (acts,), (direction_like(acts),)),
    "vjp": lambda cost, acts: jax.vjp(cost, acts)[1](jnp.array([1.0, -2.0, 0.5])),
    "jacfwd": lambda cost, acts: jax.jacfwd(cost)(acts),
    "jacrev": lambda cost, acts: jax.jacrev(cost)(acts),
    "jit of jacfwd": lambda cost, acts: jax.jit(jax.jacfwd(cost))(acts),
    "jit of jacrev": lambda cost, acts: jax.jit(jax.jacrev(cost))(acts),
    "linearize": linearized,
    "linear_transpose": transposed,
    "scan over gradient steps": descended,
    "jit of scan": lambda cost, acts: jax.jit(lambda acts: descended(cost, acts))(acts),
    "grad of scan": through_a_scan,
    "jvp of fori_loop": through_a_loop,
    "jvp of while_loop": through_a_while_loop,
    "grad of cond": through_a_branch,
    "checkpoint": checkpointed(None),
    "checkpoint that saves everything": checkpointed(jax.checkpoint_policies.everything_saveable),
    "checkpoint that saves nothing": checkpointed(jax.checkpoint_policies.nothing_saveable),
    "checkpoint that saves dots": checkpointed(jax.checkpoint_policies.dots_saveable),
    "checkpoint that saves what ctc makes": checkpointed(
        lambda primitive, *_, **__: primitive.name.startswith("ctc")
    ),
    "grad by one frame": partly_perturbed,
    "stop_gradient": beside_a_stopped_gradient,
    "grad by the weights of costs": with_weights_alone,
    "grad of one cost": some_costs_alone,
}


# What has the result of a simpler transform.
SIMPLEST = {
    "jit": "nothing",
    "jit of grad": "grad",
    "grad of jit": "grad",
    "linearize": "jvp",
    "jacrev": "jacfwd",
    "jit of jacfwd": "jacfwd",
    "jit of jacrev": "jacfwd",
    "jit of scan": "scan over gradient steps",
    "checkpoint that saves everything": "checkpoint",
    "checkpoint that saves nothing": "checkpoint",
    "checkpoint that saves dots": "checkpoint",
    "checkpoint that saves what ctc makes": "checkpoint",
}


def in_a_layout():
    """(case, name): every transform in both layouts in `make test-all`, else in one."""
    groups = sorted({SIMPLEST.get(name, name) for name in TRANSFORMS})
    for name in TRANSFORMS:
        cases = [DENSE, COMPACT]
        place = groups.index(SIMPLEST.get(name, name)) % 2
        yield from ((case, name) for case in sweep(cases, [cases[place]]))


def transformed(name, loss, case):
    acts, labels, lengths, _ = case.arguments(np.float64)
    return TRANSFORMS[name](lambda acts: loss(acts, labels, lengths), jnp.asarray(acts))


@cache
def transformed_scan(name, case):
    case = {"dense": DENSE, "compact": COMPACT}[case]
    return jax.jit(lambda: transformed(name, jnp_reference.ctc, case))()


@pytest.mark.parametrize(
    ("case", "name"), list(in_a_layout()), ids=lambda x: getattr(x, "name", str(x))
)
@sampled(2)
def test_transformed_ctc_agrees_with_the_transformed_scan(case, name):
    expected = transformed_scan(SIMPLEST.get(name, name), case.name)
    assert_trees_agree(transformed(name, jax_ctc.ctc, case), expected)


@both_layouts
def test_compilation_may_come_ahead_of_time(case):
    acts, labels, lengths, _ = case.arguments()
    gradient = jax.jit(jax.grad(lambda *arguments: jax_ctc.ctc(*arguments).sum()))
    compiled = gradient.lower(acts, labels, lengths).compile()
    np.testing.assert_array_equal(compiled(acts, labels, lengths), gradient(acts, labels, lengths))


@pytest.mark.parametrize("case", sweep([DENSE, COMPACT], [COMPACT]), ids=lambda case: case.name)
def test_the_batch_axis_may_come_first_in_every_derivative(case):
    acts, labels, lengths, _ = case.arguments(np.float64)
    direction = direction_like(acts)

    def derivatives(loss):
        cost = partial(loss, labels=labels, lengths=lengths)
        gradient = jax.grad(scalar(cost))
        return jax.jvp(cost, (acts,), (direction,)), jax.jvp(gradient, (acts,), (direction,))

    def batch_major(acts, **rest):
        return jax_ctc.ctc(acts.swapaxes(0, 1), **rest, time_major=False)

    expected = jax.jit(lambda: derivatives(jnp_reference.ctc))()
    assert_trees_agree(derivatives(batch_major), expected)


@both_layouts
def test_integers_have_float0_tangents(case):
    acts, labels, lengths, _ = case.arguments(np.float64)
    label_lengths = np.array([3, 2, 2])
    nothing = [np.zeros(x.shape, jax.dtypes.float0) for x in (labels, lengths, label_lengths)]
    primals, tangents = (acts, labels, lengths, label_lengths), (direction_like(acts), *nothing)
    expected = jax.jit(lambda: jax.jvp(jnp_reference.ctc, primals, tangents))()
    assert_trees_agree(jax.jvp(jax_ctc.ctc, primals, tangents), expected)


@both_layouts
def test_integers_have_float0_gradients(case):
    acts, labels, lengths, _ = case.arguments(np.float64)

    def gradients(loss):
        def total(*arguments):
            return loss(*arguments).sum()

        return jax.grad(total, argnums=(0, 1, 2), allow_int=True)(acts, labels, lengths)

    actual = gradients(jax_ctc.ctc)
    assert_trees_agree(actual[0], jax.jit(lambda: gradients(jnp_reference.ctc)[0])())
    assert [g.dtype for g in actual[1:]] == [jax.dtypes.float0] * 2


@both_layouts
@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_derivatives_agree_with_finite_differences(case, mode):
    acts, labels, lengths, _ = case.arguments(np.float64)
    check_grads(lambda acts: jax_ctc.ctc(acts, labels, lengths), (acts,), order=2, modes=[mode])


def test_float32_tangents_give_float32():
    acts = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    cost, tangent = jax.jvp(lambda acts: jax_ctc.ctc(acts, [[1], [2]], [4, 4]), (acts,), (acts,))
    assert cost.dtype == tangent.dtype == jnp.float32

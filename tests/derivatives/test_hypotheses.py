# SPDX-License-Identifier: Apache-2.0
"""Several label sequences on one acts (N-best): what each costs alone, and no copy of acts."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
import jax_ctc._primitives.ctc as primitives
from support import oracle
from support.results import COMPILED, assert_costs, assert_gradient

T, B, L, K = 14, 3, 4, 5


def problem(V=30, time_major=True):
    rng = np.random.default_rng(V)
    acts = (3 * rng.normal(size=(T, B, V))).astype(np.float32)
    labels = rng.integers(1, V, (K, B, L), dtype=np.int32)
    labels[0, :, 2:] = -1
    labels[1] = labels[1, :, :1]  # needs 7 frames
    labels[2, 1] = -1
    labels[3, 2, 1] = -1
    lengths = np.array([T, T - 1, 6], np.int32)
    return acts if time_major else acts.swapaxes(0, 1), labels, lengths


def expected(acts, labels, lengths, time_major=True):
    acts = acts if time_major else acts.swapaxes(0, 1)
    solved = [oracle.cost_and_gradient(acts, row, lengths) for row in labels]
    costs, gradients = (np.stack(x) for x in zip(*solved, strict=True))
    return costs, gradients if time_major else gradients.swapaxes(1, 2)


def costs_of(acts, labels, lengths, time_major=True):
    ctc = partial(jax_ctc.ctc, time_major=time_major)
    return jax.vmap(ctc, in_axes=(None, 0, None))(acts, labels, lengths)


def sized(compiled, size):
    """Arrays in the program of at least so many elements, besides its arguments."""
    shapes = re.findall(r"= [a-z]+\d+\[([\d,]+)\]\S* (?!parameter|bitcast)", compiled.as_text())
    return [s for s in shapes if np.prod([int(n) for n in s.split(",")]) >= size]


@pytest.mark.parametrize("V", [3, 6, 30])
def test_each_costs_what_it_does_alone(V, time_major):
    acts, labels, lengths = problem(V, time_major)
    costs, gradients = expected(acts, labels, lengths, time_major)
    f = partial(costs_of, labels=labels, lengths=lengths, time_major=time_major)
    assert_costs(jax.jit(f)(acts), costs, T)
    finite = np.where(np.isfinite(costs), 1, 0).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda acts: jnp.vdot(jnp.where(finite == 0, 0, f(acts)), finite)))
    assert_gradient(gradient(acts), gradients.sum(0), K)


@pytest.mark.parametrize("V", [3, 30])
def test_each_has_the_gradient_that_it_has_alone(V, time_major):
    acts, labels, lengths = problem(V, time_major)
    _, gradients = expected(acts, labels, lengths, time_major)

    def total(acts, labels):
        return jax_ctc.ctc(acts, labels, lengths, time_major=time_major).sum()

    actual = jax.jit(jax.vmap(jax.grad(total), in_axes=(None, 0)))(acts, labels)
    assert_gradient(actual, gradients)


MEGABYTES_12 = 12 << 20


@pytest.mark.parametrize(
    ("V", "megabytes", "softmax", "copies"),
    [
        (12, 1000, True, True),
        (13, 11, True, True),
        (18, 1000, True, True),  # 3 (L + 2): as small as the arrays of few classes
        (12, 1000, False, True),  # 2 (L + 2)
        (19, 11, True, True),
        (48, 11, True, True),  # 8 (L + 2)
        (48, 13, True, False),
        (49, 1, True, False),
        (19, 13, True, False),
        (13, 1, False, False),
    ],
)
def test_acts_are_copied_where_the_copies_are_small(monkeypatch, V, megabytes, softmax, copies):
    monkeypatch.setattr(primitives, "most_bytes_of_copies", MEGABYTES_12)
    frames = (megabytes << 20) // (K * V * 4)
    acts = jax.ShapeDtypeStruct((frames, 1, V), np.float32)
    assert primitives._copies_are_better(acts, K, L, softmax) == copies


@pytest.mark.skipif(not COMPILED, reason="pure JAX has sums of its own")
@pytest.mark.parametrize("hypotheses", [K, 65])
def test_gradients_of_copies_are_added(hypotheses):
    """XLA's code for a sum over a leading axis is slow on CPUs. Many copies are summed by it."""
    acts, labels, lengths = problem(V=5)
    labels = np.resize(labels, (hypotheses, B, L))
    gradient = jax.jit(jax.grad(lambda acts: costs_of(acts, labels, lengths).sum()))
    a_sum = f"(tensor<{hypotheses}x{T}x{B}x5xf32>, tensor<f32>) -> tensor<{T}x{B}x5xf32>"
    assert (a_sum in gradient.lower(acts).as_text()) == (hypotheses == 65)
    assert_gradient(gradient(acts), expected(acts, labels, lengths)[1].sum(0), hypotheses)


@pytest.mark.skipif(not COMPILED, reason="in pure JAX they have an error of 1e-8")
def test_costs_of_what_is_nearly_certain_keep_their_digits():
    acts = np.random.default_rng(0).normal(size=(12, 1, 60)).astype(np.float32)
    acts[np.arange(12), 0, [1, 1, 0, 2, 2, 2, 0, 3, 3, 0, 0, 0]] += 22
    labels, lengths = np.array([[1, 2, 3]]), np.array([12])
    costs = costs_of(acts, np.stack([labels, labels]), lengths)
    exact = oracle.solve(acts, labels, lengths).cost
    assert 0 < exact[0] < 1e-6
    np.testing.assert_allclose(costs, [exact, exact], rtol=1e-5)


def test_lengths_may_differ_too_and_hypotheses_be_any_axis_of_the_labels():
    acts, labels, _ = problem()
    lengths = np.random.default_rng(0).integers(8, T + 1, (K, B), dtype=np.int32)
    costs = jax.vmap(jax_ctc.ctc, in_axes=(None, 2, 1))(
        acts, np.moveaxis(labels, 0, 2), lengths.swapaxes(0, 1)
    )
    for k in range(K):
        assert_costs(costs[k], oracle.cost_and_gradient(acts, labels[k], lengths[k])[0], T)


def test_hypotheses_of_hypotheses():
    acts, labels, lengths = problem()
    nested = jax.vmap(partial(costs_of, acts, lengths=lengths))(np.stack([labels, labels[::-1]]))
    costs, _ = expected(acts, labels, lengths)
    assert_costs(nested, np.stack([costs, costs[::-1]]), T)


def test_a_product_with_the_hessian_of_their_sum():
    acts, labels, lengths = problem()
    direction = np.random.default_rng(1).normal(size=acts.shape).astype(np.float32)
    gradient = jax.grad(lambda acts: costs_of(acts, labels[2:], lengths).sum())
    product = jax.jit(lambda x, u: jax.jvp(gradient, (x,), (u,))[1])(acts, direction)
    alone = [oracle.hessian_vector(acts, row, lengths, direction) for row in labels[2:]]
    assert_gradient(product, np.sum(alone, axis=0), 10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_stays_with_its_sequence(value):
    acts, labels, lengths = problem()
    acts[2, 1, 20] = value
    costs = costs_of(acts, labels, lengths)
    assert np.isnan(costs[:, 1]).all()
    assert not np.isnan(costs[:, [0, 2]]).any()
    gradient = jax.jit(jax.grad(lambda acts: costs_of(acts, labels, lengths).sum()))(acts)
    assert np.isnan(gradient[: lengths[1], 1]).all()
    assert not gradient[lengths[1] :, 1].any()
    assert not np.isnan(gradient[:, [0, 2]]).any()

    def total(acts, labels):
        return jax_ctc.ctc(acts, labels, lengths).sum()

    each = jax.jit(jax.vmap(jax.grad(total), in_axes=(None, 0)))(acts, labels)
    assert np.isnan(each[:, : lengths[1], 1]).all()
    assert not each[:, lengths[1] :, 1].any()
    assert not np.isnan(each[:, :, [0, 2]]).any()


@pytest.mark.skipif(not COMPILED, reason="plain JAX makes arrays as large as acts for itself")
def test_acts_are_not_copied():
    """In a program for the CPU, also where JAX's default is a GPU: there a fused computation names
    arrays that are never in memory. test_gpu_program.py reads programs for GPUs."""
    acts, labels, lengths = problem(4096)
    with jax.default_device(jax.devices("cpu")[0]):
        f = jax.jit(lambda acts: costs_of(acts, labels, lengths).sum())
        assert sized(f.lower(acts).compile(), acts.size) == []
        step = jax.jit(jax.grad(f)).lower(acts).compile()
        assert len(sized(step, acts.size)) == 1  # the gradient
        each = jax.jit(
            jax.vmap(jax.grad(lambda acts, y: jax_ctc.ctc(acts, y, lengths).sum()), (None, 0))
        )
        memory = each.lower(acts, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2.2 * acts.nbytes  # of K gradients

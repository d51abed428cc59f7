# SPDX-License-Identifier: Apache-2.0
"""The signatures of theano.tensor.nnet.ctc."""

from functools import partial

import jax
import numpy as np
import pytest

import jax_ctc
from jax_ctc import _kernels
from jax_ctc.compat import theano
from support import oracle
from support.cases import DENSE, both_layouts
from support.results import assert_costs, assert_gradient, assert_same_bits


@both_layouts
def test_ctc_takes_activations_labels_and_input_lengths(case):
    acts, labels, lengths, _ = case.arguments()
    cost = theano.ctc(activations=acts, labels=labels, input_lengths=lengths)
    assert_same_bits(cost, jax_ctc.ctc(acts, labels, lengths))
    assert_same_bits(theano.ctc(acts, labels, lengths), cost)


@both_layouts
@pytest.mark.parametrize("openmp", [None, True, False])
@pytest.mark.parametrize("under_jit", [False, True], ids=["eager", "jit"])
def test_the_op_has_a_cost_and_a_gradient(case, openmp, under_jit):
    acts, labels, lengths, _ = case.arguments()
    op = theano.ConnectionistTemporalClassification(openmp=openmp)
    evaluate = jax.value_and_grad(lambda acts: op(acts, labels, lengths).sum())
    value, gradient = (jax.jit(evaluate) if under_jit else evaluate)(acts)
    truth = oracle.solve(acts, labels, lengths)
    assert_costs(value, truth.cost.sum(), case.T)
    assert_gradient(gradient, truth.gradient)


def test_without_compute_grad_there_is_a_cost_but_no_derivative():
    acts, labels, lengths, _ = DENSE.arguments()
    op = theano.ConnectionistTemporalClassification(compute_grad=False)
    assert_same_bits(op(acts, labels, lengths), jax_ctc.ctc(acts, labels, lengths))
    assert_same_bits(jax.jit(op)(acts, labels, lengths), jax_ctc.ctc(acts, labels, lengths))

    def total(acts):
        return op(acts, labels, lengths).sum()

    with pytest.raises(Exception, match="compute_grad"):
        jax.grad(total)(acts)
    with pytest.raises(Exception, match="compute_grad"):
        jax.jvp(total, (acts,), (acts,))


def test_the_mean_of_theano_s_own_example():
    acts = np.array(
        [
            [[0, 0, 0, 0, 0], [1, 2, 3, 4, 5], [-5, -4, -3, -2, -1]],
            [[0, 0, 0, 0, 0], [6, 7, 8, 9, 10], [-10, -9, -8, -7, -6]],
            [[0, 0, 0, 0, 0], [11, 12, 13, 14, 15], [-15, -14, -13, -12, -11]],
        ],
        np.float32,
    )
    cost = theano.ctc(acts, np.array([[1, -1], [3, 3], [2, 3]]), np.array([1, 3, 3]))
    np.testing.assert_allclose(cost, [1.609437943, 7.355742931, 4.938849926], rtol=1e-5)


def test_ops_with_the_same_switches_are_one_static_argument():
    Op = theano.ConnectionistTemporalClassification
    traced = []

    @partial(jax.jit, static_argnums=0)
    def cost(op, acts, labels, lengths):
        traced.append(op)
        return op(acts, labels, lengths)

    arguments = DENSE.arguments()[:3]
    for op in (Op(), Op(True, None), Op(compute_grad=1)):
        cost(op, *arguments)
    assert len(traced) == 1
    assert len({Op(), Op(True), Op(openmp=0), Op(openmp=False), Op(False), Op(openmp=True)}) == 4


@pytest.mark.parametrize("off", [False, 0, np.bool_(False)], ids=repr)
def test_whatever_is_false_switches_off(off):
    op = theano.ConnectionistTemporalClassification(compute_grad=off, openmp=off)
    assert repr(op) == "ConnectionistTemporalClassification(compute_grad=False, openmp=False)"
    acts, labels, lengths, _ = DENSE.arguments()
    assert "threads=1 " in str(jax.make_jaxpr(op)(acts, labels, lengths))
    with pytest.raises(Exception, match="compute_grad"):
        jax.grad(lambda acts: op(acts, labels, lengths).sum())(acts)


def test_ctc_is_available():
    assert theano.ctc_available() is True
    assert (theano.ctc_available.msg is None) == (jax_ctc.build_info()["cpu"] is not None)


@pytest.mark.skipif(not jax_ctc.build_info()["cpu"], reason="the CPU runs pure JAX here")
def test_missing_kernels_for_gpus_are_no_reason(monkeypatch):
    monkeypatch.setattr(_kernels, "cuda", None)
    assert theano.ctc_available() is True
    assert theano.ctc_available.msg is None


@pytest.mark.parametrize(("openmp", "threads"), [(None, 0), (True, 0), (False, 1)])
def test_openmp_says_how_many_threads(openmp, threads):
    op = theano.ConnectionistTemporalClassification(openmp=openmp)
    program = jax.make_jaxpr(op)(np.zeros((4, 1, 3), np.float32), np.array([[1]]), np.array([4]))
    assert f"threads={threads} " in str(program)

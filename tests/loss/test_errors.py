# SPDX-License-Identifier: Apache-2.0
"""Errors name the argument, the place, what was expected and what came."""

import re

import jax
import numpy as np
import pytest
from jax.experimental import checkify

import jax_ctc

T, B, V, L = 8, 3, 80, 18


def good():
    return {
        "acts": np.random.default_rng(0).normal(size=(T, B, V)).astype(np.float32),
        "labels": np.full((B, L), 5),
        "lengths": np.full(B, T),
        "label_lengths": np.array([4, 0, L]),
    }


def changed(name, index, value):
    arguments = good()
    arguments[name][index] = value
    return arguments


def total(acts, **rest):
    return jax_ctc.ctc(acts, **rest).sum()


BAD_VALUES = {
    "labels[2, 17] = 80 is not a class of acts with V = 80": ("labels", (2, 17), 80),
    "labels[0, 3] = 123456 is not a class of acts with V = 80": ("labels", (0, 3), 123456),
    "labels[0, 2] = 0 is the blank": ("labels", (0, 2), 0),
    "lengths[2] = 9 is outside [0, 8]": ("lengths", 2, 9),
    "lengths[0] = -1 is outside [0, 8]": ("lengths", 0, -1),
    "label_lengths[1] = 19 is outside [0, 18]": ("label_lengths", 1, 19),
    "label_lengths[0] = -2 is outside [0, 18]": ("label_lengths", 0, -2),
}
bad_values = pytest.mark.parametrize(
    ("message", "edit"), BAD_VALUES.items(), ids=[message.split(" is")[0] for message in BAD_VALUES]
)


@bad_values
def test_a_bad_value_raises(message, edit):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        jax_ctc.ctc(**changed(*edit))


@bad_values
def test_a_bad_value_raises_batch_major(message, edit):
    arguments = changed(*edit)
    arguments["acts"] = arguments["acts"].swapaxes(0, 1)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        jax_ctc.ctc(**arguments, time_major=False)


@bad_values
@pytest.mark.parametrize("transform", ["grad", "value_and_grad", "hessian"])
def test_a_bad_value_raises_while_acts_are_differentiated(message, edit, transform):
    arguments = changed(*edit)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        getattr(jax, transform)(total)(arguments.pop("acts"), **arguments)


@bad_values
def test_a_bad_value_cannot_raise_under_jit(message, edit):
    cost = jax.jit(jax_ctc.ctc)(**changed(*edit))
    assert np.isnan(cost[edit[1][0] if isinstance(edit[1], tuple) else edit[1]])
    assert np.isnan(cost).sum() == 1


def test_one_sequence_is_named_by_position_alone():
    acts, row = good()["acts"][:, 0], np.full(L, 5)
    row[17] = 80
    with pytest.raises(
        ValueError, match=re.escape("labels[17] = 80 is not a class of acts with V = 80")
    ):
        jax_ctc.ctc(acts, row, T)
    with pytest.raises(ValueError, match=r"^lengths = 9 is outside \[0, 8\]"):
        jax_ctc.ctc(acts, row, 9, 2)
    with pytest.raises(ValueError, match=r"^label_lengths = 19 is outside \[0, 18\]"):
        jax_ctc.ctc(acts, row, T, 19)


@pytest.mark.parametrize("blank", [5, 79])
def test_the_blank_is_named_wherever_it_is(blank):
    arguments = good()
    arguments["labels"][:] = 0
    arguments["labels"][2, 1] = blank
    assert np.isfinite(jax_ctc.ctc(**arguments, blank=7)[1])
    with pytest.raises(ValueError, match=rf"^labels\[2, 1\] = {blank} is the blank"):
        jax_ctc.ctc(**arguments, blank=blank)


def test_padding_is_no_bad_value():
    arguments = good()
    arguments["labels"][0, 4:] = 99
    arguments["labels"][1] = 0
    arguments["labels"][2, ::2] = -7
    assert not np.isnan(jax_ctc.ctc(**arguments)).any()
    jax_ctc.check(**arguments)


@bad_values
def test_check_raises_what_ctc_raises(message, edit):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        jax_ctc.check(**changed(*edit))


@jax.jit
@checkify.checkify
def checked(**arguments):
    jax_ctc.check(**arguments)
    return jax_ctc.ctc(**arguments)


@bad_values
def test_checkify_reports_what_ctc_would_raise(message, edit):
    error, cost = checked(**changed(*edit))
    assert np.isnan(cost).sum() == 1
    assert message in error.get()


def test_checkify_reports_nothing_when_all_is_well():
    error, cost = checked(**good())
    assert error.get() is None
    assert not np.isnan(cost).any()


@jax.jit
@checkify.checkify
def checked_sequence(acts, labels, length):
    jax_ctc.check(acts, labels, length, time_major=False, blank=3)


def test_checkify_knows_one_sequence_and_its_blank():
    acts = np.zeros((T, V), np.float32)
    error, _ = checked_sequence(acts, np.array([1, 2, 3, 4]), T)
    assert "labels[2] = 3 is the blank" in error.get()
    error, _ = checked_sequence(acts, np.array([1, 2, -3, 0]), T)
    assert error.get() is None


# What is wrong, the argument it has to name, and what the message has to say came.
WRONG_SHAPES = {
    "acts of one axis": ("acts", np.zeros(V, np.float32), "(80,)"),
    "acts of four axes": ("acts", np.zeros((T, B, V, 1), np.float32), "(8, 3, 80, 1)"),
    "labels of one axis": ("labels", np.full(L, 5), "(18,)"),
    "labels of three axes": ("labels", np.full((B, L, 1), 5), "(3, 18, 1)"),
    "labels of another batch": ("labels", np.full((B + 1, L), 5), "(4, 18)"),
    "labels transposed": ("labels", np.full((L, B), 5), "(18, 3)"),
    "lengths of another batch": ("lengths", np.full(B + 1, T), "(4,)"),
    "lengths of two axes": ("lengths", np.full((B, 1), T), "(3, 1)"),
    "label_lengths of another batch": ("label_lengths", np.full(B - 1, 2), "(2,)"),
    "label_lengths of two axes": ("label_lengths", np.full((1, B), 2), "(1, 3)"),
    "blank below": ("blank", -V - 1, "-81"),
    "blank above": ("blank", V, "80"),
    "no classes": ("acts", np.zeros((T, B, 0), np.float32), "0"),
}
WRONG_TYPES = {
    "whole acts": ("acts", np.zeros((T, B, V), np.int32), "int32"),
    "true or false acts": ("acts", np.zeros((T, B, V), bool), "bool"),
    "complex acts": ("acts", np.zeros((T, B, V), np.complex64), "complex64"),
    "float labels": ("labels", np.full((B, L), 5, np.float32), "float32"),
    "true or false labels": ("labels", np.ones((B, L), bool), "bool"),
    "float lengths": ("lengths", np.full(B, T, np.float64), "float64"),
    "float label_lengths": ("label_lengths", np.full(B, 2, np.float32), "float32"),
    "float blank": ("blank", 1.0, "float"),
}
FUNCTIONS = [jax_ctc.ctc, jax_ctc.check, jax_ctc.ctc_occupancy, jax_ctc.ctc_align]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def assert_refused(error, function, name, value, came):
    arguments = good() | {name: value}
    blank = arguments.pop("blank", 0)
    for call in (function, jax.jit(function, static_argnames="blank")):
        with pytest.raises(error) as caught:
            call(**arguments, blank=blank)
        assert re.search(rf"\b{name}\b", str(caught.value))
        assert came in str(caught.value)


@every_function
@pytest.mark.parametrize("wrong", WRONG_SHAPES.values(), ids=WRONG_SHAPES.keys())
def test_a_wrong_shape_or_blank_is_a_value_error(function, wrong):
    assert_refused(ValueError, function, *wrong)


@every_function
@pytest.mark.parametrize("wrong", WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_a_wrong_dtype_is_a_type_error(function, wrong):
    assert_refused(TypeError, function, *wrong)


def test_one_sequence_takes_one_row_of_labels():
    arguments = good()
    with pytest.raises(ValueError, match=r"labels.*\(3, 18\)"):
        jax_ctc.ctc(arguments["acts"][:, 0], arguments["labels"], T)


@pytest.mark.parametrize(
    ("letter", "sizes"), [("T", (2**31, 3, 4)), ("V", (5, 2**31, 4)), ("L", (5, 3, 2**31))]
)
def test_sizes_that_kernels_cannot_count_are_refused(letter, sizes):
    T, V, L = sizes
    arrays = [((T, 0, V), np.float32), ((0, L), np.int32), ((0,), np.int32)]
    with pytest.raises(ValueError, match=f"expected {letter} to be at most 2147"):
        jax.eval_shape(jax_ctc.ctc, *(jax.ShapeDtypeStruct(*x) for x in arrays))

# SPDX-License-Identifier: Apache-2.0
"""Calls as users of other libraries make them: the error says which argument, and the way out."""

import pydoc
import re

import jax
import numpy as np
import pytest

import jax_ctc
from jax_ctc import compat

T, B, V, L = 6, 2, 5, 3
GOOD = {
    "acts": np.zeros((T, B, V), np.float32),
    "labels": np.array([[1, 2, -1], [1, 2, 3]]),
    "lengths": np.array([6, 5]),
}
RATIO = np.array([0.9, 1.0])
FUNCTIONS = [jax_ctc.ctc, jax_ctc.check, jax_ctc.ctc_occupancy, jax_ctc.ctc_align]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


class Refuses:
    """As a tensor of PyTorch that requires a gradient."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("detach it first")


# What was called otherwise than it should be; the error; what it says came; the way out.
MISUSES = {
    "strings": ({"labels": ["cat", "dog"]}, TypeError, "strings", "its class first"),
    "lists of strings": ({"labels": [["a"], ["b"]]}, TypeError, "strings", "its class first"),
    "ragged labels": ({"labels": [[1, 2], [1]]}, ValueError, "a list", "padded with -1"),
    "sparse labels": (
        {"labels": (np.zeros((3, 2), int), np.ones(3, int), np.array([B, L]))},
        ValueError, "a tuple", "padded with -1",
    ),
    "an array of lists": (
        {"labels": np.array([[1, 2], [1]], dtype=object)}, TypeError, "ndarray", "padded with -1",
    ),
    "a list with None": (
        {"labels": [[1, 2, None]] * B}, TypeError, "a list that holds None", "padded with -1",
    ),
    "an array of objects": (
        {"labels": np.array([[1, 2, "c"]] * B, dtype=object)},
        TypeError, "a ndarray that holds a str", "padded with -1",
    ),
    "one-hot labels": (
        {"labels": np.eye(V)[GOOD["labels"]]}, TypeError, "float64", "labels.argmax(-1)",
    ),
    "a bool among integers": (
        {"labels": np.array([[1, True, 2]] * B, dtype=object)},
        TypeError, "a ndarray that holds a bool", "padded with -1",
    ),
    "no labels, as floats": (
        {"labels": np.zeros((B, 0))}, TypeError, "float64", "labels.astype('int32')",
    ),
    "no labels": ({"labels": None}, TypeError, "NoneType", "one array (B, L)"),
    "a mask for labels": (
        {"labels": np.ones((B, L), bool)}, TypeError, "bool", "jnp.where(mask, labels, -1)",
    ),
    "float labels": ({"labels": np.ones((B, L))}, TypeError, "float64", "labels.astype('int32')"),
    "relative lengths": (
        {"lengths": RATIO}, TypeError, "float64", "jnp.round(ratio * T).astype(int)",
    ),
    "float lengths": (
        {"lengths": np.ceil(RATIO * T)}, TypeError, "float64", "lengths.astype('int32')",
    ),
    "a mask of frames and sequences": (
        {"lengths": np.ones((T, B), bool)}, TypeError, "bool", "mask.sum(0) of (T, B)",
    ),
    "relative label lengths": (
        {"label_lengths": RATIO}, TypeError, "float64", "jnp.round(ratio * L).astype(int)",
    ),
    "a mask for lengths": ({"lengths": np.ones((B, T), bool)}, TypeError, "bool", "mask.sum(-1)"),
    "a mask for label_lengths": (
        {"label_lengths": np.ones((B, L), bool)}, TypeError, "bool", "mask.sum(-1)",
    ),
    "strings for lengths": ({"lengths": ["6", "5"]}, TypeError, "strings", "one integer for each"),
    "ragged lengths": ({"lengths": [[6], [5, 1]]}, ValueError, "a list", "one integer for each"),
    "integers for acts": ({"acts": np.zeros((T, B, V), int)}, TypeError, "int64", "astype"),
    "floats of the other byte order": (
        {"acts": GOOD["acts"].astype(">f4")}, TypeError, ">f4", "acts.astype('float32')",
    ),
    "an array that refuses": ({"acts": Refuses()}, TypeError, "a Refuses", "detach it first"),
    "labels of more than 64 bits": (
        {"labels": [[1, 2**70]] * B}, TypeError, str(2**70), "that fit 64 bits",
    ),
    "a length of more than 64 bits": (
        {"lengths": [1, -(2**70)]}, TypeError, str(-(2**70)), "that fit 64 bits",
    ),
    "strings for acts": ({"acts": "logits"}, TypeError, "a str", "an array of floats"),
    "nothing for acts": ({"acts": None}, (TypeError, ValueError), "NoneType", "array of floats"),
    "ragged acts": ({"acts": [[1.0, 2.0], [1.0]]}, ValueError, "a list", "an array of floats"),
    "a word for time_major": ({"time_major": "B"}, TypeError, "'B'", "Python bool"),
    "a word for blank": ({"blank": "0"}, TypeError, "a str", "Python int"),
    "a blank above": ({"blank": V}, ValueError, "got 5", "[-V, V) with V = 5"),
    "a blank below": ({"blank": -V - 1}, ValueError, "got -6", "[-V, V) with V = 5"),
}  # fmt: skip


def assert_says(error, call, name, came, way_out):
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert said.startswith(f"`{name}`")
    assert came in said
    assert way_out in said
    assert "Tracer" not in said
    assert len(said) < 300


@every_function
@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES.keys())
def test_a_misuse_raises_an_error_with_the_way_out(function, misuse):
    changed, error, came, way_out = misuse
    (name,) = changed
    assert_says(error, lambda: function(**(GOOD | changed)), name, came, way_out)


@every_function
@pytest.mark.parametrize("of", [np.asarray, np.ndarray.tolist], ids=["arrays", "lists"])
def test_swapped_acts_and_labels_are_recognised(function, of):
    swapped = GOOD | {"acts": of(GOOD["labels"]), "labels": of(GOOD["acts"])}
    assert_says(TypeError, lambda: function(**swapped), "acts", "int", "are the two swapped?")
    with pytest.raises(TypeError, match=r"The order is ctc\(acts, labels, \.\.\.\)\.$"):
        function(**swapped)


HIDDEN, KERNEL, BIAS = np.zeros((T, B, 4), "f"), np.zeros((4, V), "f"), np.zeros(V, "f")
LABELS, LENGTHS = GOOD["labels"], GOOD["lengths"]
FOUND = jax_ctc.ctc_greedy_decode(GOOD["acts"], LENGTHS)
BEST = jax_ctc.ctc_align(*GOOD.values())

# Arguments in another order; the error; the argument it names, what came, and the way out.
ORDERS = {
    "labels before kernel": (
        lambda: jax_ctc.ctc_linear(HIDDEN, LABELS, KERNEL, LENGTHS),
        "kernel", "int", "The order is ctc_linear(hidden, kernel, labels, ...).",
    ),
    "label_lengths as floats": (
        lambda: jax_ctc.ctc_linear(
            HIDDEN, np.zeros((4, B), "f"), np.ones((B, 1), int), LENGTHS, np.ones(B)
        ),
        "label_lengths", "float64", "label_lengths.astype('int32')",
    ),
    "bias before labels": (
        lambda: jax_ctc.ctc_linear(HIDDEN, KERNEL, BIAS, LABELS, LENGTHS),
        "labels", "float32", "ctc_linear(hidden, kernel, labels, lengths, bias=bias).",
    ),
    "labels before decoded": (
        lambda: jax_ctc.label_error_rate(LABELS, FOUND),
        "labels", "a Decoded", "label_error_rate(decoded, labels).",
    ),
    "alignment before acts": (
        lambda: jax_ctc.label_confidence(BEST, GOOD["acts"], L),
        "acts", "an Alignment", "label_confidence(acts, alignment, L).",
    ),
    "optax: labels before their frames": (
        lambda: compat.optax.ctc_loss(
            GOOD["acts"].swapaxes(0, 1), LABELS, np.zeros((B, T)), np.zeros((B, L))
        ),
        "labels", "floats", "ctc_loss(logits, logit_paddings, labels, label_paddings).",
    ),
    "optax: no paddings": (
        lambda: compat.optax.ctc_loss(
            GOOD["acts"].swapaxes(0, 1), None, LABELS, np.zeros((B, L))
        ),
        "logit_paddings", "a NoneType", "1 for padding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_another_order_of_arguments_is_told_the_order(order):
    call, name, came, way_out = order
    assert_says(TypeError, call, name, came, way_out)


FRONTS = {
    "keras": lambda acts: compat.keras.ctc_loss(LABELS, acts, LENGTHS, LENGTHS),
    "optax": lambda acts: compat.optax.ctc_loss(acts, acts, LABELS, LABELS),
    "theano": lambda acts: compat.theano.ctc(acts, LABELS, LENGTHS),
    "torch": lambda acts: compat.torch.ctc_loss(acts, LABELS, LENGTHS, LENGTHS),
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("shape", [(V,), (T, B + 2, V), (B + 2, T, V), (1, T, B, V)], ids=str)
def test_no_front_speaks_of_an_argument_that_it_has_not(front, shape):
    with pytest.raises(ValueError, match="expected shape") as caught:
        FRONTS[front](np.zeros(shape, np.float32))
    assert "time_major" not in str(caught.value)


@pytest.mark.parametrize(
    ("front", "name", "order"),
    [
        ("keras", "output", "(T, B, V)"),
        ("theano", "activations", "(B, T, V)"),
        ("torch", "log_probs", "(B, T, V)"),
    ],
)
def test_a_front_says_what_to_do_with_the_other_layout(front, name, order):
    acts = GOOD["acts"] if order == "(T, B, V)" else GOOD["acts"].swapaxes(0, 1)
    with pytest.raises(ValueError, match="expected shape") as caught:
        FRONTS[front](acts)
    said = str(caught.value)
    assert "time_major" not in said
    assert said.endswith(f"If `{name}` is {order}, transpose it.")


@pytest.mark.parametrize(
    "kernel", [KERNEL.T, KERNEL[None], KERNEL[0], np.zeros((9, V), "f")], ids=np.shape
)
def test_check_says_of_a_kernel_what_ctc_linear_says(kernel):
    said = []
    for f in (jax_ctc.ctc_linear, jax_ctc.check):
        rest = {"labels": LABELS, "lengths": LENGTHS, "kernel": kernel}
        with pytest.raises(ValueError, match=r"^`kernel`: expected shape") as caught:
            f(HIDDEN, **rest)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_mask_of_numpy_is_not_lost():
    labels = np.ma.masked_equal(np.asarray(GOOD["labels"]), np.asarray(GOOD["labels"]).flat[0])
    with pytest.raises(TypeError, match=r"`labels`: .* without a mask.* x.filled\(-1\)"):
        jax_ctc.ctc(**GOOD | {"labels": labels})
    assert np.isfinite(jax_ctc.ctc(**GOOD | {"labels": np.ma.array(GOOD["labels"])})).all()
    with pytest.raises(ValueError, match=r"`acts`: .* JAX has no masks. Give its data: x.filled"):
        jax_ctc.ctc(**GOOD | {"acts": np.ma.array(GOOD["acts"])})


def test_all_that_was_decoded_is_more_than_labels():
    decoded = jax_ctc.ctc_greedy_decode(GOOD["acts"], GOOD["lengths"])
    with pytest.raises(
        ValueError, match=r"`labels`: .* got a Decoded .* Give its labels: x.labels"
    ):
        jax_ctc.ctc(**GOOD | {"labels": decoded})
    labels = GOOD | {"labels": decoded.labels, "label_lengths": decoded.label_lengths}
    assert np.isfinite(jax_ctc.ctc(**labels)).all()


TRACED = [
    (function, name, value)
    for function in FUNCTIONS
    for name, value in [("blank", 0), ("time_major", True)]
]
TRACED += [(jax_ctc.ctc, "zero_infinity", True), (jax_ctc.ctc, "num_threads", 2)]


@pytest.mark.parametrize(
    ("function", "name", "value"), TRACED, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_a_traced_switch_raises_an_error_that_says_static_argnames(function, name, value):
    def call():
        jax.jit(function)(**GOOD, **{name: value})

    assert_says(TypeError, call, name, "a traced value", "static_argnames of jax.jit")


@pytest.mark.parametrize("value", ["mean", 1, None], ids=repr)
def test_zero_infinity_is_a_bool(value):
    call = lambda: jax_ctc.ctc(**GOOD, zero_infinity=value)  # noqa: E731
    assert_says(TypeError, call, "zero_infinity", repr(value), "Python bool")


@pytest.mark.parametrize(
    ("value", "error"),
    [(2.0, TypeError), ("2", TypeError), (True, TypeError), (0, ValueError), (-1, ValueError)],
)
def test_num_threads_is_a_positive_int(value, error):
    call = lambda: jax_ctc.ctc(**GOOD, num_threads=value)  # noqa: E731
    assert_says(error, call, "num_threads", f"got {value!r}", "None or")


def test_a_blank_is_no_bool():
    call = lambda: jax_ctc.ctc(**GOOD, blank=True)  # noqa: E731
    assert_says(TypeError, call, "blank", "a Python int", "got a bool")


def test_a_batch_in_the_other_order_is_told_how_its_acts_were_read():
    acts = GOOD["acts"].swapaxes(0, 1)
    with pytest.raises(ValueError, match=re.escape("as (T, B, V) with time_major=True")):
        jax_ctc.ctc(acts, GOOD["labels"], GOOD["lengths"])
    with pytest.raises(ValueError, match=re.escape("as (B, T, V) with time_major=False")):
        jax_ctc.ctc(**GOOD, time_major=False)


@every_function
def test_a_batch_in_the_other_order_is_told_the_way_out(function):
    acts = GOOD["acts"].swapaxes(0, 1)
    with pytest.raises(ValueError, match=r"If `acts` is \(B, T, V\), pass time_major=False\.$"):
        function(acts, GOOD["labels"], GOOD["lengths"])
    with pytest.raises(ValueError, match=r"If `acts` is \(T, B, V\), pass time_major=True\.$"):
        function(**GOOD, time_major=False)
    with pytest.raises(ValueError, match=r"got shape \(3, 3\)\.$"):  # no layout makes 3 rows fit
        function(acts, np.ones((3, 3), int), GOOD["lengths"])


@every_function
def test_labels_that_cannot_be_negative_are_told_so(function):
    labels = np.array([[1, 2, -1], [1, 2, 3]]).astype(np.uint8)
    with pytest.raises(ValueError, match=r"^labels\[0, 2\] = 255 .* V = 5\. uint8 has no -1"):
        function(GOOD["acts"], labels, GOOD["lengths"])
    padded = np.where(labels == 255, -1, labels.astype(int))
    function(GOOD["acts"], padded, GOOD["lengths"])


@pytest.mark.parametrize(
    "layer", [{"kernel": KERNEL, "bias": BIAS}, object()], ids=["parameters", "a layer"]
)
def test_a_layer_in_the_place_of_its_kernel_is_told_what_to_give(layer):
    said = r"^`kernel`: .* Give the arrays of a layer: .*layer.bias"
    with pytest.raises((TypeError, ValueError), match=said):
        jax_ctc.ctc_linear(HIDDEN, layer, LABELS, LENGTHS)


@pytest.mark.parametrize("name", [n for n in jax_ctc.__all__ if callable(getattr(jax_ctc, n))])
def test_help_shows_annotations_by_their_names(name):
    signature = pydoc.plain(pydoc.render_doc(getattr(jax_ctc, name)))
    assert "Union[" not in signature


def test_a_last_class_of_unknown_number_raises():
    v = jax.export.symbolic_shape("v")[0]
    exporting = jax.export.export(jax.jit(lambda acts: jax_ctc.ctc(acts, [[1]], [6], blank=-1)))
    with pytest.raises(ValueError, match=r"^`blank`: .* V is symbolic"):
        exporting(jax.ShapeDtypeStruct((T, 1, v), np.float32))

# SPDX-License-Identifier: Apache-2.0
"""Arguments whose types shard them over other mesh axes than `acts` (explicit sharding)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from jax_ctc.compat import optax
from support.runs import mesh_in_use, sampled

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
    pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 selects from one sharding"),
]

T, B, V, L, D = 10, 8, 6, 4, 3


@pytest.fixture(params=["mesh set", "no mesh set"])
def put(request):
    """Puts arrays on a mesh whose axes have two and four devices."""
    devices = np.array(jax.devices()[:8]).reshape(2, 4)
    mesh = jax.sharding.Mesh(devices, ("model", "data"), axis_types=(AxisType.Explicit,) * 2)

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    if request.param == "no mesh set":  # as arrays of jax.make_mesh come
        yield place
        return
    with mesh_in_use(mesh):
        yield place


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, B, V)).astype("f")
    labels = rng.integers(1, V, (B, L), dtype=np.int32)
    counts = rng.integers(0, L + 1, B, dtype=np.int32)
    return acts, labels, rng.integers(T // 2, T + 1, B, dtype=np.int32), counts


KERNEL = np.random.default_rng(1).normal(size=(V, D)).astype("f")


def gradient(acts, *rest):
    return jax.grad(lambda acts: jax_ctc.ctc(acts, *rest).sum())(acts)


def confidences(acts, *rest):
    return jax_ctc.label_confidence(acts, jax_ctc.ctc_align(acts, *rest), L)


FUNCTIONS = {
    "loss": jax_ctc.ctc,
    "gradient": gradient,
    "linear": lambda acts, *rest: jax_ctc.ctc_linear(acts, KERNEL, *rest),
    "alignment": jax_ctc.ctc_align,
    "confidences": confidences,
    "occupancy": jax_ctc.ctc_occupancy,
    "best path": lambda acts, labels, lengths, counts: jax_ctc.ctc_greedy_decode(acts, lengths),
    "beam": lambda acts, labels, lengths, counts: jax_ctc.ctc_beam_search_decode(
        acts, lengths, beam_width=2
    ),
}
PLACES = {
    "labels over another axis": (P(None, "data"), P("model"), P("data"), P("data")),
    "lengths over another axis": (P(None, "data"), P("data"), P("model"), P("model")),
    "L over another axis": (P(None, "data"), P("data", "model"), P("data"), P("data")),
    "counts over both axes": (P(None, "data"), P(), P("data"), P(("model", "data"))),
    "labels over both axes": (P(None, "data"), P(("data", "model")), P(), P()),
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@sampled(6)
def test_labels_and_lengths_are_sharded_as_acts(put, problem, function, places):
    arguments = [put(x, *spec) for x, spec in zip(problem, places, strict=True)]
    function = jax.jit(function)
    actual, expected = function(*arguments), function(*problem)
    for x, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-5)
        names = [name for name in jax.typeof(x).sharding.spec if name is not None]
        assert names == [name for name in places[0] if name is not None]


def test_the_first_bad_value_is_named_wherever_it_lies(put, problem):
    acts, labels, lengths, counts = problem
    counts[5] = L + 1
    given = put(acts, None, "data"), put(labels, "model"), put(lengths), put(counts, "model")
    with pytest.raises(ValueError, match=r"label_lengths\[5\] = 5 is outside \[0, 4\]"):
        jax_ctc.check(*given)


@pytest.mark.parametrize("softmax", [True, False], ids=["logits", "scores"])
@sampled(2)
def test_confidences_of_an_alignment_that_nothing_shards(put, problem, softmax):
    acts, *rest = problem
    alignment = jax_ctc.ctc_align(acts, *rest)
    evaluate = jax.jit(lambda acts: jax_ctc.label_confidence(acts, alignment, L, softmax=softmax))
    found = evaluate(put(acts, None, "data"))
    assert jax.typeof(found).sharding.spec == P("data", None)
    np.testing.assert_allclose(found, evaluate(acts), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match=r"`acts`: expected its class axis \(2\) replicated"):
        evaluate(put(acts, None, "data", "model"))


@pytest.mark.parametrize("spec", [P("data"), P("data", None, "model")], ids=["batch", "classes"])
@sampled(2)
def test_forward_variables_of_labels_that_nothing_shards(put, problem, spec):
    acts, labels, lengths, _ = problem
    logits, frames = acts.swapaxes(0, 1), (np.arange(T) >= lengths[:, None]).astype("f")
    rest = frames, labels, np.zeros((B, L), "f")
    evaluate = jax.jit(lambda logits: optax.ctc_loss_with_forward_probs(logits, *rest))
    for x, wanted in zip(evaluate(put(logits, *spec)), evaluate(logits), strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [P("data", "model"), P(None, "data")], ids=["both", "labels"])
def test_error_rates_of_rows_that_types_shard(put, problem, spec):
    _, labels, _, counts = problem
    decoded = labels[:, ::-1].copy()
    rate = functools.partial(jax_ctc.label_error_rate, label_lengths=counts)
    expected = rate(decoded, labels)
    assert expected.distance.max() > 0
    jax.tree.map(
        np.testing.assert_array_equal, rate(put(decoded, *spec), put(labels, "model")), expected
    )


def test_a_kernel_over_the_axis_of_the_batch_is_named(put, problem):
    _, labels, lengths, _ = problem
    hidden, kernel = put(jnp.ones((T, B, D)), None, "data"), put(jnp.ones((D, 8)), None, "data")
    with pytest.raises(ValueError, match=r"`kernel`: expected V sharded over.*batch over 'data'"):
        jax_ctc.ctc_linear(hidden, kernel, labels, lengths)


@pytest.mark.parametrize("spec", [(None, "model"), (None, None)], ids=["V", "nothing"])
def test_a_kernel_may_have_a_type_where_hidden_has_none(put, problem, spec):
    hidden, *rest = problem
    kernel = np.random.default_rng(1).normal(size=(V, 8)).astype("f")
    expected = jax_ctc.ctc_linear(hidden, kernel, *rest)
    found = jax_ctc.ctc_linear(hidden, put(kernel, *spec), *rest)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

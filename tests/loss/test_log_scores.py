# SPDX-License-Identifier: Apache-2.0
"""softmax=False: acts are log-scores as they stand, of which only the labels' entries are read."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.results import assert_gradient
from support.runs import mesh_in_use
from support.sharded_classes import mesh_of, needs_devices

T, B, V = 12, 8, 16
RNG = np.random.default_rng(2)
SCORES = (2 * RNG.normal(size=(T, B, V)) - 3).astype(np.float32)
LABELS = RNG.integers(1, V, (B, 3), dtype=np.int32)
LABELS[0] = [4, 4, -1]
LENGTHS = np.array([12, 7, 9, 12, 3, 8, 10, 12], np.int32)
DIRECTION = RNG.normal(size=SCORES.shape).astype(np.float32)
ctc = partial(jax_ctc.ctc, softmax=False)


def exact(scores, labels=LABELS, lengths=LENGTHS):
    """Costs and gradients: those under a softmax, which divides a path by its rows' sums."""
    truth = oracle.solve(scores, labels, lengths)
    scores = np.asarray(scores).astype(float)
    log_sums = np.log(np.exp(scores).sum(-1))
    used = np.arange(len(scores))[:, None] < lengths
    return truth.cost - np.where(used, log_sums, 0).sum(0), -truth.occupancy


def test_a_cost_is_the_sum_over_all_alignments():
    scores, labels = SCORES[:5, 0, :4], [1, 2]
    paths = [
        path
        for path in itertools.product(range(4), repeat=5)
        if [k for k, _ in itertools.groupby(path) if k] == labels
    ]
    exponents = [sum(float(scores[t, k]) for t, k in enumerate(path)) for path in paths]
    np.testing.assert_allclose(
        ctc(scores, np.array(labels), 5), -np.logaddexp.reduce(exponents), rtol=1e-6
    )


def test_costs_and_gradients_are_exact(time_major):
    scores = SCORES if time_major else SCORES.swapaxes(0, 1)
    cost, pull_back = jax.vjp(lambda x: ctc(x, LABELS, LENGTHS, time_major=time_major), scores)
    gradient = pull_back(jnp.ones_like(cost))[0]
    expected = exact(SCORES)
    np.testing.assert_allclose(cost, expected[0], rtol=1e-6, atol=1e-5)
    assert_gradient(gradient if time_major else gradient.swapaxes(0, 1), expected[1])


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16])
def test_dtypes(dtype):
    scores = jnp.asarray(SCORES, dtype)
    expected = exact(scores)
    cost, pull_back = jax.vjp(lambda x: ctc(x, LABELS, LENGTHS), scores)
    (gradient,) = pull_back(jnp.ones_like(cost))
    assert gradient.dtype == dtype
    tolerance = 1e-11 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(cost, expected[0], rtol=tolerance, atol=tolerance)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(gradient).astype(float),
        expected[1],
        rtol=eps,
        atol=max(eps, 1e-11) * 1e-2 + 1e-11,
    )


def test_log_probabilities_have_the_cost_of_their_logits():
    expected = jax_ctc.ctc(SCORES, LABELS, LENGTHS)
    np.testing.assert_allclose(
        ctc(jax.nn.log_softmax(SCORES), LABELS, LENGTHS), expected, rtol=1e-6
    )


def test_a_cost_may_be_below_zero():
    np.testing.assert_allclose(ctc(np.full((2, 2), 3.0), np.array([1]), 2), -6 - np.log(3))


def test_second_order_is_that_of_the_occupancies():
    def gradient(scores):
        return jax.grad(lambda x: ctc(x, LABELS, LENGTHS).sum())(scores)

    product = jax.jvp(gradient, (SCORES,), (DIRECTION,))[1]
    step = 1e-4
    moved = [exact(SCORES.astype(float) + s * step * DIRECTION)[1] for s in (1, -1)]
    np.testing.assert_allclose(product, (moved[0] - moved[1]) / (2 * step), atol=2e-5)


def test_occupancies_of_log_scores():
    occupancy = jax_ctc.ctc_occupancy(SCORES, LABELS, LENGTHS, softmax=False)
    assert_gradient(occupancy, -exact(SCORES)[1])


def test_vmap_over_label_sequences_and_over_scores():
    many = np.stack([LABELS, LABELS[::-1]])
    costs = jax.vmap(ctc, (None, 0, None))(SCORES, many, LENGTHS)
    np.testing.assert_allclose(costs[1], exact(SCORES, many[1])[0], rtol=1e-6, atol=1e-5)
    costs = jax.vmap(ctc, (0, None, None))(np.stack([SCORES, -SCORES]), LABELS, LENGTHS)
    np.testing.assert_allclose(costs[1], exact(-SCORES)[0], rtol=1e-6, atol=1e-5)


def test_alignments_and_beams_of_log_scores():
    """The paths and the labels are those of logits; what the rows' sums took is in the scores."""
    labels = np.where(np.arange(B)[:, None] == 4, -1, LABELS)  # three frames are too few for some
    both = [jax_ctc.ctc_align(SCORES, labels, LENGTHS, softmax=s) for s in (False, True)]
    found, logits = (jax.tree.map(np.asarray, x) for x in both)
    used = np.arange(T)[:, None] < LENGTHS
    log_sums = np.where(used, np.log(np.exp(SCORES.astype(float)).sum(-1)), 0).sum(0)
    np.testing.assert_array_equal(found.path, logits.path)
    np.testing.assert_array_equal(found.label_index, logits.label_index)
    np.testing.assert_allclose(found.score, logits.score + log_sums, rtol=1e-5, atol=1e-4)
    taken = np.take_along_axis(SCORES.astype(float), np.maximum(found.path, 0)[..., None], -1)
    exactly = np.where(used, taken[..., 0], 0).sum(0)
    np.testing.assert_allclose(found.score, exactly, rtol=1e-6, atol=1e-5)

    def score(x):
        return jax_ctc.ctc_align(x, labels, LENGTHS, softmax=False).score.sum()

    one_hot = np.asarray(found.path)[..., None] == np.arange(V)
    np.testing.assert_array_equal(jax.grad(score)(SCORES), one_hot.astype(np.float32))
    beams = jax_ctc.ctc_beam_search_decode(SCORES, LENGTHS, softmax=False)
    of_logits = jax_ctc.ctc_beam_search_decode(SCORES, LENGTHS)
    np.testing.assert_array_equal(beams.labels, of_logits.labels)
    expected = np.asarray(of_logits.score)[:, 0] + log_sums
    np.testing.assert_allclose(beams.score[:, 0], expected, rtol=1e-5, atol=1e-4)


# ---- edges -------------------------------------------------------------------------------------


def test_entries_of_no_label_are_not_read():
    scores = SCORES.copy()
    for b, row in enumerate(LABELS):
        others = np.setdiff1d(np.arange(V), [0, *row])
        scores[:, b, others] = np.nan
        scores[LENGTHS[b] :, b] = np.inf
    cost, pull_back = jax.vjp(lambda x: ctc(x, LABELS, LENGTHS), scores)
    (gradient,) = pull_back(jnp.ones_like(cost))
    expected = exact(SCORES)
    np.testing.assert_allclose(cost, expected[0], rtol=1e-6, atol=1e-5)
    assert_gradient(gradient, expected[1])


@pytest.mark.parametrize(
    ("value", "cost"), [(np.nan, np.nan), (np.inf, np.nan), (-np.inf, np.inf)], ids=str
)
def test_what_is_not_a_number_stays_with_its_sequence(value, cost):
    scores = SCORES.copy()
    scores[2, 1, [0, *LABELS[1]]] = value
    costs, pull_back = jax.vjp(lambda x: ctc(x, LABELS, LENGTHS), scores)
    (gradient,) = pull_back(jnp.ones_like(costs))
    np.testing.assert_equal(float(costs[1]), cost)
    others = np.arange(B) != 1
    np.testing.assert_allclose(costs[others], exact(SCORES)[0][others], rtol=1e-6, atol=1e-5)
    assert_gradient(gradient[:, others], exact(SCORES)[1][:, others])
    if np.isinf(cost):
        assert not gradient[:, 1].any()


def test_bad_and_infeasible_sequences():
    labels, lengths = LABELS.copy(), LENGTHS.copy()
    labels[3, 1], lengths[2] = V, 2
    costs = jax.jit(ctc)(SCORES, labels, lengths)
    assert np.isnan(costs[3])
    assert np.isposinf(costs[2])
    with pytest.raises(ValueError, match=r"labels\[3, 1\] = 16 is not a class"):
        ctc(SCORES, labels, LENGTHS)
    assert ctc(SCORES, LABELS, lengths, zero_infinity=True)[2] == 0
    with pytest.raises(TypeError, match="`softmax`: expected a Python bool"):
        jax_ctc.ctc(SCORES, LABELS, LENGTHS, softmax=0)


# ---- many devices ------------------------------------------------------------------------------


@needs_devices
@pytest.mark.parametrize("way", ["jit", "explicit"])
@pytest.mark.parametrize("spec", [P(None, "data"), P(None, "data", "model")], ids=str)
def test_sharded_log_scores(way, spec):
    kind = AxisType.Explicit if way == "explicit" else AxisType.Auto
    mesh = mesh_of(2, 4, kind)
    scores = jax.device_put(SCORES, NamedSharding(mesh, spec))
    batch = NamedSharding(mesh, P("data"))
    rest = jax.device_put(LABELS, batch), jax.device_put(LENGTHS, batch)
    names = "model" if way == "jit" and len(spec) == 3 else None

    def loss(scores):
        cost = ctc(scores, *rest, vocab_axis=names)
        return cost.sum(), cost

    with mesh_in_use(mesh):
        gradient, cost = jax.jit(jax.grad(loss, has_aux=True))(scores)
    np.testing.assert_allclose(cost, exact(SCORES)[0], rtol=1e-6, atol=1e-5)
    assert_gradient(gradient, exact(SCORES)[1])

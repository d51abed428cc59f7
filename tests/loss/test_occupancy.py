# SPDX-License-Identifier: Apache-2.0
"""The posterior of each class at each frame, given the labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from support import oracle
from support.cases import CASES, WIDTHS, Case, both_layouts, every_edge
from support.results import COMPILED, TOLERANCE, assert_gradient, assert_same_bits
from support.runs import ALL, sampled, sweep

occupancies = jax.jit(jax_ctc.ctc_occupancy, static_argnames=["blank", "time_major"])


@every_edge
@pytest.mark.parametrize("L", [6, 11], ids=["compact", "dense"])
def test_every_edge_is_the_oracle_s(case, L):
    given = case.in_one_shape(V=12, L=L)
    truth = oracle.solve(*given, blank=Case.SHARED_BLANK)
    assert_gradient(occupancies(*given, blank=Case.SHARED_BLANK), truth.occupancy)


@pytest.mark.parametrize(
    "case", [case for case in CASES if ALL or case in WIDTHS], ids=lambda case: case.name
)
@pytest.mark.parametrize("dtype", sweep([np.float32, np.float64], [np.float32]))
@sampled(8)
def test_occupancy_is_the_oracle_s(case, dtype):
    acts, *rest = case.arguments(dtype)
    occupancy = occupancies(acts, *rest, blank=case.blank)
    assert occupancy.shape == acts.shape
    assert occupancy.dtype == dtype
    assert_gradient(occupancy, oracle.solve(acts, *rest, blank=case.blank).occupancy)


@both_layouts
def test_the_batch_axis_may_come_first(case):
    acts, labels, lengths, _ = case.arguments()
    occupancy = occupancies(acts.swapaxes(0, 1), labels, lengths, time_major=False)
    truth = oracle.solve(acts, labels, lengths)
    assert_gradient(occupancy, truth.occupancy.swapaxes(0, 1))


@both_layouts
def test_occupancies_are_probabilities(case):
    acts, labels, lengths, _ = case.arguments()
    occupancy = np.asarray(jax_ctc.ctc_occupancy(acts, labels, lengths))
    used = np.arange(case.T)[:, None] < lengths
    assert (occupancy >= 0).all()
    tolerance = TOLERANCE[occupancy.dtype]
    np.testing.assert_allclose(occupancy.sum(axis=-1)[used], 1, rtol=tolerance)
    assert not occupancy[~used].any()
    absent = np.setdiff1d(np.arange(case.V), [0, *labels[1]])
    assert occupancy[:, 1, absent].max() <= tolerance


@both_layouts
def test_softmax_less_occupancy_is_the_gradient(case):
    acts, labels, lengths, _ = case.arguments()
    occupancy = jax_ctc.ctc_occupancy(acts, labels, lengths)
    gradient = jax.grad(lambda acts: jax_ctc.ctc(acts, labels, lengths).sum())(acts)
    used = np.arange(case.T)[:, None, None] < lengths[:, None]
    softmax = np.where(used, np.exp(oracle.log_softmax(acts.astype(float))), 0)
    np.testing.assert_allclose(
        softmax, occupancy + gradient, rtol=0, atol=2 * TOLERANCE[np.dtype("float32")]
    )


WEIGHTS = {
    "logits": lambda acts, xp: acts,
    "log-probabilities": lambda acts, xp: acts - xp.log(xp.exp(acts).sum(-1, keepdims=True)),
}


@pytest.mark.parametrize("weigh", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("shape", [(5, 1, 4, 1), (5, 4, 8, 2), (30, 4, 28, 8)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@sampled(4)
def test_a_compiled_derivative_is_the_oracle_s(weigh, shape, dtype):
    """XLA computes occupancies anew in each fusion, and not with the same bits."""
    T, B, V, L = shape
    rng = np.random.default_rng(0)
    acts, direction = rng.normal(size=(2, T, B, V))
    labels, lengths = rng.integers(1, V, (B, L), dtype=np.int32), np.full(B, T, np.int32)

    def weighed(acts):
        return (weigh(acts, jnp) * jax_ctc.ctc_occupancy(acts, labels, lengths)).sum()

    def exact(acts):
        return (weigh(acts, np) * oracle.solve(acts, labels, lengths).occupancy).sum()

    step = 1e-4 * direction
    expected = (exact(acts + step) - exact(acts - step)) / 2e-4
    gradient = jax.jit(jax.grad(weighed))(acts.astype(dtype))
    along = (np.asarray(gradient) * direction).sum()
    np.testing.assert_allclose(along, expected, rtol=1e-4, atol=1e-4)
    tangent = jax.jit(lambda x, u: jax.jvp(weighed, (x,), (u,))[1])
    found = tangent(acts.astype(dtype), direction.astype(dtype))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@both_layouts
def test_odd_sequences_leave_the_others_alone(case):
    acts, labels, lengths, _ = case.arguments()
    acts, labels, lengths = (
        np.concatenate([x, x], axis) for x, axis in ((acts, 1), (labels, 0), (lengths, 0))
    )
    usual = np.asarray(occupancies(acts, labels, lengths))
    lengths[0] = 1  # infeasible
    labels[1, 0] = 99  # bad
    lengths[2] = 10  # bad
    acts[2, 3] = np.nan
    acts[:, 4, 3] = -np.inf  # infeasible
    odd = np.asarray(occupancies(acts, labels, lengths))
    assert_same_bits(odd[:, 5], usual[:, 5])
    assert not odd[:, [0, 1, 2, 4]].any()
    assert np.isnan(odd[: lengths[3], 3]).all()


@pytest.mark.parametrize("V", [12, 300])
def test_small_occupancies_have_as_many_digits(V):
    T, L = 40, 6
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, 2, V)).astype(np.float32) * 4
    labels, lengths = rng.integers(1, V, (2, L)), np.full(2, T)
    truth = oracle.solve(acts, labels, lengths).occupancy
    counts = truth > 1e-15
    assert (truth[counts] < 1e-8).sum() > 20
    occupancy = np.asarray(occupancies(acts, labels, lengths))
    np.testing.assert_allclose(occupancy[counts], truth[counts], rtol=1e-5)


@both_layouts
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(case):
    acts, labels, lengths, _ = case.arguments()
    together = np.asarray(occupancies(acts, labels, lengths))
    assert not np.signbit(together).any()
    for b in range(len(lengths)):
        alone = occupancies(acts[:, b : b + 1], labels[b : b + 1], lengths[b : b + 1])
        assert_same_bits(alone[:, 0], together[:, b])


@pytest.mark.skipif(not COMPILED, reason="the fallback may hold several arrays as large as acts")
def test_rows_are_neither_copied_nor_normalised_in_memory():
    T, B, V = 50, 4, 1000
    acts = jax.ShapeDtypeStruct((T, B, V), np.float32)
    compiled = occupancies.lower(acts, np.ones((B, 5), int), np.full(B, T)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < acts.size * 4 // 5


ROWS_WITHOUT_A_SOFTMAX = {
    "NaN at a class that no label is": (5, np.nan),
    "inf at such a class": (5, np.inf),
    "-inf everywhere": (slice(None), -np.inf),
}


@pytest.mark.parametrize(
    ("place", "value"), ROWS_WITHOUT_A_SOFTMAX.values(), ids=ROWS_WITHOUT_A_SOFTMAX
)
@pytest.mark.parametrize("time_major", [True, False])
def test_a_row_without_a_softmax_makes_the_frames_in_use_nan(place, value, time_major):
    T, B, V = 6, 5, 8
    acts = np.random.default_rng(0).normal(size=(T, B, V)).astype(np.float32)
    acts[3, :, place] = value
    labels = np.array([[1, 2], [1, 2], [1, 99], [1, 2], [1, 2]])
    lengths = np.array([5, 3, 6, 9, 1])  # the row is in use; is not; two are invalid; too short

    @jax.jit
    def occupancy_and_pull_back(acts, labels, lengths):
        return jax.vjp(
            lambda acts: jax_ctc.ctc_occupancy(acts, labels, lengths, time_major=time_major), acts
        )

    if not time_major:
        acts = acts.swapaxes(0, 1)
    occupancy, pull_back = occupancy_and_pull_back(acts, labels, lengths)
    used = np.zeros_like(acts)
    of_first = (slice(5), 0) if time_major else (0, slice(5))
    used[of_first] = 1
    np.testing.assert_array_equal(np.isnan(occupancy), used.astype(bool))
    cotangent = np.random.default_rng(1).normal(size=acts.shape).astype(np.float32)
    # A row of -inf leaves no path, of which all derivatives are 0.
    assert np.isnan(pull_back(cotangent)[0][of_first]).any() != (value == -np.inf)
    gradient = np.asarray(pull_back(cotangent * (1 - used))[0])
    assert np.isfinite(gradient).all()


@both_layouts
def test_one_sequence_needs_no_batch_axis(case):
    acts, labels, lengths, _ = case.arguments()
    truth = oracle.solve(acts, labels, lengths)
    occupancy = jax_ctc.ctc_occupancy(acts[:, 1], labels[1], lengths[1])
    assert_gradient(occupancy, truth.occupancy[:, 1])


@pytest.mark.parametrize("V", [4, 40, 4000])
@pytest.mark.parametrize("place", [0.5, 1])
def test_a_nan_is_seen_in_arrays_of_any_size(V, place):
    """XLA's maximum passes some over: which, depends on the number of frames too."""
    acts = np.zeros((64, 4, V), np.float32)
    acts[3, 0, int(place * V) - 1] = np.nan
    lengths = np.array([60, 64, 0, 64])
    occupancy = np.asarray(occupancies(acts, np.array([[1], [2], [3], [1]]), lengths))
    assert np.isnan(occupancy[:60, 0]).all()
    assert not occupancy[60:, 0].any()
    assert np.isfinite(occupancy[:, 1:]).all()


@both_layouts
def test_an_infinite_cotangent_leaves_what_has_no_occupancy_alone(case):
    acts, labels, lengths, _ = case.arguments()
    lengths[0] = 1  # infeasible
    _, vjp = jax.vjp(lambda acts: jax_ctc.ctc_occupancy(acts, labels, lengths), acts)
    cotangent = np.ones_like(acts)
    cotangent[:, 0] = cotangent[lengths[1] :, 1] = np.inf
    gradient = np.asarray(vjp(cotangent)[0])
    assert not gradient[:, 0].any()
    assert np.isfinite(gradient).all()


def test_a_bad_value_raises():
    with pytest.raises(ValueError, match=r"^labels\[0, 1\] = 4 is not a class of acts with V = 4"):
        jax_ctc.ctc_occupancy(np.zeros((3, 1, 4), np.float32), [[1, 4]], [3])

# SPDX-License-Identifier: Apache-2.0
"""Bad values inside transformations: what `check` says there, and what is known while tracing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from jax_ctc import _verdict
from support.runs import mesh_in_use, sampled

T, B, V, L = 6, 4, 5, 4
ACTS = np.random.default_rng(0).normal(size=(B, T, V)).astype(np.float32)
GOOD = np.array([[1, 2, 3, 4], [1, 2, -1, -1], [1, 2, 3, 1], [1, 2, 1, -1]])
LENGTHS = np.array([6, 4, 6, 6])
PADDED = np.where(GOOD < 0, 0, GOOD)  # as users of optax, Keras and NumPy pad
BLANK = "labels[1, 2] = 0 is the blank, which is no label"


def check(acts, labels, lengths, *rest):
    jax_ctc.check(acts, labels, lengths, *rest, time_major=False)


def check_and_cost(acts, labels, lengths):
    check(acts, labels, lengths)
    return jax_ctc.ctc(acts, labels, lengths, time_major=False).sum()


def reported(f, *arguments):
    """What checkify reports of the jitted function."""
    return jax.jit(checkify.checkify(f))(*arguments)[0].get()


# ---- places under transformations --------------------------------------------------------------


def by_scan(acts, labels, lengths):
    return jax.lax.scan(lambda carry, x: (carry, check_and_cost(*x)), 0, (acts, labels, lengths))


BATCHED = {
    "a batch": check,
    "vmap": jax.vmap(check),
    "vmap of jit": jax.vmap(jax.jit(check)),
    "vmap, labels alone": lambda acts, labels, n: jax.vmap(lambda y: check(acts[0], y, T))(labels),
    "vmap, last axis": lambda acts, labels, n: jax.vmap(partial(check, acts[0]), (1, 0))(
        labels.T, n
    ),
    "grad": jax.grad(check_and_cost),
    "checkpoint": jax.checkpoint(check_and_cost),
    "cond": lambda *x: jax.lax.cond(x[2][0] > 0, partial(check, *x), lambda: None),
    "fori_loop": lambda *x: jax.lax.fori_loop(0, 3, lambda i, n: (check(*x), n)[1], 0),
}


@pytest.mark.parametrize("f", BATCHED.values(), ids=BATCHED.keys())
@sampled(2)
def test_the_sequence_is_named(f):
    assert BLANK in reported(f, ACTS, PADDED, LENGTHS)
    assert reported(f, ACTS, GOOD, LENGTHS) is None


def test_every_mapped_axis_is_counted_outermost_first():
    labels = np.stack([GOOD, PADDED, GOOD])  # (3, B, L)
    each = jax.vmap(lambda y: check(ACTS[0], y, T))
    for nested in (jax.vmap(each), jax.vmap(jax.jit(each), 0)):
        assert "labels[1, 1, 2] = 0 is the blank" in reported(nested, labels)
    assert "labels[1, 1, 2] = 0" in reported(jax.vmap(each, 1), labels.swapaxes(0, 1))
    assert "labels[1, 1, 2] = 0" in reported(
        jax.vmap(lambda y: check(ACTS, y, LENGTHS)), np.stack([GOOD, PADDED])
    )


def test_a_mapped_axis_may_be_empty():
    assert reported(jax.vmap(lambda y: check(ACTS, y, LENGTHS)), np.stack([PADDED])[:0]) is None


def test_lengths_are_named_by_the_mapped_axis():
    assert "lengths[2] = 7 is outside [0, 6]" in reported(
        jax.vmap(check), ACTS, GOOD, np.array([6, 6, 7, 8])
    )
    counts = jax.vmap(lambda n: check(ACTS[0], GOOD[0], T, n))
    assert "label_lengths[1] = 9 is outside [0, 4]" in reported(counts, np.array([4, 9]))


def test_an_eager_vmap_raises_with_the_sequence():
    with pytest.raises(ValueError, match=r"^labels\[1, 2\] = 0 is the blank"):
        jax.vmap(check)(ACTS, PADDED, LENGTHS)
    jax.vmap(check)(ACTS, GOOD, LENGTHS)


@pytest.mark.parametrize("loop", [by_scan, lambda *x: jax.lax.map(lambda x: check(*x), x)])
def test_in_a_loop_the_place_is_that_in_a_step(loop):
    assert "labels[2] = 0 is the blank" in reported(loop, ACTS, PADDED, LENGTHS)
    assert reported(loop, ACTS, GOOD, LENGTHS) is None


def test_a_batch_sharded_by_its_type_is_checked():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Explicit,))
    with mesh_in_use(mesh):
        given = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (ACTS, PADDED, LENGTHS)]
        assert BLANK in reported(check, *given)
        assert BLANK in reported(jax.vmap(check), *given)


def test_the_star_of_an_alignment_is_no_fault_but_a_label_beyond_it_is():
    V = ACTS.shape[-1]
    starred, beyond = (np.where(GOOD == GOOD[0, 0], label, GOOD) for label in (V, V + 1))
    f = partial(jax_ctc.check, time_major=False, star=V)
    f(ACTS, starred, LENGTHS)
    assert reported(lambda *x: f(*x), ACTS, starred, LENGTHS) is None
    assert f"= {V + 1} is not a class" in reported(lambda *x: f(*x), ACTS, beyond, LENGTHS)
    with pytest.raises(ValueError, match=f"= {V} is not a class"):
        jax_ctc.check(ACTS, starred, LENGTHS, time_major=False)
    with pytest.raises(ValueError, match=r"^`star`"):
        jax_ctc.check(ACTS, GOOD, LENGTHS, time_major=False, star=V - 1)


def test_without_checkify_s_table_of_rules_there_is_still_an_error(monkeypatch):
    monkeypatch.setattr(_verdict, "_RULES", None)
    assert BLANK in reported(lambda *x: check(*x), ACTS, PADDED, LENGTHS)
    assert reported(lambda *x: check(*x), ACTS, PADDED[:, :0], LENGTHS) is None


def test_lengths_are_checked_where_labels_are_known():
    beyond = np.array([6, 4, 9, 6])
    assert "lengths[2] = 9 is outside" in reported(lambda n: check(ACTS, GOOD, n), beyond)


# ---- outside checkify --------------------------------------------------------------------------


def test_a_program_compiled_without_checkify_says_what_to_do():
    for f in (check, jax.vmap(check), by_scan):
        with pytest.raises(ValueError, match=r"^jax_ctc\.check: .*jax\.jit\(checkify\.checkify"):
            jax.jit(f)(ACTS, GOOD, LENGTHS)


def test_shapes_may_be_asked_for_without_checkify():
    assert jax.eval_shape(check_and_cost, ACTS, GOOD, LENGTHS).shape == ()


# ---- what is known while tracing ---------------------------------------------------------------

FUNCTIONS = [jax_ctc.ctc, jax_ctc.check, jax_ctc.ctc_occupancy, jax_ctc.ctc_align]
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


@every_function
@pytest.mark.parametrize("of", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_a_jitted_function_that_closes_over_bad_values_raises(function, of):
    f = partial(function, time_major=False)
    labels, lengths, beyond, counts = map(
        of, (PADDED, LENGTHS, np.array([6, 6, 7, 6]), np.array([5, 2, 4, 3]))
    )
    with pytest.raises(ValueError, match=r"^labels\[1, 2\] = 0 is the blank"):
        jax.jit(lambda acts: f(acts, labels, lengths))(ACTS)
    with pytest.raises(ValueError, match=r"^labels\[1, 2\] = 0 is the blank"):
        jax.jit(lambda acts, lengths: f(acts, labels, lengths))(ACTS, LENGTHS)
    with pytest.raises(ValueError, match=r"^lengths\[2\] = 7 is outside"):
        jax.jit(lambda acts, labels: f(acts, labels, beyond))(ACTS, GOOD)
    with pytest.raises(ValueError, match=r"^label_lengths\[0\] = 5 is outside"):
        jax.jit(lambda acts, labels: f(acts, labels, None, counts))(ACTS, GOOD)


def test_labels_whose_label_lengths_are_traced_are_not_judged():
    cost = jax.jit(lambda n: jax_ctc.ctc(ACTS, PADDED, LENGTHS, n, time_major=False))
    assert np.isfinite(cost(np.array([4, 2, 4, 3]))).all()
    assert np.isnan(cost(np.array([4, 3, 4, 3]))).tolist() == [False, True, False, False]


def test_a_step_of_a_loop_that_closes_over_bad_labels_raises():
    def step(carry, acts):
        return carry, jax_ctc.ctc(acts, PADDED[1], T)

    with pytest.raises(ValueError, match=r"^labels\[2\] = 0 is the blank"):
        jax.lax.scan(step, 0, ACTS)


# ---- JAX's own switches ------------------------------------------------------------------------


@pytest.fixture(params=["jax_debug_nans", "jax_debug_infs"])
def debugged(request):
    jax.config.update(request.param, True)
    yield request.param
    jax.config.update(request.param, False)


@pytest.mark.parametrize("debugged", ["jax_debug_nans"], indirect=True)
def test_debug_nans_names_the_label(debugged):
    def loss(acts, labels):
        return jax_ctc.ctc(acts, labels, LENGTHS, time_major=False).mean()

    for f in (loss, jax.value_and_grad(loss)):
        with pytest.raises(ValueError, match=r"^labels\[1, 2\] = 0 is the blank"):
            jax.jit(f)(ACTS, PADDED)


SCORES = {
    "cost": lambda acts: jax_ctc.ctc(acts, GOOD, LENGTHS, time_major=False),
    "occupancy": lambda acts: jax_ctc.ctc_occupancy(acts, GOOD, LENGTHS, time_major=False),
    "alignment": lambda acts: jax_ctc.ctc_align(acts, GOOD, LENGTHS, time_major=False).score,
    "best path": lambda acts: jax_ctc.ctc_greedy_decode(acts, LENGTHS, time_major=False).score,
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("debugged", ["jax_debug_nans"], indirect=True)
def test_residuals_hold_no_nan_where_nothing_is_wrong(score, debugged):
    """What an eager gradient keeps between its programs is looked at too."""
    assert np.isfinite(jax.grad(lambda acts: score(acts).sum())(ACTS)).all()


@pytest.mark.parametrize("under_jit", [False, True], ids=["eager", "jit"])
def test_a_cost_made_zero_is_no_error_of_debugging(debugged, under_jit):
    """The first sequence has 2 frames for 4 labels."""
    lengths = np.array([2, 4, 6, 6])
    ctc = partial(jax_ctc.ctc, time_major=False, zero_infinity=True)

    def results(acts, labels):
        cost = ctc(acts, labels, lengths)
        gradient = jax.grad(lambda acts: ctc(acts, labels, lengths).sum())(acts)
        mapped = jax.vmap(partial(jax_ctc.ctc, zero_infinity=True))(acts, labels, lengths)
        many = jax.vmap(lambda y: ctc(acts, y, lengths))(jnp.stack([labels, labels]))
        return cost, gradient, mapped, many

    cost, gradient, mapped, many = (jax.jit(results) if under_jit else results)(ACTS, GOOD)
    assert cost[0] == 0
    assert not gradient[0].any()
    np.testing.assert_array_equal(mapped, cost)
    np.testing.assert_allclose(many[1], cost, rtol=1e-6)


@pytest.mark.parametrize("debugged", ["jax_debug_infs"], indirect=True)
def test_debugging_reports_an_infinite_cost(debugged):
    with pytest.raises(FloatingPointError):
        jax_ctc.ctc(ACTS, GOOD, np.array([2, 4, 6, 6]), time_major=False)


def test_the_occupancy_of_a_sequence_without_alignment_is_zero(debugged):
    lengths = np.array([2, 4, 6, 6])  # two frames are too few for the first sequence
    occupancy = jax_ctc.ctc_occupancy(ACTS, GOOD, lengths, time_major=False)
    assert not np.asarray(occupancy)[0].any()


def test_hypotheses_of_many_classes_have_no_infinity_that_debugging_sees(debugged):
    acts = np.random.default_rng(0).normal(size=(B, T, 40)).astype(np.float32)
    costs = jax.vmap(lambda y: jax_ctc.ctc(acts, y, LENGTHS, time_major=False))
    labels = np.stack([GOOD, np.where(GOOD < 0, GOOD, GOOD + 3)])
    np.testing.assert_array_equal(costs(labels), jax.jit(costs)(labels))

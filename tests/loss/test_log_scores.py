# SPDX-License-Identifier: Apache-2.0
"""softmax=False: acts are log-scores as they stand, of which only the labels' entries are read."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from jax_ctc import _primitives, _reference
from support import oracle
from support.results import assert_gradient
from support.runs import mesh_in_use, sweep
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
    p = {"time_axis": 0, "blank": 0, "threads": 0, "softmax": False}
    pure = _reference.loss(jnp.full((2, 2), 3.0), jnp.array([1]), jnp.array(2), **p)
    np.testing.assert_allclose(pure, -6 - np.log(3))


def test_second_order_is_that_of_the_occupancies():
    def gradient(scores):
        return jax.grad(lambda x: ctc(x, LABELS, LENGTHS).sum())(scores)

    product = jax.jvp(gradient, (SCORES,), (DIRECTION,))[1]
    step = 1e-4
    moved = [exact(SCORES.astype(float) + s * step * DIRECTION)[1] for s in (1, -1)]
    np.testing.assert_allclose(product, (moved[0] - moved[1]) / (2 * step), atol=2e-5)


# V and L: residuals compact, rows one by one; compact, through a table of classes; dense.
SIZES = {"compact": (40, 3), "table": (20, 6), "dense": (5, 6)}


def all_orders(scores, labels, lengths, cotangents, direction, blank):
    """Costs, their gradient times cotangents, and how both change along a direction."""

    def gradient(scores):
        cost, pull_back = jax.vjp(lambda x: ctc(x, labels, lengths, blank=blank), scores)
        return cost, pull_back(cotangents)[0]

    (cost, found), (slope, product) = jax.jvp(gradient, (scores,), (direction,))
    return cost, found, slope, product


def problem(size):
    V, L = SIZES[size]
    rng = np.random.default_rng(L)
    scores = rng.normal(-2, 2, (T, B, V)).astype(np.float32)
    labels = rng.integers(0, V, (B, L), dtype=np.int32)
    labels[labels == V - 2] = -1  # the blank
    labels[1] = -1
    direction = rng.normal(size=scores.shape).astype(np.float32)
    return scores, labels, LENGTHS, rng.normal(size=B).astype(np.float32), direction


@pytest.mark.parametrize("size", SIZES)
def test_all_orders_of_log_scores(size):
    """The blank is another class; labels repeat, one sequence has none, some are infeasible."""
    scores, labels, _, cotangents, direction = problem(size)
    V = scores.shape[-1]
    blank = V - 2
    found = jax.jit(partial(all_orders, blank=blank))(*problem(size))
    # The blank of the oracle is class 0.
    order = [blank, *(v for v in range(V) if v != blank)]
    place = np.argsort(order)
    renamed = np.where(labels < 0, -1, place[np.maximum(labels, 0)])
    cost, unit = exact(scores[..., order], renamed)
    step = 1e-4
    moved = [
        exact((scores.astype(float) + s * step * direction)[..., order], renamed)[1]
        for s in (1, -1)
    ]
    feasible = np.isfinite(cost)
    weights = np.where(feasible, cotangents, 0)[None, :, None]
    unit, change = (x[..., place] for x in (unit, (moved[0] - moved[1]) / (2 * step)))
    np.testing.assert_allclose(found[0], cost, rtol=1e-6, atol=1e-5)
    assert_gradient(found[1], unit * weights)
    slope = np.where(feasible, (unit * direction).sum((0, 2)), 0)
    np.testing.assert_allclose(found[2], slope, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[3], change * weights, atol=2e-6)
    classes = np.arange(V) == np.pad(labels, ((0, 0), (0, 1)), constant_values=blank)[..., None]
    assert not np.asarray(found[1])[:, ~classes.any(1)].any()
    assert not np.asarray(found[3])[:, ~classes.any(1)].any()


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


@pytest.mark.parametrize("size", SIZES)
def test_what_is_nan_is_nan_where_scores_are_read(size):
    scores, labels, *rest = problem(size)
    used = np.arange(T)[:, None] < LENGTHS
    scores[0, 0, labels[0].max()] = np.nan
    scores[1, 3, 2] = np.inf
    labels[3, 0] = 2
    blank = scores.shape[-1] - 2
    found = jax.jit(partial(all_orders, blank=blank))(scores, labels, *rest)
    classes = np.pad(labels, ((0, 0), (0, 1)), constant_values=blank)[..., None]
    is_read = (classes == np.arange(scores.shape[-1])).any(1)
    bad = np.isin(np.arange(B), [0, 3])
    np.testing.assert_array_equal(np.isnan(found[0]), bad)
    for x in (found[1], found[3]):
        np.testing.assert_array_equal(np.isnan(x), (used & bad)[..., None] & is_read)


def test_any_number_may_be_added_to_a_frame():
    """Of 1000 + noise the gradient keeps the digits of the noise."""
    shift = np.where(np.arange(T) % 2 == 0, 1000, -3000).astype(np.float32)[:, None, None]
    scores = np.round(SCORES * 256) / 256  # exact, with the shift
    cost, pull_back = jax.vjp(lambda x: ctc(x, LABELS, LENGTHS), scores + shift)
    expected = exact(scores)
    used = np.arange(T)[:, None] < LENGTHS
    total = expected[0] - np.where(used, shift[..., 0], 0).sum(0)
    np.testing.assert_allclose(cost, total, rtol=1e-6)
    assert_gradient(pull_back(jnp.ones_like(cost))[0], expected[1])


@pytest.mark.parametrize("shape", [(0, 2, 5, 1), (3, 0, 5, 2), (4, 2, 5, 0), (3, 2, 1, 0)], ids=str)
def test_sizes_of_zero(shape):
    T, B, V, L = shape
    labels, lengths = np.ones((B, L), np.int32), np.full(B, T, np.int32)
    scores = np.full((T, B, V), -0.5, np.float32)
    cost, pull_back = jax.vjp(lambda x: ctc(x, labels, lengths), scores)
    np.testing.assert_array_equal(cost, np.full(B, 0.5 * T if L == 0 else np.inf, np.float32))
    gradient = pull_back(jnp.ones_like(cost))[0]
    assert gradient.shape == scores.shape
    expected = np.zeros(scores.shape) if L else np.where(np.arange(V) == 0, -1, scores * 0)
    np.testing.assert_array_equal(gradient, expected)


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


def test_a_cost_of_minus_infinity_is_not_that_of_no_path():
    scores = np.full((T, 1, V), 3e38, np.float32)
    for zero_infinity in (False, True):
        cost = ctc(scores, LABELS[:1], LENGTHS[:1], zero_infinity=zero_infinity)
        np.testing.assert_array_equal(cost, [-np.inf])
    options = {"time_axis": 0, "blank": 0, "threads": 0, "softmax": False}
    pure = jax.jit(partial(_reference.loss, **options))(scores, LABELS[:1], LENGTHS[:1])
    np.testing.assert_array_equal(pure, [-np.inf])


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


# ---- programs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", sweep(SIZES, ["compact"]))
def test_pure_jax_agrees_with_the_kernels(size):
    *point, cotangents, direction = problem(size)
    point[0][0, 2, :] = -np.inf  # no alignment
    point[0][2, 4, point[1][4].max()] = np.nan
    params = {"time_axis": 0, "blank": point[0].shape[-1] - 2, "threads": 0, "softmax": False}

    def of(namespace, suffix):
        def bind(op, *args):
            f = getattr(namespace, op + suffix)
            return f.bind(*args, **params) if suffix else f(*args, **params)

        def all_ops(*args):
            acts, labels, lengths, cotangents, direction = args
            # Of pure JAX, equal labels have a column each.
            cost, *kept = bind("forward", acts, labels, lengths)
            args = acts, labels, lengths, *kept
            return [
                bind("loss", acts, labels, lengths),
                cost,
                kept[0],
                bind("tangent", *args, direction),
                bind("cotangent", *args, cotangents),
                bind("hvp", *args, cotangents, direction),
            ]

        return jax.jit(all_ops)(*point, cotangents, direction)

    pairs = zip(of(_reference, ""), of(_primitives, "_p"), strict=True)
    for pure, kernel in pairs:
        assert pure.shape == kernel.shape
        np.testing.assert_allclose(pure, kernel, rtol=1e-5, atol=2e-6)


@pytest.mark.skipif(not jax_ctc.build_info()["cpu"], reason="the CPU runs pure JAX here")
def test_a_program_calls_kernels_and_gathers_nothing():
    scores = jnp.zeros((40, 4, 500))

    def loss(x):
        return (
            ctc(x, LABELS[:4], None).sum()
            - jax_ctc.ctc_align(x, LABELS[:4], None, softmax=False).score.sum()
        )

    for f in (loss, jax.grad(lambda x: ctc(x, LABELS[:4], None).sum())):
        program = jax.jit(f).lower(scores).compile()
        assert "_of_scores_v1" in program.as_text()
        assert " gather(" not in program.as_text()
        # The scratch memory of a GPU grows with frames and labels.
        most = 40 * 4 * 50 if jax.default_backend() == "cpu" else scores.nbytes // 10
        assert program.memory_analysis().temp_size_in_bytes < most


def test_export_of_log_scores():
    pytest.importorskip("flatbuffers")
    step = jax.jit(jax.value_and_grad(lambda x: ctc(x, LABELS, LENGTHS).sum()))
    exported = export.export(step, disabled_checks=jax_ctc.export_checks())(SCORES)
    again = export.deserialize(exported.serialize())
    for x, y in zip(again.call(SCORES), step(SCORES), strict=True):
        np.testing.assert_array_equal(x, y)


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

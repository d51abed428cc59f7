# SPDX-License-Identifier: Apache-2.0
"""V spread over the devices of a mesh axis: the costs of one device, and never acts on the wire."""

import itertools
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.cases import Case, every_edge
from support.results import COMPILED, TOLERANCE, assert_costs, assert_gradient
from support.runs import mesh_in_use, sweep

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

T, B, L = 12, 8, 5
MESHES = [(1, 8), (2, 4), (8, 1)]  # data, model


def mesh_of(data, model, axis_type=AxisType.Auto):
    devices = np.array(jax.devices()[:8]).reshape(data, model)
    return Mesh(devices, ("data", "model"), axis_types=(axis_type, axis_type))


@cache
def problem(V, T=T, B=B, spread=3, offset=0):
    """acts, labels, lengths, a direction, and what the oracle says of cost and gradient."""
    rng = np.random.default_rng(V)
    acts = (spread * rng.normal(size=(T, B, V)) + offset).astype(np.float32)
    labels = rng.integers(1, V, (B, L), dtype=np.int32)
    labels[0, 3] = labels[0, 0]
    labels[1, 1:3] = -1
    lengths = (T - np.arange(B) % 3).astype(np.int32)
    direction = rng.normal(size=acts.shape).astype(np.float32)
    cost, gradient = oracle.cost_and_gradient(acts, labels, lengths)
    return (acts, labels, lengths), direction, cost, gradient


@cache
def product_of(V):
    """What the oracle says of the Hessian times the direction of problem(V)."""
    arguments, direction, *_ = problem(V)
    return oracle.hessian_vector(*arguments, direction)


def hessian_vector(f, acts, direction):
    return jax.jvp(jax.grad(lambda acts: f(acts).sum()), (acts,), (direction,))[1]


@cache
def solution_of(f):
    """A program for all: cost and gradient of f(acts, labels, lengths)."""

    def solve(acts, *rest):
        cost, pull_back = jax.vjp(lambda acts: f(acts, *rest), acts)
        return cost, pull_back(jnp.ones_like(cost))[0]

    return jax.jit(solve)


def evaluated(f, acts, direction):
    """Cost, gradient, Hessian-vector product and slope of a function of acts."""
    gradient = jax.grad(lambda acts: f(acts).sum())(acts)
    slope = jax.jvp(f, (acts,), (direction,))[1]
    return f(acts), gradient, hessian_vector(f, acts, direction), slope


def swapped(x):
    return x.swapaxes(0, 1)


def collectives(compiled):
    """Kind and number of elements of everything that goes over the wire."""
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    found = re.findall(rf"= \(?([^=]*?) ({kinds})(?:-start)?\(", compiled.as_text())
    return [
        (kind, np.prod([int(n) for n in re.findall(r"\d+", shape)], dtype=int))
        for shapes, kind in found
        for shape in re.findall(r"\[([\d,]*)\]", shapes)
    ]


# ---- three ways to say it ----------------------------------------------------------------------


def by_shard_map(mesh, acts_spec, batch_spec, labels, lengths, **options):
    def f(acts):
        ctc = partial(jax_ctc.ctc, vocab_axis="model", **options)
        specs = (acts_spec, batch_spec, batch_spec)
        mapped = jax.shard_map(ctc, mesh=mesh, in_specs=specs, out_specs=batch_spec)
        return mapped(acts, labels, lengths)

    return f


def by_jit(mesh, acts_spec, batch_spec, labels, lengths, **options):
    def put(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    labels, lengths = put(labels, batch_spec), put(lengths, batch_spec)
    return lambda acts: jax_ctc.ctc(acts, labels, lengths, vocab_axis="model", **options)


def by_type(mesh, acts_spec, batch_spec, labels, lengths, **options):
    labels = jax.device_put(labels, NamedSharding(mesh, batch_spec))
    lengths = jax.device_put(lengths, NamedSharding(mesh, batch_spec))
    return lambda acts: jax_ctc.ctc(acts, labels, lengths, **options)


WAYS = {
    "shard_map": (by_shard_map, AxisType.Auto),
    "jit": (by_jit, AxisType.Auto),
    "explicit": (by_type, AxisType.Explicit),
}
every_way = pytest.mark.parametrize("way", WAYS)


def spread_out(way, mesh_shape, V, time_major=True, **sizes):
    """A function of acts, acts and a direction where they belong, and their mesh."""
    make, axis_type = WAYS[way]
    mesh = mesh_of(*mesh_shape, axis_type)
    (acts, labels, lengths), direction, *_ = problem(V, **sizes)
    spec = P(None, "data", "model") if time_major else P("data", None, "model")
    f = make(mesh, spec, P("data"), labels, lengths, time_major=time_major)
    order = (lambda x: x) if time_major else swapped
    sharding = NamedSharding(mesh, spec)
    return f, *(jax.device_put(order(x), sharding) for x in (acts, direction)), mesh


@pytest.mark.parametrize(
    ("way", "mesh_shape", "time_major"),
    sweep(
        list(itertools.product(WAYS, MESHES, [True, False])),
        [
            ("shard_map", (1, 8), True),
            ("shard_map", (2, 4), False),
            ("jit", (2, 4), True),
            ("jit", (8, 1), False),
            ("explicit", (2, 4), True),
            ("explicit", (1, 8), False),
        ],
    ),
    ids=str,
)
def test_costs_and_derivatives_are_those_of_one_device(way, mesh_shape, time_major):
    f, acts, direction, mesh = spread_out(way, mesh_shape, 24, time_major)
    with mesh_in_use(mesh):
        cost, gradient, product, slope = jax.jit(partial(evaluated, f))(acts, direction)
    _, along, *expected = problem(24)
    order = (lambda x: x) if time_major else swapped
    assert_costs(cost, expected[0], T)
    assert_gradient(order(gradient), expected[1])
    assert_gradient(order(product), product_of(24), 5)
    np.testing.assert_allclose(slope, (expected[1] * along).sum((0, 2)), rtol=1e-5, atol=1e-5)
    assert gradient.sharding.is_equivalent_to(acts.sharding, 3)
    assert product.sharding.is_equivalent_to(acts.sharding, 3)


@pytest.mark.parametrize(
    ("way", "mesh_shape"),
    sweep(
        list(itertools.product(WAYS, [(1, 8), (2, 4)])),
        [("shard_map", (2, 4)), ("jit", (1, 8)), ("explicit", (2, 4))],
    ),
    ids=str,
)
def test_what_goes_over_the_wire_does_not_grow_with_v(way, mesh_shape):
    sent = []
    for V in (64, 4096):
        f, acts, direction, mesh = spread_out(way, mesh_shape, V)
        with mesh_in_use(mesh):
            compiled = jax.jit(partial(evaluated, f)).lower(acts, direction).compile()
        sent.append(sorted(collectives(compiled)))
        assert sent[-1]
        assert max(size for _, size in sent[-1]) <= 2 * T * B * (L + 3)
    assert sent[0] == sent[1]


@every_way
def test_the_gradient_of_a_mean_takes_few_collectives(way):
    """Maxima and sums; where the lattice is divided, its gradient is gathered; and the mean."""
    f, acts, _, mesh = spread_out(way, (2, 4), 64)
    with mesh_in_use(mesh):
        step = jax.jit(jax.value_and_grad(lambda acts: f(acts).mean()))
        found = collectives(step.lower(acts).compile())
    rows = T * B // 2
    if way == "jit":  # how the batch is spread is not known: sums, and in the gradient once more
        assert {kind for kind, _ in found} == {"all-reduce"}
        sums = rows * (L + 3)
        assert sorted(size for _, size in found) == [1, B // 2, rows, sums, sums]
    else:
        assert {kind for kind, _ in found} == {"all-reduce", "reduce-scatter", "all-gather"}
        assert max(size for _, size in found) == rows * (L + 3)


@every_way
@pytest.mark.skipif(not COMPILED, reason="looks for the kernels' calls")
def test_the_lattice_of_a_batch_is_divided_where_that_is_possible(way):
    """Eight sequences on two by four devices: each runs one."""
    f, acts, _, mesh = spread_out(way, (2, 4), 64)
    with mesh_in_use(mesh):
        text = jax.jit(f).lower(acts).compile().as_text()
    shape = re.search(r"= f32\[([\d,]+)\]\S* custom-call.*jax_ctc_loss", text).group(1)
    assert shape == "1"


def test_acts_are_not_kept_a_second_time_for_the_gradient():
    V = 1 << 14
    f, acts, _, mesh = spread_out("shard_map", (1, 8), V)
    with mesh_in_use(mesh):
        step = jax.jit(jax.value_and_grad(lambda acts: f(acts).sum())).lower(acts).compile()
    memory = step.memory_analysis()
    slice_bytes = T * B * V // 8 * 4
    assert memory.temp_size_in_bytes < (0.1 if COMPILED else 4) * slice_bytes


def on_one_device(acts, labels, lengths):
    return jax_ctc.ctc(acts, labels, lengths)


def hypothesis_of(acts, labels, lengths):
    """As one of many label sequences on the same acts: few classes too, on one device."""
    return jax.vmap(jax_ctc.ctc, (None, 0, None))(acts, labels[None], lengths)[0]


def over_eight(acts, labels, lengths, **options):
    spec = P(None, None, "model")
    return by_shard_map(mesh_of(1, 8), spec, P(), labels, lengths, **options)(acts)


def over_eight_with_a_blank(*arguments):
    return over_eight(*arguments, blank=Case.SHARED_BLANK)


@every_edge
def test_every_edge_is_as_on_one_device(case):
    given = case.in_one_shape(V=16, L=6)
    cost, gradient = solution_of(over_eight_with_a_blank)(*given)
    expected = oracle.cost_and_gradient(*given, blank=Case.SHARED_BLANK)
    assert_costs(cost, expected[0], 12)
    assert_gradient(gradient, expected[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [np.s_[2, 1, 9], np.s_[2, 1, :], np.s_[2, 1, 9:12], np.s_[-1, 1]])
def test_what_is_not_a_number_stays_with_its_sequence(value, place):
    (acts, labels, lengths), *_ = problem(24)
    acts = acts.copy()
    acts[place] = value
    cost, gradient = solution_of(over_eight)(acts, labels, lengths)
    expected = solution_of(on_one_device)(acts, labels, lengths)
    np.testing.assert_allclose(cost, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=TOLERANCE[np.dtype("float32")])


@pytest.mark.parametrize(("spread", "offset"), [(1, 0), (20, 0), (3, 1000), (3, -1000)])
def test_large_logits_and_long_sequences_keep_their_digits(spread, offset):
    sizes = {"T": 1000, "B": 8, "spread": spread, "offset": offset}
    arguments, _, *expected = problem(40, **sizes)
    cost, gradient = solution_of(over_eight)(*arguments)
    assert_costs(cost, expected[0], 1000)
    assert_gradient(gradient, expected[1])


few_classes = pytest.mark.parametrize("f", [hypothesis_of, over_eight])


@few_classes
@pytest.mark.parametrize("value", [-1e4, -1e6, -1e9, 1e9, -3e38])
@pytest.mark.parametrize("rows", [np.s_[3], np.s_[:]], ids=["a row", "all rows"])
def test_rows_of_any_size_keep_their_digits(f, value, rows):
    """What masks a row, or an offset of all logits."""
    (acts, labels, lengths), *_ = problem(40)
    acts = acts.copy()
    acts[rows] = acts[rows] + np.float32(value)
    given = acts, labels, lengths
    expected = oracle.cost_and_gradient(*given)
    cost, gradient = solution_of(f)(*given)
    assert_costs(cost, expected[0], T)
    assert_gradient(gradient, expected[1])


@cache
def program_of_products(f):
    return jax.jit(
        lambda acts, labels, lengths, u: hessian_vector(lambda x: f(x, labels, lengths), acts, u)
    )


@few_classes
@pytest.mark.parametrize("margin", [20, 60, 90, 300])
def test_products_of_confident_rows_are_finite(f, margin):
    (acts, labels, lengths), direction, *_ = problem(40)
    acts = (0.1 * acts).astype(np.float32)
    acts[:, :, 0] += margin
    given = acts, labels, lengths, direction
    actual, expected = (program_of_products(f)(*given) for f in (f, on_one_device))
    np.testing.assert_allclose(actual, expected, atol=3e-6)


@cache
def gradient_but_of_the_third(f):
    weights = np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32)
    return jax.jit(jax.grad(lambda x, *rest: jnp.vdot(f(x, *rest), weights)))


@few_classes
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_does_not_count_has_gradient_zero_whatever_acts_hold(f, value):
    (acts, labels, lengths), *_ = problem(40)
    acts, labels, lengths = acts.copy(), labels.copy(), lengths.copy()
    acts[5, :4, 7] = value
    labels[0, 0], lengths[1] = 99, T + 1  # bad, and their acts too
    gradient = gradient_but_of_the_third(f)(acts, labels, lengths)
    assert not gradient[:, :3].any()
    assert np.isnan(gradient[: lengths[3], 3]).all()
    assert np.isfinite(gradient[:, 4:]).all()


@pytest.mark.parametrize("way", ["shard_map", "jit"])
def test_hypotheses_read_a_slice_once(way):
    """vmap over labels: costs of each, and no copy of the slice for any."""
    V, K = 1 << 14, 6
    (acts, _, lengths), *_ = problem(V)
    labels = np.random.default_rng(1).integers(1, V, (K, B, L), dtype=np.int32)
    mesh, spec = mesh_of(2, 4), P(None, "data", "model")
    given = [
        jax.device_put(x, NamedSharding(mesh, s))
        for x, s in zip((acts, labels, lengths), (spec, P(None, "data"), P("data")), strict=True)
    ]
    each = jax.vmap(partial(jax_ctc.ctc, vocab_axis="model"), (None, 0, None))
    if way == "shard_map":
        specs = spec, P(None, "data"), P("data")
        each = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P(None, "data"))
    with mesh_in_use(mesh):
        both = jax.jit(lambda *x: (each(*x), jax.grad(lambda a: each(a, *x[1:]).sum())(x[0])))
        compiled = both.lower(*given).compile()
        fewer = both.lower(given[0], given[1][:2], given[2]).compile()
        costs, gradient = compiled(*given)
    if COMPILED:  # four hypotheses more take no slice more
        more, less = (x.memory_analysis().temp_size_in_bytes for x in (compiled, fewer))
        assert more - less < acts.nbytes / 8 / 2
    expected = [oracle.cost_and_gradient(acts, row, lengths) for row in labels]
    for cost, (exact, _) in zip(costs, expected, strict=True):
        assert_costs(cost, exact, T)
    assert_gradient(gradient, sum(slope for _, slope in expected), K)


@pytest.mark.parametrize(
    "spec", [P(None, "data", "model"), P(None, None, "model"), P(None, "data")]
)
def test_types_of_a_mesh_with_more_axes(spec):
    """Labels may lie elsewhere, and V may not be spread yet."""
    mesh = Mesh(
        np.array(jax.devices()[:8]).reshape(2, 2, 2),
        ("data", "other", "model"),
        axis_types=(AxisType.Explicit,) * 3,
    )
    (acts, labels, lengths), direction, *expected = problem(24)
    acts, direction = (jax.device_put(x, NamedSharding(mesh, spec)) for x in (acts, direction))
    labels = jax.device_put(labels, NamedSharding(mesh, P("other")))
    lengths = jax.device_put(lengths, NamedSharding(mesh, P()))
    f = partial(jax_ctc.ctc, labels=labels, lengths=lengths, vocab_axis="model")
    with mesh_in_use(mesh):
        cost, gradient, product, _ = jax.jit(partial(evaluated, f))(acts, direction)
    assert_costs(cost, expected[0], T)
    assert_gradient(gradient, expected[1])
    assert_gradient(product, product_of(24), 5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_acts_have_a_half_precision_gradient(dtype):
    (acts, labels, lengths), *_ = problem(24)
    acts = jnp.asarray(acts, dtype)
    f = by_shard_map(mesh_of(1, 8), P(None, None, "model"), P(), labels, lengths)
    cost, gradient = oracle.cost_and_gradient(np.asarray(acts, np.float32), labels, lengths)
    assert_costs(jax.jit(f)(acts), cost, T)
    actual = jax.jit(jax.grad(lambda x: f(x).sum()))(acts)
    assert actual.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(actual.astype(np.float32), gradient, rtol=eps, atol=eps)


# ---- what cannot be --------------------------------------------------------------------------


def test_an_unknown_axis_is_named():
    (acts, *rest), *_ = problem(24)
    with pytest.raises(ValueError, match=r"`vocab_axis`.*'nowhere'.*is not set"):
        jax_ctc.ctc(acts, *rest, vocab_axis="nowhere")
    with (
        mesh_in_use(mesh_of(2, 4)),
        pytest.raises(ValueError, match=r"`vocab_axis`.*'nowhere'.*'data', 'model'"),
    ):
        jax.jit(partial(jax_ctc.ctc, vocab_axis="nowhere"))(acts, *rest)


@pytest.mark.parametrize("vocab_axis", [0, ("model", 1), ()])
def test_an_axis_is_a_name(vocab_axis):
    (acts, *rest), *_ = problem(24)
    with pytest.raises(TypeError, match="`vocab_axis`: expected the name"):
        jax_ctc.ctc(acts, *rest, vocab_axis=vocab_axis)


def test_classes_that_do_not_divide_are_an_error_that_says_what_to_do():
    (acts, *rest), *_ = problem(24)
    with (
        mesh_in_use(mesh_of(1, 8)),
        pytest.raises(ValueError, match=r"multiple of the 8 devices.*got V = 23.*-inf"),
    ):
        jax.jit(partial(jax_ctc.ctc, vocab_axis="model"))(acts[..., :23], *rest)


def test_time_that_is_spread_by_its_type_is_an_error():
    (acts, *rest), *_ = problem(24)
    mesh = mesh_of(2, 4, AxisType.Explicit)
    acts = jax.device_put(acts, NamedSharding(mesh, P("data", None, "model")))
    with mesh_in_use(mesh), pytest.raises(TypeError, match="time axis"):
        jax.jit(jax_ctc.ctc)(acts, *rest)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((P(None, "data"), P("data"), P("data")), "`acts`: expected a slice.*all along 'model'"),
        ((P(None, "model"), P("model"), P("model")), "`labels`: expected the same on every dev"),
        ((P(None, None, "model"), P(), P("model")), "`lengths`: expected the same on every dev"),
    ],
    ids=["acts alike", "batch on that axis", "lengths differ"],
)
def test_wrong_replication_over_vocab_axis_raises(specs, message):
    (acts, labels, lengths), *_ = problem(24)
    if specs[1] == P():  # so many that each device has one for every sequence
        lengths = np.tile(lengths, 4)
    mapped = jax.shard_map(
        partial(jax_ctc.ctc, vocab_axis="model"), mesh=mesh_of(2, 4), in_specs=specs,
        out_specs=P(("data", "model")),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        jax.jit(mapped)(acts, labels, lengths)


@pytest.mark.parametrize(
    ("spec", "vocab_axis", "message"),
    [
        (P(None, None, "model"), "data", "expected 'model', over which the type of `acts`"),
        (P(None, "model"), "model", "expected axes that shard nothing else.*batch over 'model'"),
        (P(), ("model", "model"), "expected every axis once"),
    ],
    ids=["another axis", "the batch's axis", "twice"],
)
def test_an_axis_that_types_contradict_is_an_error(spec, vocab_axis, message):
    (acts, *rest), *_ = problem(24)
    mesh = mesh_of(2, 4, AxisType.Explicit)
    acts = jax.device_put(acts, NamedSharding(mesh, spec))
    with mesh_in_use(mesh), pytest.raises(ValueError, match=f"`vocab_axis`: {message}"):
        jax.jit(partial(jax_ctc.ctc, vocab_axis=vocab_axis))(acts, *rest)


def test_acts_without_axes_are_an_error():
    with pytest.raises(ValueError, match=r"`acts`: expected shape .* got shape \(\)"):
        jax_ctc.ctc(jnp.float32(1), np.zeros((1, 1), int), np.zeros(1, int))


@pytest.mark.parametrize("label", [23, 24])
def test_check_knows_of_the_classes_of_others(label):
    (acts, labels, lengths), *_ = problem(24)
    labels = np.full_like(labels, label)

    def checked(acts, labels):
        jax_ctc.check(acts, labels, lengths, vocab_axis="model")

    mapped = jax.shard_map(
        checkify.checkify(checked), mesh=mesh_of(1, 8), in_specs=(P(None, None, "model"), P()),
        out_specs=P(),
    )  # fmt: skip
    error, _ = jax.jit(mapped)(acts, labels)
    wrong = "labels[0, 0] = 24 is not a class of acts with V = 24"
    assert (error.get() is None) if label == 23 else (wrong in error.get())


def test_labels_are_classes_of_the_whole():
    """23 is a class of 24, though a device has three; 24 is none."""
    (acts, labels, lengths), *_ = problem(24)
    labels = labels.copy()
    labels[0, 0], labels[1, 0] = 23, 24
    f = by_shard_map(mesh_of(1, 8), P(None, None, "model"), P(), labels, lengths)
    expected = jax.jit(jax_ctc.ctc)(acts, labels, lengths)
    np.testing.assert_allclose(jax.jit(f)(acts), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.nansum(f(x))))(acts)
    assert not gradient[:, 1].any()

# SPDX-License-Identifier: Apache-2.0
"""V spread over the devices of a mesh axis: the costs of one device, and never acts on the wire."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import every_edge
from conftest import COMPILED, TOLERANCE, assert_costs, assert_gradient, mesh_in_use
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")

T, B, L = 12, 4, 5
MESHES = [(1, 4), (2, 2), (4, 1)]  # data, model


def mesh_of(data, model, axis_type=AxisType.Auto):
    devices = np.array(jax.devices()[:4]).reshape(data, model)
    return Mesh(devices, ("data", "model"), axis_types=(axis_type, axis_type))


@cache
def problem(V, T=T, B=B, spread=3, offset=0):
    """acts, labels, lengths, a direction, and what the oracle says."""
    rng = np.random.default_rng(V)
    acts = (spread * rng.normal(size=(T, B, V)) + offset).astype(np.float32)
    labels = rng.integers(1, V, (B, L), dtype=np.int32)
    labels[0, 3] = labels[0, 0]
    labels[1, 1:3] = -1
    lengths = (T - np.arange(B) % 3).astype(np.int32)
    direction = rng.normal(size=acts.shape).astype(np.float32)
    cost, gradient = oracle.cost_and_gradient(acts, labels, lengths)
    product = oracle.hessian_vector(acts, labels, lengths, direction)
    return (acts, labels, lengths), direction, cost, gradient, product


def hessian_vector(f, acts, direction):
    return jax.jvp(jax.grad(lambda acts: f(acts).sum()), (acts,), (direction,))[1]


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


@every_way
@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_costs_and_derivatives_are_those_of_one_device(way, mesh_shape, time_major):
    f, acts, direction, mesh = spread_out(way, mesh_shape, 24, time_major)
    with mesh_in_use(mesh):
        cost, gradient, product, slope = jax.jit(partial(evaluated, f))(acts, direction)
    _, along, *expected = problem(24)
    order = (lambda x: x) if time_major else swapped
    assert_costs(cost, expected[0], T)
    assert_gradient(order(gradient), expected[1])
    assert_gradient(order(product), expected[2], 5)
    np.testing.assert_allclose(slope, (expected[1] * along).sum((0, 2)), rtol=1e-5, atol=1e-5)
    assert gradient.sharding.is_equivalent_to(acts.sharding, 3)
    assert product.sharding.is_equivalent_to(acts.sharding, 3)


@every_way
@pytest.mark.parametrize("mesh_shape", [(1, 4), (2, 2)], ids=str)
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
    f, acts, _, mesh = spread_out(way, (2, 2), 64)
    with mesh_in_use(mesh):
        step = jax.jit(jax.value_and_grad(lambda acts: f(acts).mean()))
        found = collectives(step.lower(acts).compile())
    rows = T * B // 2
    if way == "jit":
        assert {kind for kind, _ in found} == {"all-reduce"}
        assert sorted(size for _, size in found) == [1, rows, rows * (L + 3)]
    else:
        assert {kind for kind, _ in found} == {"all-reduce", "reduce-scatter", "all-gather"}
        assert max(size for _, size in found) == rows * (L + 3)


def test_the_lattice_of_a_batch_is_divided_where_that_is_possible():
    """Four sequences on four devices: each runs one."""
    f, acts, _, _ = spread_out("shard_map", (1, 4), 64)
    text = jax.jit(f).lower(acts).as_text()
    assert re.search(rf"jax_ctc_loss.*tensor<{T}x1x{L + 3}xf32>", text) or not COMPILED


def test_acts_are_not_kept_a_second_time_for_the_gradient():
    V = 1 << 14
    f, acts, _, mesh = spread_out("shard_map", (1, 4), V)
    with mesh_in_use(mesh):
        step = jax.jit(jax.value_and_grad(lambda acts: f(acts).sum())).lower(acts).compile()
    memory = step.memory_analysis()
    slice_bytes = T * B * V // 4 * 4
    assert memory.temp_size_in_bytes < (0.1 if COMPILED else 4) * slice_bytes


@every_edge
def test_every_edge_is_as_on_one_device(case):
    acts, labels, lengths, label_lengths = case.arguments()
    more = ((0, 0), (0, 0), (0, -case.V % 4))
    acts = np.pad(acts, more, constant_values=-np.inf)
    specs = P(None, None, "model"), P(), P(), P()

    def spread(acts, *rest):
        ctc = partial(jax_ctc.ctc, blank=case.blank, vocab_axis="model")
        return jax.shard_map(
            ctc, mesh=mesh_of(1, 4), in_specs=specs[: 1 + len(rest)], out_specs=P()
        )(acts, *rest)

    rest = [x for x in (labels, lengths, label_lengths) if x is not None]
    cost = jax.jit(spread)(acts, *rest)
    gradient = jax.jit(jax.grad(lambda acts: spread(acts, *rest).sum()))(acts)
    expected = oracle.cost_and_gradient(acts, *rest, blank=case.blank)
    assert_costs(cost, expected[0], case.T)
    assert_gradient(gradient, expected[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [np.s_[2, 1, 9], np.s_[2, 1, :], np.s_[2, 1, 8:16], np.s_[-1, 1]])
def test_what_is_not_a_number_stays_with_its_sequence(value, place):
    (acts, labels, lengths), *_ = problem(24)
    acts = acts.copy()
    acts[place] = value
    f = by_shard_map(mesh_of(1, 4), P(None, None, "model"), P(), labels, lengths)
    cost, gradient = jax.jit(lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x)))(acts)
    whole = jax.jit(lambda x: jax_ctc.ctc(x, labels, lengths))
    expected = whole(acts), jax.grad(lambda x: whole(x).sum())(acts)
    np.testing.assert_allclose(cost, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=TOLERANCE[np.dtype("float32")])


@pytest.mark.parametrize(("spread", "offset"), [(1, 0), (20, 0), (3, 1000), (3, -1000)])
def test_large_logits_and_long_sequences_keep_their_digits(spread, offset):
    sizes = {"T": 1000, "B": 4, "spread": spread, "offset": offset}
    (acts, labels, lengths), _, cost, gradient, _ = problem(40, **sizes)
    f = by_shard_map(mesh_of(1, 4), P(None, None, "model"), P(), labels, lengths)
    assert_costs(jax.jit(f)(acts), cost, 1000)
    assert_gradient(jax.jit(jax.grad(lambda x: f(x).sum()))(acts), gradient)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_acts_have_a_half_precision_gradient(dtype):
    (acts, labels, lengths), *_ = problem(24)
    acts = jnp.asarray(acts, dtype)
    f = by_shard_map(mesh_of(1, 4), P(None, None, "model"), P(), labels, lengths)
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
        mesh_in_use(mesh_of(2, 2)),
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
        mesh_in_use(mesh_of(1, 4)),
        pytest.raises(ValueError, match=r"multiple of the 4 devices.*got V = 23.*-inf"),
    ):
        jax.jit(partial(jax_ctc.ctc, vocab_axis="model"))(acts[..., :23], *rest)


def test_time_that_is_spread_by_its_type_is_an_error():
    (acts, *rest), *_ = problem(24)
    mesh = mesh_of(2, 2, AxisType.Explicit)
    acts = jax.device_put(acts, NamedSharding(mesh, P("data", None, "model")))
    with mesh_in_use(mesh), pytest.raises(TypeError, match="time axis"):
        jax.jit(jax_ctc.ctc)(acts, *rest)


def test_labels_are_classes_of_the_whole():
    """23 is a class of 24, though a device has six; 24 is none."""
    (acts, labels, lengths), *_ = problem(24)
    labels = labels.copy()
    labels[0, 0], labels[1, 0] = 23, 24
    f = by_shard_map(mesh_of(1, 4), P(None, None, "model"), P(), labels, lengths)
    expected = jax.jit(jax_ctc.ctc)(acts, labels, lengths)
    np.testing.assert_allclose(jax.jit(f)(acts), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.nansum(f(x))))(acts)
    assert not gradient[:, 1].any()

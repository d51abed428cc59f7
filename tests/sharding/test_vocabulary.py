# SPDX-License-Identifier: Apache-2.0
"""V sharded over a mesh axis: the costs of one device, and acts are not communicated."""

import itertools
import re
from functools import partial

import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support import oracle
from support.results import COMPILED, assert_costs, assert_gradient
from support.runs import mesh_in_use, only_all, sampled, sweep
from support.sharded_classes import (
    B,
    L,
    T,
    by_shard_map,
    hessian_vector,
    mesh_of,
    needs_devices,
    problem,
    product_of,
)

pytestmark = needs_devices
MESHES = [(1, 8), (2, 4), (8, 1)]  # data, model


def evaluated(f, acts, direction):
    """Cost, gradient, Hessian-vector product and slope of a function of acts."""
    gradient = jax.grad(lambda acts: f(acts).sum())(acts)
    slope = jax.jvp(f, (acts,), (direction,))[1]
    return f(acts), gradient, hessian_vector(f, acts, direction), slope


def swapped(x):
    return x.swapaxes(0, 1)


def collectives(compiled):
    """Kind and number of elements of everything that is communicated."""
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    found = re.findall(rf"= \(?([^=]*?) ({kinds})(?:-start)?\(", compiled.as_text())
    return [
        (kind, np.prod([int(n) for n in re.findall(r"\d+", shape)], dtype=int))
        for shapes, kind in found
        for shape in re.findall(r"\[([\d,]*)\]", shapes)
    ]


# ---- three ways to say it ----------------------------------------------------------------------


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


def sharded(way, mesh_shape, V, time_major=True, **sizes):
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
            ("shard_map", (2, 4), False),
            ("jit", (2, 4), True),
            ("explicit", (1, 8), False),
        ],
    ),
    ids=str,
)
@sampled(2)
def test_costs_and_derivatives_are_those_of_one_device(way, mesh_shape, time_major):
    f, acts, direction, mesh = sharded(way, mesh_shape, 24, time_major)
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


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="jax.set_mesh came with JAX 0.7.1")
def test_a_shard_map_over_classes_alone_leaves_the_batch_to_types():
    mesh = mesh_of(2, 4, AxisType.Explicit)
    (acts, labels, lengths), *_, cost, gradient = problem(24)

    def costs(acts):
        f = partial(jax_ctc.ctc, vocab_axis="model")
        specs = P(None, None, "model"), P(), P()
        f = jax.shard_map(f, in_specs=specs, out_specs=P(), axis_names={"model"})
        return f(acts, *(jax.device_put(x, P("data")) for x in (labels, lengths)))

    with mesh_in_use(mesh):
        acts = jax.device_put(acts, P(None, "data", "model"))
        assert_costs(jax.jit(costs)(acts), cost, T)
        found = jax.jit(jax.grad(lambda acts: costs(acts).sum()))(acts)
    assert_gradient(found, gradient)


@pytest.mark.parametrize("way", sweep(list(WAYS), ["shard_map"]))
def test_a_product_through_a_scan_is_that_of_one_device(way):
    """There JAX differentiates what functions with rules of their own compute, not the rules."""
    f, acts, direction, mesh = sharded(way, (1, 8), 24)

    def total(acts):
        return lax.scan(lambda carry, x: (carry, f(x)), 0.0, acts[None])[1].sum()

    with mesh_in_use(mesh):
        product = jax.jit(lambda x, u: jax.jvp(jax.grad(total), (x,), (u,))[1])(acts, direction)
    assert_gradient(product, product_of(24), 5)


@pytest.mark.parametrize(
    ("way", "mesh_shape"),
    sweep(
        list(itertools.product(WAYS, [(1, 8), (2, 4)])),
        [("shard_map", (2, 4))],
    ),
    ids=str,
)
def test_what_is_communicated_does_not_grow_with_v(way, mesh_shape):
    sent = []
    for V in (64, 4096):
        f, acts, direction, mesh = sharded(way, mesh_shape, V)
        with mesh_in_use(mesh):
            compiled = jax.jit(partial(evaluated, f)).lower(acts, direction).compile()
        sent.append(sorted(collectives(compiled)))
        assert sent[-1]
        assert max(size for _, size in sent[-1]) <= 2 * T * B * (L + 3)
    assert sent[0] == sent[1]


@every_way
def test_the_gradient_of_a_mean_takes_few_collectives(way):
    """Maxima and sums; where the lattice is divided, its gradient is gathered; and the mean."""
    f, acts, _, mesh = sharded(way, (2, 4), 64)
    with mesh_in_use(mesh):
        step = jax.jit(jax.value_and_grad(lambda acts: f(acts).mean()))
        found = collectives(step.lower(acts).compile())
    rows = T * B // 2
    if way == "jit":  # how the batch is sharded is not known: sums, and in the gradient once more
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
    f, acts, _, mesh = sharded(way, (2, 4), 64)
    with mesh_in_use(mesh):
        text = jax.jit(f).lower(acts).compile().as_text()
    shape = re.search(r"= f32\[([\d,]+)\]\S* custom-call.*jax_ctc_loss", text).group(1)
    assert shape == "1"


def test_acts_are_not_kept_a_second_time_for_the_gradient():
    V = 1 << 14
    f, acts, _, mesh = sharded("shard_map", (1, 8), V)
    with mesh_in_use(mesh):
        step = jax.jit(jax.value_and_grad(lambda acts: f(acts).sum())).lower(acts).compile()
    memory = step.memory_analysis()
    slice_bytes = T * B * V // 8 * 4
    assert memory.temp_size_in_bytes < (0.1 if COMPILED else 4) * slice_bytes


@pytest.mark.parametrize("way", sweep(["shard_map", "jit"], ["shard_map"]))
@only_all
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


SPECS = [P(None, "data", "model"), P(None, None, "model"), P(None, "data")]


@pytest.mark.parametrize("spec", sweep(SPECS, SPECS[1:]))
@sampled(1)
def test_types_of_a_mesh_with_more_axes(spec):
    """Labels may lie elsewhere, and V may not be sharded yet."""
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


def test_types_may_name_some_axes_and_vocab_axis_another():
    mesh = Mesh(
        np.array(jax.devices()[:8]).reshape(4, 2),
        ("data", "model"),
        axis_types=(AxisType.Explicit, AxisType.Auto),
    )
    (acts, labels, lengths), direction, *expected = problem(24)
    sharding = NamedSharding(mesh, P(None, "data"))
    f = partial(jax_ctc.ctc, labels=labels, lengths=lengths, vocab_axis="model")
    with mesh_in_use(mesh):
        acts, direction = (jax.device_put(x, sharding) for x in (acts, direction))
        cost, gradient, *_ = jax.jit(partial(evaluated, f))(acts, direction)
    assert_costs(cost, expected[0], T)
    assert_gradient(gradient, expected[1])


def test_an_eager_call_is_one_program():
    """So debug_nans sees its results alone."""
    (acts, labels, lengths), _, cost, _ = problem(24)
    mesh = mesh_of(1, 8, AxisType.Explicit)
    jax.config.update("jax_debug_nans", True)
    try:
        with mesh_in_use(mesh):
            put = jax.device_put(acts, NamedSharding(mesh, P(None, None, "model")))
            assert_costs(jax_ctc.ctc(put, labels, lengths), cost, T)
    finally:
        jax.config.update("jax_debug_nans", False)

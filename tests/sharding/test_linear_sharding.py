# SPDX-License-Identifier: Apache-2.0
"""ctc_linear with the batch or the classes sharded over devices, and exported."""

import itertools
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support.layers import ARRAYS, assert_close, exact, problem
from support.results import assert_costs
from support.runs import mesh_in_use, only_all, sampled, sweep
from support.sharded_classes import mesh_of, needs_devices

T, B, V, L, D = 10, 8, 88, 3, 7
LAYER = problem(T, B, V, L, D)
WEIGHTS = np.linspace(-1, 2, B).astype(np.float32)
SPECS = {  # of hidden, kernel, bias, labels, lengths
    "batch": (P(None, "data"), P(), P(), P("data"), P("data")),
    "batch major": (P("data"), P(), P(), P("data"), P("data")),
    "classes": (P(), P(None, "model"), P("model"), P(), P()),
    "both": (P(None, "data"), P(None, "model"), P("model"), P("data"), P("data")),
}


@cache
def expected():
    return exact(*LAYER.arrays, *LAYER.rest, WEIGHTS)


def arguments(specs, mesh):
    hidden, *rest = *LAYER.arrays, *LAYER.rest
    if specs == "batch major":
        hidden = hidden.swapaxes(0, 1)
    put = [
        jax.device_put(x, NamedSharding(mesh, s))
        for x, s in zip((hidden, *rest), SPECS[specs], strict=True)
    ]
    return put


def loss(specs, way):
    """A function of hidden, kernel, bias, labels and lengths that says where V is."""
    sharded_classes = specs in ("classes", "both") and way != "explicit"
    return partial(
        ctc_linear,
        time_major=specs != "batch major",
        vocab_axis="model" if sharded_classes else None,
        tile_bytes=512,
    )


def ctc_linear(hidden, kernel, bias, labels, lengths, **options):
    return jax_ctc.ctc_linear(hidden, kernel, labels, lengths, bias=bias, **options)


def program(specs, way, mesh):
    """Costs, gradients, and a directional derivative of the gradients."""
    f = loss(specs, way)
    if way == "shard_map":
        in_specs = SPECS[specs]
        f = jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=in_specs[-1])

    def solve(hidden, kernel, bias, labels, lengths):
        def weighted(*arrays):
            return (f(*arrays, labels, lengths) * WEIGHTS).sum()

        gradient = jax.grad(weighted, ARRAYS)
        point = hidden, kernel, bias
        gradients, product = jax.jvp(gradient, point, tuple(jnp.ones_like(x) for x in point))
        return f(*point, labels, lengths), gradients, product

    return jax.jit(solve)


@cache
def product_on_one_device():
    one = program("batch", "jit", None)(*LAYER.arrays, *LAYER.rest)
    return one[2]


WAYS = {"jit": AxisType.Auto, "shard_map": AxisType.Auto, "explicit": AxisType.Explicit}


@needs_devices
def test_no_lengths_at_all_give_no_costs():
    """`vmap` over 0 lengths, whose largest is a constant."""
    mesh = mesh_of(1, 8)
    hidden, kernel, bias, labels, lengths = arguments("classes", mesh)
    costs = jax.shard_map(
        lambda *x: jax.vmap(lambda n: loss("classes", "shard_map")(*x[:-1], n))(x[-1]),
        mesh=mesh,
        in_specs=SPECS["classes"],
        out_specs=P(),
    )
    none = jnp.zeros((0, *lengths.shape), lengths.dtype)
    assert jax.jit(costs)(hidden, kernel, bias, labels, none).shape == (0, B)


@needs_devices
def test_a_batch_of_none_has_a_gradient_of_zeros():
    mesh = mesh_of(1, 8)
    hidden, kernel, bias, labels, lengths = arguments("classes", mesh)
    costs = jax.shard_map(
        loss("classes", "shard_map"), mesh=mesh, in_specs=SPECS["classes"], out_specs=P()
    )

    def total(*arrays):
        return costs(*arrays, labels[:0], lengths[:0]).sum()

    gradients = jax.jit(jax.grad(total, ARRAYS))(hidden[:, :0], kernel, bias)
    assert [x.shape for x in gradients] == [(T, 0, D), (D, V), (V,)]
    assert not any(x.any() for x in gradients)


@needs_devices
@pytest.mark.parametrize(
    ("way", "specs"),
    sweep(
        list(itertools.product(WAYS, SPECS)),
        [("jit", "batch"), ("explicit", "both")],
    ),
)
@sampled(1)
def test_costs_and_derivatives_are_those_of_one_device(way, specs):
    mesh = mesh_of(2, 4, WAYS[way])
    with mesh_in_use(mesh):
        cost, gradients, product = program(specs, way, mesh)(*arguments(specs, mesh))
    assert_costs(cost, expected()[0], T)
    one = product_on_one_device()
    if specs == "batch major":
        gradients = (gradients[0].swapaxes(0, 1), *gradients[1:])
        product = (product[0].swapaxes(0, 1), *product[1:])
    assert_close(gradients, expected()[1])
    assert_close(product, one, 1e-5)


@needs_devices
@pytest.mark.parametrize(
    ("way", "specs"),
    sweep(
        [("shard_map", "batch"), ("shard_map", "both"), ("explicit", "both"), ("jit", "both")],
        [("shard_map", "batch"), ("jit", "both")],
    ),
)
@sampled(1)
def test_gradients_of_halves_are_rounded_once(way, specs):
    """They are sums over devices, in float32 until then. So a rounding goes the other way than on
    one device only where float32 is just between two bfloat16."""
    mesh = mesh_of(2, 4, WAYS[way])
    layer = problem(T, B, V, L, D, jnp.bfloat16)
    one = program("batch", "jit", None)(*layer.arrays, *layer.rest)[1]
    with mesh_in_use(mesh):
        put = [
            jax.device_put(x, NamedSharding(mesh, s))
            for x, s in zip((*layer.arrays, *layer.rest), SPECS[specs], strict=True)
        ]
        found = program(specs, way, mesh)(*put)[1]
    for x, y in zip(found, one, strict=True):
        assert x.dtype == jnp.bfloat16
        assert (np.asarray(x) != np.asarray(y)).mean() < 0.03


@needs_devices
@pytest.mark.parametrize("way", sweep(WAYS, ["jit"]))
def test_no_device_has_more_than_its_part_of_hidden_and_kernel(way):
    """22 of 88 classes and 40 of 80 frames: nothing is gathered."""
    mesh = mesh_of(2, 4, WAYS[way])
    with mesh_in_use(mesh):
        text = program("both", way, mesh).lower(*arguments("both", mesh)).compile().as_text()
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
    assert shapes
    assert not [s for s in shapes if V in s]
    assert not [s for s in shapes if {D, B} <= set(s) or {D, T * B} <= set(s)]


@needs_devices
@only_all
@pytest.mark.parametrize("way", ["jit", "explicit"])
def test_a_million_classes_over_eight_devices(way):
    """Each has 131,072 of them, and no more; the logits are those of a few frames."""
    V, frames = 1 << 20, 6
    mesh = mesh_of(1, 8, WAYS[way])
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(frames, 2, 4)).astype(np.float32)
    kernel = rng.normal(size=(4, V)).astype(np.float32)
    labels = np.array([[V - 1, 3], [131_072, 131_071]])
    arrays = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((hidden, P()), (kernel, P(None, "model")))
    ]
    names = None if way == "explicit" else "model"

    def total(hidden, kernel):
        return jax_ctc.ctc_linear(hidden, kernel, labels, None, vocab_axis=names).sum()

    with mesh_in_use(mesh):
        program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*arrays).compile()
        cost, gradients = program(*arrays)
    shapes = re.findall(r"f32\[([\d,]+)\]", program.as_text())
    assert max(int(n) for s in shapes for n in s.split(",")) == V // 8
    bias = np.zeros(V, np.float32)
    expected = exact(hidden, kernel, bias, labels, np.full(2, frames))
    np.testing.assert_allclose(cost, expected[0].sum(), rtol=1e-6)
    assert_close(gradients, expected[1][:2], 1e-5)  # sums of a million terms


@needs_devices
def test_a_batch_that_is_sharded_sums_the_gradient_of_the_kernel_once():
    """The same bytes for one block of classes and for many."""
    mesh = mesh_of(8, 1)

    def sent(tile_bytes):
        def total(*x):
            return ctc_linear(*x, tile_bytes=tile_bytes).sum()

        step = jax.jit(jax.grad(total, ARRAYS))
        text = step.lower(*arguments("batch", mesh)).compile().as_text()
        kinds = re.findall(r"= \(?([^=]*?) (all-reduce|all-gather|all-to-all)(?:-start)?\(", text)
        return [
            (kind, np.prod([int(n) for n in re.findall(r"\d+", shape)], dtype=int))
            for shapes, kind in kinds
            for shape in re.findall(r"f32\[([\d,]*)\]", shapes)
        ]

    with mesh_in_use(mesh):
        whole, cut = sent(1 << 20), sent(64)
    assert {kind for kind, _ in whole + cut} == {"all-reduce"}
    assert sum(size for _, size in whole) == D * V + V
    assert sum(size for _, size in cut) < D * V + V  # of one block, in a loop over the blocks


@needs_devices
def test_the_kernel_must_not_be_sharded_over_its_rows():
    mesh = mesh_of(2, 4, AxisType.Explicit)
    kernel = jax.device_put(LAYER.kernel[:6], NamedSharding(mesh, P("data")))
    with mesh_in_use(mesh), pytest.raises(TypeError, match=r"`kernel`: expected its axis 0 \(D\)"):
        jax.jit(jax_ctc.ctc_linear)(LAYER.hidden[..., :6], kernel, *LAYER.rest)


@needs_devices
def test_a_kernel_that_all_devices_share_is_not_a_slice():
    mesh = mesh_of(2, 4)
    f = partial(jax_ctc.ctc_linear, vocab_axis="model")
    mapped = jax.shard_map(f, mesh=mesh, in_specs=(P(), P(), P(), P()), out_specs=P())
    with pytest.raises(ValueError, match="`kernel`: expected a slice of the classes on each"):
        jax.jit(mapped)(*LAYER.arrays[:2], *LAYER.rest)


@needs_devices
def test_a_vocabulary_that_the_devices_do_not_divide():
    mesh = Mesh(np.array(jax.devices()[:3]), ("model",))
    with mesh_in_use(mesh), pytest.raises(ValueError, match="`kernel`: expected V to be a multi"):
        jax_ctc.ctc_linear(*LAYER.arrays[:2], *LAYER.rest, vocab_axis="model")


# ---- export ------------------------------------------------------------------------------------


def test_an_exported_program_has_the_costs_and_gradients_of_the_function():
    pytest.importorskip("flatbuffers", reason="serialisation needs flatbuffers")
    program = export.export(
        jax.jit(ctc_linear), platforms=("cpu", "cuda"), disabled_checks=jax_ctc.export_checks()
    )(*LAYER.arrays, *LAYER.rest)
    loaded = export.deserialize(program.serialize(vjp_order=1))

    def weighted(*arrays):
        return (loaded.call(*arrays, *LAYER.rest) * WEIGHTS).sum()

    assert_costs(loaded.call(*LAYER.arrays, *LAYER.rest), expected()[0], T)
    assert_close(jax.grad(weighted, ARRAYS)(*LAYER.arrays), expected()[1])


def test_frames_and_sequences_may_be_symbols():
    frames, batch = export.symbolic_shape("t, b")
    types = [
        jax.ShapeDtypeStruct(shape, x.dtype)
        for x, shape in zip(
            (*LAYER.arrays, *LAYER.rest),
            ((frames, batch, D), (D, V), (V,), (batch, L), (batch,)),
            strict=True,
        )
    ]
    program = export.export(jax.jit(ctc_linear), disabled_checks=jax_ctc.export_checks())(*types)
    assert_costs(program.call(*LAYER.arrays, *LAYER.rest), expected()[0], T)

# SPDX-License-Identifier: Apache-2.0
"""A batch sharded over eight devices: the results of one device, and no acts communicated."""

import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_ctc
from support.results import TOLERANCE
from support.runs import mesh_in_use, only_all, sampled, sweep

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

T, B, L = 10, 8, 4


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()[:8]), ("data",))


@pytest.fixture(params=[4, 20], ids=["dense", "compact"])
def batch(request):
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, B, request.param)).astype(np.float32)
    labels = rng.integers(1, request.param, (B, L), dtype=np.int32)
    return acts, labels, rng.integers(T // 2, T + 1, B, dtype=np.int32)


def mean(*arguments, **options):
    return jax_ctc.ctc(*arguments, **options).mean()


def product(acts, *rest, **options):
    gradient = jax.grad(lambda acts: mean(acts, *rest, **options))
    return jax.jvp(gradient, (acts,), (jnp.sin(acts),))[1]


FUNCTIONS = {
    "cost": jax_ctc.ctc,
    "gradient": jax.grad(mean),
    "value_and_grad": jax.value_and_grad(mean),
    "Hessian-vector product": product,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())


def assert_close(actual, expected):
    tolerance = 4 * TOLERANCE[np.dtype("float32")]
    close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, actual, expected)


def shard(batch, mesh, time_major):
    """The batch on the host, and sharded over the devices."""
    acts, *rest = batch
    arguments = acts if time_major else acts.swapaxes(0, 1), *rest
    specs = P(None, "data") if time_major else P("data"), P("data"), P("data")
    shards = map(jax.device_put, arguments, [NamedSharding(mesh, spec) for spec in specs])
    return arguments, tuple(shards), specs


@every_function
@sampled(8)
def test_jit_over_a_mesh_gathers_nothing(function, batch, mesh, time_major):
    arguments, shards, _ = shard(batch, mesh, time_major)
    function = jax.jit(partial(function, time_major=time_major))
    compiled = function.lower(*shards).compile()
    assert not {"all-gather", "all-to-all"} & set(re.findall(r"[a-z-]+", compiled.as_text()))
    assert_close(compiled(*shards), function(*arguments))


def test_results_lie_where_the_sequences_lie(batch, mesh, time_major):
    _, shards, specs = shard(batch, mesh, time_major)
    ctc = partial(jax_ctc.ctc, time_major=time_major)
    cost, vjp = jax.jit(lambda acts: jax.vjp(lambda acts: ctc(acts, *shards[1:]), acts))(shards[0])
    assert cost.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 1)
    gradient = jax.jit(vjp)(jnp.ones_like(cost))[0]
    assert gradient.sharding.is_equivalent_to(NamedSharding(mesh, specs[0]), 3)


@pytest.mark.parametrize("check_vma", [True, False])
@sampled(2)
def test_shard_map_runs_each_part_by_itself(batch, mesh, time_major, check_vma):
    arguments, shards, specs = shard(batch, mesh, time_major)

    def evaluate(acts, *rest):
        ctc = partial(jax_ctc.ctc, time_major=time_major)
        total = lambda acts: (ctc(acts, *rest) ** 2).sum()  # noqa: E731
        return ctc(acts, *rest), *jax.jvp(jax.grad(total), (acts,), (jnp.sin(acts),))

    mapped = jax.shard_map(
        evaluate,
        mesh=mesh,
        in_specs=specs,
        out_specs=(P("data"), specs[0], specs[0]),
        check_vma=check_vma,
    )
    actual, expected = jax.jit(mapped)(*shards), evaluate(*arguments)
    for part, whole in zip(actual, expected, strict=True):
        assert_close(part / np.abs(whole).max(), whole / np.abs(whole).max())


def test_labels_may_be_on_every_device_alike(batch, mesh):
    acts, labels, lengths = batch
    (_, _, _), (acts_shards, _, _), _ = shard(batch, mesh, True)
    cost = jax.jit(jax_ctc.ctc)(acts_shards, labels, lengths)
    assert_close(cost, jax_ctc.ctc(acts, labels, lengths))


@pytest.mark.parametrize("partitioner", ["Shardy", "GSPMD"])
@pytest.mark.parametrize("spec", [P("data"), P(None, None, "data")], ids=["time", "classes"])
def test_sharded_time_or_classes_are_gathered(spec, partitioner, mesh):
    """A program whose acts lie so has the right costs, at the price of communication."""
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(16, B, 24)).astype(np.float32)
    labels, lengths = rng.integers(1, 24, (B, L), dtype=np.int32), np.full(B, 16, np.int32)
    expected = jax.jit(jax.value_and_grad(mean))(acts, labels, lengths)
    shards = jax.device_put(acts, NamedSharding(mesh, spec))
    with partitioned_by(partitioner):
        # A function of its own: JAX would find the program of another partitioner.
        actual = jax.jit(lambda *given: jax.value_and_grad(mean)(*given))(shards, labels, lengths)
    assert_close(actual, expected)


@contextlib.contextmanager
def partitioned_by(name):
    before = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", name == "Shardy")
    try:
        yield
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)


def in_pairs(function):
    """vmap over a leading axis of everything, two problems at once."""
    return lambda *arguments, **options: jax.vmap(partial(function, **options))(*arguments)


@pytest.mark.parametrize("partitioner", sweep(["Shardy", "GSPMD"], ["Shardy"]))
@every_function
@sampled(8)
def test_vmap_over_a_mesh_gathers_nothing(function, batch, mesh, time_major, partitioner):
    arguments, _, specs = shard(batch, mesh, time_major)
    pairs = [np.stack([x, x[:, ::-1] if x.ndim > 1 else x]) for x in arguments]
    shards = [
        jax.device_put(x, NamedSharding(mesh, P(None, *spec)))
        for x, spec in zip(pairs, specs, strict=True)
    ]
    function = in_pairs(partial(function, time_major=time_major))
    expected = jax.jit(function)(*pairs)
    with partitioned_by(partitioner):
        compiled = jax.jit(lambda *x: function(*x)).lower(*shards).compile()
    assert not {"all-gather", "all-to-all"} & set(re.findall(r"[a-z-]+", compiled.as_text()))
    assert_close(compiled(*shards), expected)


@every_function
def test_results_have_the_sharding_that_types_say(function, batch, time_major):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Explicit,))
    arguments, shards, specs = shard(batch, mesh, time_major)
    with mesh_in_use(mesh):
        results = jax.jit(partial(function, time_major=time_major))(*shards)
    assert_close(results, function(*arguments, time_major=time_major))
    for result in jax.tree.leaves(results):
        wanted = {0: P(), 1: P("data"), 3: specs[0]}[result.ndim]
        assert result.sharding.is_equivalent_to(NamedSharding(mesh, wanted), result.ndim)


@pytest.fixture
def typed():
    """Two axes in explicit mode: hypotheses, and the batch."""
    mesh = Mesh(
        np.array(jax.devices()[:8]).reshape(2, 4),
        ("k", "data"),
        axis_types=(AxisType.Explicit,) * 2,
    )
    with mesh_in_use(mesh):
        yield lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))


@pytest.mark.parametrize("axis", ["k", None], ids=["sharded", "replicated"])
@pytest.mark.parametrize("V", sweep([12, 40], [40]))
@sampled(1)
def test_hypotheses_have_the_sharding_that_types_say(typed, axis, V):
    """Label sequences on one acts, mapped over an axis that is sharded or not."""
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, B, V))
    labels, lengths = rng.integers(1, V, (4, B, L)), np.full(B, T)
    each = jax.vmap(jax_ctc.ctc, in_axes=(None, 0, None))
    gradients = jax.vmap(jax.grad(mean), in_axes=(None, 0, None))

    def evaluate(acts, labels, lengths):
        total = jax.grad(lambda acts: each(acts, labels, lengths).sum())
        return each(acts, labels, lengths), total(acts), gradients(acts, labels, lengths)

    arguments = typed(acts, None, "data"), typed(labels, axis, "data"), typed(lengths, "data")
    costs, total, several = jax.jit(evaluate)(*arguments)
    assert jax.typeof(costs).sharding.spec == P(axis, "data")
    assert jax.typeof(total).sharding.spec == P(None, "data", None)
    assert jax.typeof(several).sharding.spec == P(axis, None, "data", None)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
        (costs, total, several),
        jax.jit(evaluate)(acts, labels, lengths),
    )


def confidences(acts, labels, lengths):
    return jax_ctc.label_confidence(acts, jax_ctc.ctc_align(acts, labels, lengths), L)


def slope_of_greedy(acts, _, lengths):
    def score(acts):
        return jax_ctc.ctc_greedy_decode(acts, lengths).score

    return jax.jvp(score, (acts,), (jnp.cos(acts),))[1]


# Of many labels or lengths: the axis "k", then one that is not sharded.
MAPPED = {
    "confidences": (confidences, "labels"),
    "log-scores": (partial(jax_ctc.ctc, softmax=False), "labels"),
    "occupancies": (jax_ctc.ctc_occupancy, "labels"),
    "slope of the greedy score": (slope_of_greedy, "lengths"),
}


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 has no rule for a scatter")
@pytest.mark.parametrize(("function", "what"), MAPPED.values(), ids=MAPPED)
@sampled(2)
def test_a_mapped_axis_that_acts_do_not_have_may_be_sharded(typed, function, what):
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(T, B, 40)).astype(np.float32)
    labels, lengths = rng.integers(1, 40, (2, 3, B, L)), rng.integers(8, T, (2, 3, B))
    labels, lengths = (labels, lengths[0, 0]) if what == "labels" else (labels[0, 0], lengths)
    axes = (None, 0, None) if what == "labels" else (None, None, 0)
    each = jax.jit(jax.vmap(jax.vmap(function, axes), axes))
    places = [
        ("k", None, "data") if x.ndim > 2 else ("data",) for x in (labels, lengths[..., None])
    ]
    found = each(typed(acts, None, "data"), typed(labels, *places[0]), typed(lengths, *places[1]))
    assert jax.typeof(found).sharding.spec[0] == "k"
    np.testing.assert_allclose(found, each(acts, labels, lengths), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 selects among equal shardings")
@pytest.mark.parametrize("batch", [4], indirect=True)
def test_flat_targets_may_have_counts_that_are_sharded(typed, batch):
    acts, _, lengths = batch
    log_probs, targets = jax.nn.log_softmax(acts), np.arange(2 * B) % 3 + 1
    costs = jax.jit(partial(jax_ctc.compat.torch.ctc_loss, reduction="none"))
    counts = np.full(B, 2)
    sharded = typed(log_probs, None, "data"), targets, typed(lengths, "data"), typed(counts, "data")
    assert_close(costs(*sharded), costs(log_probs, targets, lengths, counts))


@only_all
@pytest.mark.parametrize("batch", [4, 20], indirect=True)
def test_third_derivatives_have_the_sharding_that_types_say(typed, batch):
    acts, labels, lengths = (x.astype(float) if x.ndim == 3 else x for x in batch)

    def third(acts, *rest):
        along = lambda acts: product(acts, *rest)  # noqa: E731
        return jax.jvp(along, (acts,), (jnp.cos(acts),))[1]

    sharded = typed(acts, None, "data"), typed(labels, "data"), typed(lengths, "data")
    actual = jax.jit(third)(*sharded)
    assert jax.typeof(actual).sharding.spec == P(None, "data", None)
    expected = jax.jit(third)(acts, labels, lengths)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_time_sharded_by_type_is_an_error(batch):
    mesh = Mesh(np.array(jax.devices()[:2]), ("time",), axis_types=(AxisType.Explicit,))
    acts = jax.device_put(batch[0], NamedSharding(mesh, P("time")))
    with mesh_in_use(mesh), pytest.raises(TypeError, match="`acts`: expected its time axis"):
        jax.jit(jax_ctc.ctc)(acts, *batch[1:])


@pytest.mark.parametrize("softmax", [True, False])
def test_devices_with_other_labels_have_occupancies_of_their_own(mesh, batch, softmax):
    """Each device has a hypothesis for the same acts."""
    acts, labels, lengths = batch
    acts = jax.nn.log_softmax(acts)
    hypotheses = jnp.stack([jnp.roll(labels, k, axis=1) for k in range(8)])

    def occupancy(acts, hypotheses):
        return jax_ctc.ctc_occupancy(acts, hypotheses[0], lengths, softmax=softmax)[None]

    mapped = jax.shard_map(occupancy, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    found = jax.jit(mapped)(acts, hypotheses)
    for x, labels in zip(found, hypotheses, strict=True):
        alone = jax_ctc.ctc_occupancy(acts, labels, lengths, softmax=softmax)
        np.testing.assert_allclose(x, alone, atol=1e-6)


@pytest.mark.parametrize("spec", [P("data"), P(None, None, "data")], ids=["time", "classes"])
def test_greedy_decoding_names_the_axis_that_a_type_must_not_shard(spec):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Explicit,))
    with mesh_in_use(mesh):
        acts = jax.device_put(np.zeros((4, 2, 6), "f"), NamedSharding(mesh, spec))
        with pytest.raises(TypeError, match=r"`acts`: expected its (time|class) axis"):
            jax_ctc.ctc_greedy_decode(acts, None)


@sampled(1)
def test_types_that_shard_are_enough_for_a_platform_without_kernels(batch):
    """Without `jax.set_mesh`, as arrays of jax.make_mesh come."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Explicit,))
    places = P(None, "data"), P("data"), P("data")
    arrays = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(batch, places, strict=True)
    ]
    decoders = {
        "alignment": jax_ctc.ctc_align,
        "occupancy": jax_ctc.ctc_occupancy,
        "best path": lambda acts, _, lengths: jax_ctc.ctc_greedy_decode(acts, lengths),
    }
    for function in (FUNCTIONS | decoders).values():
        traced = jax.jit(function).trace(*arrays)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert "jax_ctc" not in text
        assert "all_gather" not in text


def gradient_of_one(acts, labels):
    return jax.grad(jax_ctc.ctc)(acts, labels, None)


# Of one sequence. Beside what is mapped they have operands that are not.
OF_ONE = {
    "no lengths": lambda acts, labels: jax_ctc.ctc(acts, labels, None),
    "labels of all": lambda acts, _: jax_ctc.ctc(acts, np.array([1, 2]), 7),
    "gradient": gradient_of_one,
    "product": lambda acts, labels: jax.vjp(lambda x: gradient_of_one(x, labels), acts)[1](acts),
    "alignment": lambda acts, labels: jax_ctc.ctc_align(acts, labels, None),
    "beam": lambda acts, _: jax_ctc.ctc_beam_search_decode(acts, None, beam_width=3),
}
if jax.__version_info__ >= (0, 8):  # before, JAX cannot map a `where` of a number
    OF_ONE |= {
        "occupancy": lambda acts, labels: jax_ctc.ctc_occupancy(acts, labels, None),
        "best path": lambda acts, _: jax_ctc.ctc_greedy_decode(acts, None),
    }


@pytest.mark.parametrize("function", OF_ONE.values(), ids=OF_ONE)
@pytest.mark.parametrize("batch", [4], indirect=True)
def test_an_axis_that_types_shard_may_be_mapped_where_no_mesh_is_set(function, batch):
    """As arrays of jax.make_mesh come."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Explicit,))
    acts, labels = batch[0].swapaxes(0, 1), batch[1]
    sharded = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (acts, labels)]
    mapped = jax.jit(jax.vmap(function))
    actual = mapped(*sharded)
    for x in jax.tree.leaves(actual):
        assert jax.typeof(x).sharding.spec == P("data", *[None] * (x.ndim - 1))
    assert_close(actual, mapped(acts, labels))


def test_forward_variables_have_the_sharding_that_types_say(batch):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Explicit,))
    acts, labels, lengths = batch
    frames, places = np.arange(T) >= lengths[:, None], NamedSharding(mesh, P("data"))
    given = acts.swapaxes(0, 1), frames.astype("f"), labels, (labels < 0).astype("f")
    evaluate = jax.jit(jax_ctc.compat.optax.ctc_loss_with_forward_probs)
    actual = evaluate(*jax.device_put(given, places))
    assert [jax.typeof(x).sharding.spec for x in actual] == [
        P("data"),
        *[P(None, "data", None)] * 2,
    ]
    assert_close(actual, evaluate(*given))

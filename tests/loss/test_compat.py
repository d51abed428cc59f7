# SPDX-License-Identifier: Apache-2.0
"""The fronts with the signatures of optax, PyTorch and Keras, against the libraries themselves."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_ctc import compat
from support import oracle
from support.runs import mesh_in_use, only_all

T, B, V, L = 9, 4, 6, 3
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(B, T, V)).astype(np.float32)
LABELS = np.array([[1, 2, 2], [3, 0, 0], [0, 0, 0], [5, 4, 5]])  # padded with the blank
COUNTS, LENGTHS = np.array([3, 1, 0, 3]), np.array([9, 7, 5, 8])
FRAMES = (np.arange(T) >= LENGTHS[:, None]).astype(np.float32)
PADDING = (np.arange(L) >= COUNTS[:, None]).astype(np.float32)
EXACT = oracle.cost_and_gradient(LOGITS.swapaxes(0, 1), LABELS, LENGTHS, COUNTS)
SHORT = np.array([9, 7, 5, 2])  # the last sequence has too few frames


def by_optax(ctc_loss, logits=LOGITS, frames=FRAMES, labels=LABELS, padding=PADDING):
    return ctc_loss(logits, frames, labels, padding)


# ---- optax -------------------------------------------------------------------------------------


def test_the_front_of_optax_has_the_costs_of_the_oracle():
    np.testing.assert_allclose(by_optax(compat.optax.ctc_loss), EXACT[0], rtol=1e-6)


def test_a_trainer_of_optax_runs_with_another_import():
    optax = pytest.importorskip("optax", reason="optax is not installed")

    def run(ctc_loss):
        def loss(logits):
            return by_optax(ctc_loss, logits).mean()

        return jax.jit(jax.value_and_grad(loss))(LOGITS)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        theirs = run(optax.ctc_loss)
    for mine, other in zip(run(compat.optax.ctc_loss), theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)


def test_forward_variables_are_those_of_optax():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    mine = by_optax(compat.optax.ctc_loss_with_forward_probs)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        theirs = by_optax(optax.losses.ctc_loss_with_forward_probs)
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-5)
    for x, y in zip(mine[1:], theirs[1:], strict=True):
        counted = np.arange(x.shape[-1]) <= COUNTS[:, None] - (x.shape[-1] == L)
        x, y = np.asarray(x)[:, counted], np.asarray(y)[:, counted]
        possible = y > -1e4
        np.testing.assert_allclose(x[possible], y[possible], rtol=1e-4, atol=1e-4)
        assert np.isneginf(x[~possible]).all()


def test_forward_variables_after_a_nan_are_nan():
    """Not -inf, which would be probability 0. No derivative of another sequence sees it."""
    logits = LOGITS.copy()
    logits[1, 2, 0] = np.nan
    _, of_blank, of_label = by_optax(compat.optax.ctc_loss_with_forward_probs, logits)
    assert np.isnan(of_blank[2:, 1, 0]).all()
    assert not np.isneginf(of_label[3:, 1, 0]).any()
    assert not np.isnan(np.delete(of_blank, 1, axis=1)).any()


@pytest.mark.parametrize("fault", ["label", "frame", "row", "gap"])
def test_one_bad_sequence_gives_no_other_a_gradient_of_nan(fault):
    """Which no mask would remove: it reaches all parameters of the model."""
    logits, frames, labels, padding = (np.array(x) for x in GIVEN)
    if fault == "label":
        labels[1, 0] = V
    elif fault == "gap":
        labels[1], padding[1] = [3, 1, 2], [1, 0, 0]
    else:
        logits[1, 2] = np.nan if fault == "frame" else -np.inf

    def total(logits):
        cost, *variables = compat.optax.ctc_loss_with_forward_probs(logits, frames, labels, padding)
        others = np.arange(B) != 1
        kept = (jnp.where(others[None, :, None] & (x > -jnp.inf), x, 0).sum() for x in variables)
        return sum(kept), (cost, *variables)

    gradient, (cost, *variables) = jax.jit(jax.grad(total, has_aux=True))(logits)
    assert np.isnan(cost[1]) == (fault != "gap")
    assert all(np.isnan(x[:, 1]).all() for x in variables)
    assert (gradient[1] == 0).all()
    assert np.isfinite(gradient).all()
    assert (gradient[0] != 0).any()


def test_a_forward_variable_that_is_minus_infinity_has_no_gradient():
    def early(logits):  # the second label, in the first frame
        return compat.optax.ctc_loss_with_forward_probs(logits, *GIVEN[1:])[2][0, 0, 1]

    value, gradient = jax.value_and_grad(early)(jnp.asarray(LOGITS))
    assert np.isneginf(value)
    assert (gradient == 0).all()


def test_padding_before_labels_has_no_forward_variables():
    padding = PADDING.copy()
    labels, padding[2] = np.where(LABELS == 0, 1, LABELS), [1, 0, 0]
    with pytest.raises(ValueError, match=r"`label_paddings`: .* after padding in sequence 2"):
        by_optax(compat.optax.ctc_loss_with_forward_probs, labels=labels, padding=padding)


def forward_variables(*given):
    return compat.optax.ctc_loss_with_forward_probs(*given)


@pytest.mark.parametrize(("padded", "used"), [(0.25, 0), (1, np.nan), (2, -1)], ids=str)
def test_a_fraction_in_a_padding_is_1_and_nan_or_less_is_0(padded, used):
    frames, padding = (np.where(x > 0, padded, used).astype("f") for x in (FRAMES, PADDING))
    cost = by_optax(compat.optax.ctc_loss, frames=frames, padding=padding)
    np.testing.assert_array_equal(cost, by_optax(compat.optax.ctc_loss))


@pytest.mark.parametrize("V", [40, 4000])
def test_a_nan_in_an_array_of_any_size_makes_forward_variables_nan(V):
    logits = np.zeros((4, 64, V), np.float32)
    logits[0, 3, V // 2 - 1] = np.nan
    labels = np.array([[1], [2], [3], [1]])
    _, *variables = forward_variables(logits, np.zeros((4, 64)), labels, np.zeros((4, 1)))
    for x in variables:
        assert np.isnan(x[:, 0]).all()
        assert np.isfinite(x[-1, 1:]).all()


GIVEN = LOGITS, FRAMES, LABELS, PADDING
needs_devices = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")


@needs_devices
@only_all
def test_forward_variables_of_a_sharded_batch():
    expected, results = by_optax(forward_variables), (P("data"), *[P(None, "data")] * 2)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with mesh_in_use(mesh):
        shards = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in GIVEN]
        for x, y, spec in zip(forward_variables(*shards), expected, results, strict=True):
            assert tuple(jax.typeof(x).sharding.spec)[: len(spec)] == tuple(spec)
            np.testing.assert_allclose(x, y, rtol=1e-6)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    mapped = jax.shard_map(
        forward_variables, mesh=mesh, in_specs=(P("data"),) * 4, out_specs=results
    )
    for x, y in zip(jax.jit(mapped)(*GIVEN), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@only_all
def test_the_gradient_of_the_last_forward_variable_is_minus_that_of_the_cost():
    full = COUNTS == L

    def last(logits):
        return forward_variables(logits, *GIVEN[1:])[1][-1, full, L].sum()

    gradient = jax.grad(last)(np.where(FRAMES[..., None] > 0, np.nan, LOGITS))
    expected = np.where(full[:, None, None], -EXACT[1].swapaxes(0, 1), 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_blank_of_forward_variables_may_count_from_the_last_class():
    labels = np.where(LABELS == 5, 4, LABELS)
    one, other = (forward_variables(*GIVEN[:2], labels, PADDING, k) for k in (V - 1, -1))
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.isnan(one[1]).any()


def test_forward_variables_of_halves_have_the_dtype_of_costs():
    found = forward_variables(jnp.asarray(LOGITS, jnp.bfloat16), *GIVEN[1:])
    assert [x.dtype for x in found] == [np.float32] * 3


def test_lists_are_arrays():
    given = [x.tolist() for x in GIVEN]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(compat.optax.ctc_loss(*given), EXACT[0], rtol=1e-6)


def test_where_optax_is_wrong_the_front_is_not():
    frames = (np.arange(T) >= SHORT[:, None]).astype(np.float32)
    assert np.isposinf(by_optax(compat.optax.ctc_loss, frames=frames)[3])
    nan = np.where(FRAMES[..., None] > 0, np.nan, LOGITS)
    np.testing.assert_allclose(by_optax(compat.optax.ctc_loss, nan), EXACT[0], rtol=1e-6)
    middle = FRAMES.copy()
    middle[0, 3] = 1
    with pytest.raises(
        ValueError, match=r"`logit_paddings`: expected padding at the end .* sequence 0"
    ):
        by_optax(compat.optax.ctc_loss, frames=middle)
    cost = jax.jit(partial(by_optax, compat.optax.ctc_loss))(LOGITS, middle)
    assert np.isnan(cost[0])
    np.testing.assert_allclose(cost[1:], EXACT[0][1:], rtol=1e-6)


def test_paddings_may_be_booleans_without_promotion_of_dtypes():
    booleans = {"frames": FRAMES > 0, "padding": PADDING > 0}
    with jax.numpy_dtype_promotion("strict"):
        found = by_optax(compat.optax.ctc_loss, **booleans)
    np.testing.assert_array_equal(found, by_optax(compat.optax.ctc_loss))


def test_wrong_shapes_of_paddings_raise():
    with pytest.raises(ValueError, match=r"`logit_paddings`: expected shape \(4, 9\), got"):
        by_optax(compat.optax.ctc_loss, frames=FRAMES.T)
    with pytest.raises(
        ValueError, match=r"`logits`: expected shape \(B, T, K\), got shape \(9, 6\)"
    ):
        by_optax(compat.optax.ctc_loss, LOGITS[0])
    with pytest.raises(ValueError, match=r"`label_paddings`: expected shape \(4, 3\), got"):
        by_optax(compat.optax.ctc_loss, padding=PADDING[:, :2])
    with pytest.raises(ValueError, match=r"`labels`: expected shape \(4, N\) because `logits`"):
        by_optax(compat.optax.ctc_loss, labels=LABELS[:2])
    with pytest.raises(ValueError, match=r"If `logits` is \(T, B, K\), transpose it"):
        by_optax(compat.optax.ctc_loss, LOGITS.swapaxes(0, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint32, np.int64])
def test_labels_and_counts_of_any_integer_dtype(dtype):
    labels, counts = LABELS.astype(dtype), COUNTS.astype(dtype)
    joined = JOINED.astype(dtype)
    for cost in (
        by_optax(compat.optax.ctc_loss, labels=labels),
        compat.keras.ctc_loss(labels, LOGITS, counts, LENGTHS.astype(dtype)),
        by_torch(targets=labels, counts=counts, reduction="none"),
        by_torch(targets=joined, counts=counts, reduction="none"),
    ):
        np.testing.assert_allclose(cost, EXACT[0], rtol=1e-6)


def test_many_concatenated_targets_of_a_small_dtype():
    counts, targets = np.full(40, 5, np.uint8), np.tile(LABELS[0], 67)[:200].astype(np.uint8)
    log_probs = np.tile(LOG_PROBS[:, :1], (1, 40, 1))
    lengths = np.full(40, T)
    cost = by_torch(log_probs, targets, lengths, counts, reduction="none")
    padded = by_torch(log_probs, targets.reshape(40, 5), lengths, counts, reduction="none")
    np.testing.assert_array_equal(cost, padded)


def test_values_that_need_64_bits_are_not_wrapped(without_x64):
    labels = LABELS.astype(np.int64)
    labels[0, 0] = 2**32 + 1
    message = r"(labels|targets?)\[0, 0\] = .* is not a class"
    with pytest.raises(ValueError, match=message):
        by_optax(compat.optax.ctc_loss, labels=labels)
    with pytest.raises(ValueError, match=message):
        compat.keras.ctc_loss(labels, LOGITS, COUNTS, LENGTHS)
    with pytest.raises(ValueError, match=r"targets\[0\] = .* is not a class"):
        by_torch(targets=np.concatenate([labels[0], JOINED[3:]]))


# ---- PyTorch -----------------------------------------------------------------------------------

LOG_PROBS = np.asarray(jax.nn.log_softmax(LOGITS.swapaxes(0, 1)))
JOINED = np.concatenate([row[:n] for row, n in zip(LABELS, COUNTS, strict=True)])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def by_torch(log_probs=LOG_PROBS, targets=LABELS, lengths=LENGTHS, counts=COUNTS, **options):
    return compat.torch.ctc_loss(log_probs, targets, lengths, counts, **options)


@REDUCTIONS
@pytest.mark.parametrize("targets", [LABELS, JOINED], ids=["padded", "concatenated"])
def test_the_front_of_torch_has_the_costs_of_the_oracle(reduction, targets):
    reduce = {"none": lambda x: x, "mean": lambda x: (x / np.maximum(COUNTS, 1)).mean()}
    expected = reduce.get(reduction, np.sum)(EXACT[0])
    actual = by_torch(targets=targets, reduction=reduction)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    jitted = jax.jit(partial(by_torch, reduction=reduction))(LOG_PROBS, targets, LENGTHS, COUNTS)
    np.testing.assert_allclose(jitted, expected, rtol=1e-6)


def test_zero_infinity_of_torch():
    cost, zeroed = (
        np.asarray(by_torch(lengths=SHORT, reduction="none", zero_infinity=zero))
        for zero in (False, True)
    )
    assert np.isposinf(cost).tolist() == [False, False, False, True]
    np.testing.assert_array_equal(zeroed, np.where(np.isinf(cost), 0, cost))


def test_a_negative_count_of_concatenated_targets_is_named():
    with pytest.raises(ValueError, match=r"target_lengths\[0\] = -1 is outside"):
        by_torch(LOG_PROBS[:, :3], [1, 2, 1], np.full(3, 9), [-1, 1, 2])


@REDUCTIONS
@pytest.mark.parametrize("lengths", [LENGTHS, SHORT], ids=["enough frames", "too few frames"])
def test_costs_and_gradients_of_logits_are_those_of_torch(reduction, lengths):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    logits = torch.tensor(LOGITS.swapaxes(0, 1).copy(), requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1), torch.tensor(LABELS), torch.tensor(lengths), torch.tensor(COUNTS),
        reduction=reduction, zero_infinity=True,
    )  # fmt: skip
    theirs.sum().backward()

    def loss(logits):
        log_probs = jax.nn.log_softmax(logits)
        return by_torch(log_probs, lengths=lengths, reduction=reduction, zero_infinity=True)

    mine = loss(LOGITS.swapaxes(0, 1))
    np.testing.assert_allclose(mine, theirs.detach(), rtol=1e-5)
    gradient = jax.grad(lambda x: loss(x).sum())(LOGITS.swapaxes(0, 1))
    np.testing.assert_allclose(gradient, logits.grad, atol=2e-6)


def test_the_gradient_of_log_probs_is_minus_the_occupancies():
    truth = oracle.solve(LOGITS.swapaxes(0, 1), LABELS, LENGTHS, COUNTS)
    gradient = jax.grad(lambda x: by_torch(x, reduction="sum"))(LOG_PROBS)
    np.testing.assert_allclose(gradient, -truth.occupancy, atol=1e-6)


@pytest.mark.parametrize("lengths", [9, [9], np.array([9])], ids=repr)
@pytest.mark.parametrize("counts", [3, (3,), np.array([3])], ids=repr)
@pytest.mark.parametrize("targets", [LABELS[0], LABELS[:1]], ids=["(S,)", "(1, S)"])
def test_the_arrays_of_one_sequence_of_torch_may_have_a_batch_of_one(targets, lengths, counts):
    cost = by_torch(LOG_PROBS[:, 0], targets, lengths, counts, reduction="none")
    assert cost.shape == ()
    assert cost == by_torch(LOG_PROBS[:, 0], LABELS[0], 9, 3, reduction="none")


def test_one_sequence_of_torch():
    cost = by_torch(LOG_PROBS[:, 0], LABELS[0], 9, 3, reduction="none")
    np.testing.assert_allclose(cost, EXACT[0][0], rtol=1e-6)


def test_counts_that_no_array_has_cost_no_other_sequence_its_targets():
    most = 2**31 - 1
    ctc_loss = jax.jit(partial(by_torch, targets=np.array([1, 2, 1]), reduction="none"))
    cost = ctc_loss(LOG_PROBS[:, :3], lengths=np.full(3, 9), counts=np.array([most, most, 2]))
    assert np.isnan(cost).all()


def test_a_batch_of_one_of_torch_may_have_lengths_without_a_batch():
    cost = by_torch(LOG_PROBS[:, :1], LABELS[:1], 9, 3, reduction="none")
    np.testing.assert_allclose(cost, EXACT[0][:1], rtol=1e-6)
    flat = by_torch(LOG_PROBS[:, :1], LABELS[0], 9, 3, reduction="none")
    np.testing.assert_array_equal(flat, cost)


def test_concatenated_targets_have_to_add_up():
    with pytest.raises(
        ValueError, match=r"`targets`: expected sum\(target_lengths\) = 8 .*, got 7"
    ):
        by_torch(targets=JOINED, counts=COUNTS + np.array([0, 1, 0, 0]))
    with pytest.raises(ValueError, match=r"`target_lengths`: expected shape \(N,\)"):
        by_torch(targets=JOINED, counts=3)
    jitted = jax.jit(partial(by_torch, reduction="none"))
    cost = jitted(LOG_PROBS, JOINED, LENGTHS, np.array([-1, 1, 0, 3]))
    assert np.isnan(cost[0])
    assert np.isfinite(cost[1:]).all()
    missing = jitted(LOG_PROBS, JOINED, LENGTHS, COUNTS + np.array([0, 0, 0, 1]))
    np.testing.assert_array_equal(np.isnan(missing), [False, False, False, True])


def test_no_sequences_of_concatenated_targets():
    none = np.zeros(0, int)
    assert by_torch(LOG_PROBS[:, :0], none, none, none, reduction="none").shape == (0,)


@needs_devices
@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="JAX 0.7 selects from one sharding only")
def test_counts_of_concatenated_targets_that_types_shard():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with mesh_in_use(mesh):
        given = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in ((LOG_PROBS, P(None, "data")), (LENGTHS, P("data")), (COUNTS, P("data")))
        ]
        cost = by_torch(given[0], JOINED, *given[1:], reduction="none")
    np.testing.assert_allclose(cost, EXACT[0], rtol=1e-6)


def test_an_unknown_reduction_raises():
    with pytest.raises(ValueError, match="`reduction`: expected 'none', 'mean' or 'sum', got 'x'"):
        by_torch(reduction="x")


# ---- Keras -------------------------------------------------------------------------------------


def test_the_front_of_keras_has_the_costs_of_the_oracle():
    cost = compat.keras.ctc_loss(LABELS, LOGITS, COUNTS, LENGTHS)
    np.testing.assert_allclose(cost, EXACT[0], rtol=1e-6)
    scattered = jnp.array([[1, 0, 2], [0, 3, 0], [0, 0, 0], [0, 0, 5]])
    packed = np.array([[1, 2, -1], [3, -1, -1], [-1, -1, -1], [5, -1, -1]])
    expected = oracle.cost_and_gradient(LOGITS.swapaxes(0, 1), packed, LENGTHS)[0]
    cost = compat.keras.ctc_loss(scattered, LOGITS, np.full(4, 3), LENGTHS)
    np.testing.assert_allclose(cost, expected, rtol=1e-6)


def test_targets_and_lengths_of_keras_may_be_floats():
    """As Keras gives them to a loss of the user's own."""
    given = LABELS.astype("f"), LOGITS, jnp.asarray(COUNTS, jnp.float32), LENGTHS.astype("f")
    np.testing.assert_allclose(compat.keras.ctc_loss(*given), EXACT[0], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(compat.keras.ctc_loss)(*given), EXACT[0], rtol=1e-6)


@pytest.mark.parametrize("value", [1e20, 2.0**32 + 1, np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_float_of_keras_that_is_no_int32_is_no_class_and_no_padding(value, dtype):
    if dtype == np.float16 and np.isfinite(value):
        pytest.skip("no float16")
    targets = LABELS.astype(dtype)
    targets[0, 1] = value
    given = targets, LOGITS, COUNTS.astype(dtype), LENGTHS.astype(dtype)
    with pytest.raises(ValueError, match=r"target\[0, 1\] = 2147483520 is not a class"):
        compat.keras.ctc_loss(*given)
    cost = jax.jit(compat.keras.ctc_loss)(*map(jnp.asarray, given))
    assert np.isnan(cost).tolist() == [True, False, False, False]
    negative = -np.abs(np.where(targets == 0, value, targets))  # as small as that is padding
    if dtype != np.float16:  # the lowest one is an int32
        assert np.isfinite(compat.keras.ctc_loss(np.nan_to_num(negative), *given[1:])).all()


def test_floats_of_keras_may_be_lists():
    targets, counts, lengths = (x.astype(float).tolist() for x in (LABELS, COUNTS, LENGTHS))
    found = compat.keras.ctc_loss(targets, LOGITS, counts, lengths)
    np.testing.assert_array_equal(found, compat.keras.ctc_loss(LABELS, LOGITS, COUNTS, LENGTHS))


def test_a_mask_index_of_keras_may_count_from_the_last_class():
    targets = np.array([[1, 2, 2], [3, 5, 5], [5, 5, 5], [4, 5, 4]])  # padding within a length, too
    given = targets, LOGITS, COUNTS, LENGTHS
    last, first = (compat.keras.ctc_loss(*given, mask_index=blank) for blank in (5, -1))
    np.testing.assert_array_equal(last, first)
    assert np.isfinite(last).all()


def test_costs_are_those_of_keras(monkeypatch):
    pytest.importorskip("keras", reason="Keras is not installed")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    from keras import ops

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        theirs = ops.ctc_loss(LABELS, LOGITS, COUNTS, LENGTHS)
    mine = compat.keras.ctc_loss(LABELS, LOGITS, COUNTS, LENGTHS)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


# ---- errors ------------------------------------------------------------------------------------

OP = compat.theano.ConnectionistTemporalClassification(compute_grad=False)


def by_keras(output=LOGITS, lengths=LENGTHS, blank=0):
    return compat.keras.ctc_loss(LABELS, output, COUNTS, lengths, blank)


def test_a_mask_index_that_needs_64_bits_is_named_without_them(without_x64):
    with pytest.raises(ValueError, match=r"^`mask_index`: expected a class"):
        by_keras(blank=2**40)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: by_optax(compat.optax.ctc_loss, None), "`logits`: expected an array of floats"),
        (lambda: by_optax(compat.optax.ctc_loss, labels=LABELS + 9), "labels[0, 0] = 10 is not"),
        (lambda: compat.optax.ctc_loss(*GIVEN, blank_id=9), "`blank_id`: expected a class in"),
        (
            lambda: by_optax(compat.optax.ctc_loss, labels=LABELS * 0),
            "labels[0, 0] = 0 is the blank, which is no label",
        ),
        (lambda: by_torch(None), "`log_probs`: expected an array of floats"),
        (lambda: by_torch(LABELS), "`log_probs` (log-probabilities): expected float32"),
        (
            lambda: by_torch(targets=JOINED, counts=[2, 2, 3]),
            "`target_lengths`: expected shape (N,) with N = 4 sequences of `log_probs`",
        ),
        (lambda: by_torch(targets=LABELS * 1.0), "`targets`: expected integers, got float64"),
        (lambda: by_torch(targets=LABELS * 0), "targets[0, 0] = 0 is the blank"),
        (
            lambda: by_torch(lengths=LENGTHS + 9),
            "input_lengths[0] = 18 is outside [0, 9]",
        ),
        (
            lambda: by_torch(counts=COUNTS + 1),
            "target_lengths[0] = 4 is outside [0, 3]: a row of targets",
        ),
        (
            lambda: compat.torch.ctc_loss(LOG_PROBS[:, :2], [1, 2, 9, 1], [9, 9], [2, 2]),
            "targets[2] = 9 is not a class",
        ),
        (
            lambda: compat.keras.ctc_loss(LOGITS, LABELS, COUNTS, LENGTHS),
            "`output` (unnormalised activations): expected float32, float64, bfloat16 or float16, "
            "got int64. `target` holds floats: are the two swapped? The order is "
            "ctc_loss(target, output, ...).",
        ),
        (
            lambda: compat.theano.ctc(LOG_PROBS, LABELS, LENGTHS),
            "labels[1, 1] = 0 is the blank, which is no label. Padding is negative: "
            "jnp.where(labels == 0, -1, labels.astype(int)). If it is a label, another class must",
        ),
        (lambda: by_keras(output=None), "`output`: expected an array of floats"),
        (lambda: by_keras(blank=2**40), "`mask_index`: expected a class in [-V, V) with V = 6"),
        (lambda: by_keras(blank=-(2**40)), "`mask_index`: expected a class in [-V, V) with V = 6"),
        (lambda: by_keras(lengths=LENGTHS + 9), "output_length[0] = 18 is outside"),
        (
            lambda: compat.keras.ctc_loss(LABELS[0], LOGITS, COUNTS, LENGTHS),
            "`target`: expected shape (4, S) because `output` has shape",
        ),
        (lambda: jax.jit(lambda k: by_keras(blank=k))(0), "`mask_index`: expected a Python int"),
        (lambda: compat.theano.ctc(None, LABELS, LENGTHS), "`activations`: expected an array"),
        (lambda: OP(None, LABELS, LENGTHS), "`activations`: expected an array"),
    ],
)
def test_an_error_names_the_argument_that_the_caller_has(call, said):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value).startswith(said)

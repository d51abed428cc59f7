# SPDX-License-Identifier: Apache-2.0
"""What JAX and XLA make of the op: which primitive runs, and no copy of anything large."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import ad

import jax_ctc
from jax_ctc._primitives.family import primitives as family
from support.runs import sampled

WITH_KERNELS = bool(jax_ctc.build_info()["cpu"])
needs_kernels = pytest.mark.skipif(not WITH_KERNELS, reason="the CPU runs pure JAX here")

DENSE, COMPACT = (40, 6, 8, 20), (40, 6, 50, 9)  # (T, B, V, L): V <= L + 1, V > L + 1
SIZES = pytest.mark.parametrize("size", [DENSE, COMPACT], ids=["dense", "compact"])
LAYOUTS = pytest.mark.parametrize("time_major", [True, False], ids=["TBV", "BTV"])


def problem(size, time_major=True, dtype=jnp.float32):
    T, B, V, L = size
    acts = jnp.zeros((T, B, V) if time_major else (B, T, V), dtype)
    labels = jnp.broadcast_to(jnp.arange(1, L + 1, dtype=jnp.int32) % (V - 1) + 1, (B, L))
    return acts, labels, jnp.full(B, T, jnp.int32)


def total(time_major=True):
    def cost(acts, labels, lengths):
        return jax_ctc.ctc(acts, labels, lengths, time_major=time_major).sum()

    return cost


def primitives(function, *args):
    names = []

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            names.append(equation.primitive.name)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    collect(inner)

    collect(jax.make_jaxpr(function)(*args).jaxpr)
    return [name for name in names if name.startswith("ctc")]


def test_undifferentiated_code_runs_the_loss_alone():
    args = problem(COMPACT)
    assert primitives(total(), *args) == ["ctc"]
    assert primitives(jax.vmap(total(), (0, None, None)), args[0][None], *args[1:]) == ["ctc"]


def test_a_gradient_runs_the_forward_and_the_backward_kernel():
    args = problem(COMPACT)
    assert primitives(jax.grad(total()), *args) == ["ctc_forward", "ctc_cotangent"]
    direction = jnp.ones_like(args[0])
    along = lambda x: jax.jvp(lambda a: total()(a, *args[1:]), (x,), (direction,))  # noqa: E731
    assert primitives(along, args[0]) == ["ctc_forward", "ctc_tangent"]


def test_jacobians_of_one_problem_call_the_backward_kernel_once():
    acts, labels, lengths = problem(COMPACT)
    costs = lambda a: jax_ctc.ctc(a, labels, lengths)  # noqa: E731
    once = ["ctc_forward", "ctc_cotangent", "ctc_product"]  # the last one is plain JAX
    assert primitives(jax.jacrev(costs), acts) == once
    assert primitives(jax.jacfwd(costs), acts) == once


def test_remat_by_the_name_of_the_residuals_runs_the_forward_kernel_once():
    acts, labels, lengths = problem(COMPACT)
    loss = lambda a: total()(jnp.tanh(a), labels, lengths)  # noqa: E731
    save = jax.checkpoint_policies.save_only_these_names("ctc_residuals")
    assert primitives(jax.grad(jax.checkpoint(loss)), acts).count("ctc_forward") == 2
    assert primitives(jax.grad(jax.checkpoint(loss, policy=save)), acts).count("ctc_forward") == 1


@needs_kernels
@SIZES
@LAYOUTS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    "transformation",
    [
        "loss",
        "value_and_grad",
        "jvp",
        "jvp of grad",
        "vmap",
        "vmap of grad",
        "mapped in the middle",
    ],
)
@sampled(16)
def test_the_optimised_program_copies_and_transposes_nothing(
    size, time_major, dtype, transformation
):
    acts, labels, lengths = problem(size, time_major, dtype)
    f = total(time_major)
    many = jnp.broadcast_to(acts, (3, *acts.shape))
    function, x = {
        "loss": (f, acts),
        "value_and_grad": (jax.value_and_grad(f), acts),
        "jvp": (lambda a, *r: jax.jvp(lambda x: f(x, *r), (a,), (a,)), acts),
        "jvp of grad": (
            lambda a, *r: jax.jvp(jax.grad(lambda x: f(x, *r)), (a,), (a,)),
            acts,
        ),
        "vmap": (jax.vmap(f, (0, None, None)), many),
        "vmap of grad": (jax.vmap(jax.grad(f), (0, None, None)), many),
        "mapped in the middle": (
            jax.vmap(jax.grad(f), (1, None, None), out_axes=1),
            jnp.swapaxes(many, 0, 1),
        ),
    }[transformation]
    program = jax.jit(function).lower(x, labels, lengths).compile().as_text()
    big = rf"= \w+\[[\d,]*\b{size[2]}\]\S* (copy|transpose)\("
    assert "custom-call" in program
    assert re.findall(big, program) == []


@needs_kernels
def test_the_loss_alone_keeps_nothing_that_grows_with_acts():
    small, large = (
        jax.jit(total()).lower(*problem(size)).compile().memory_analysis().temp_size_in_bytes
        for size in (COMPACT, (400, 6, 500, 9))
    )
    assert small == large <= 1024


@needs_kernels
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_a_gradient_keeps_an_occupancy_for_each_label_and_two_numbers_a_row(dtype):
    T, B, _, L = COMPACT
    compiled = jax.jit(jax.value_and_grad(total())).lower(*problem(COMPACT, dtype=dtype)).compile()
    promise = 4 * T * B * (L + 1 + 2)
    assert promise <= compiled.memory_analysis().temp_size_in_bytes <= promise + 4096


@SIZES
def test_the_residuals_are_no_more_than_promised(size):
    T, B, V, L = size
    acts, labels, lengths = problem(size)
    _, pullback = jax.vjp(lambda a: jax_ctc.ctc(a, labels, lengths), acts)
    arrays = [x for x in jax.tree.leaves(pullback) if jnp.issubdtype(x.dtype, jnp.floating)]
    kept = sum(x.size for x in arrays)
    assert acts.size < kept <= acts.size + T * B * min(L + 1, V) + 2 * T * B


@needs_kernels
def test_where_classes_are_few_the_gradient_is_made_in_its_place():
    args = problem(DENSE)
    memory = jax.jit(jax.value_and_grad(total())).lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 4096


@pytest.mark.skipif(not jax_ctc.build_info()["cuda"], reason="built without CUDA kernels")
@SIZES
def test_a_program_for_cuda_calls_its_kernels(size):
    args = problem(size)
    for function, calls in (
        (total(), ["loss"]),
        (jax.value_and_grad(total()), ["forward", "cotangent"]),
        (lambda acts, *rest: jax.jvp(lambda x: total()(x, *rest), (acts,), (acts,)), ["tangent"]),
    ):
        text = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
        for call in calls:
            assert text.count(f"@jax_ctc_{call}_v1") == 1


@pytest.mark.parametrize("platform", ["rocm", "tpu"])
@SIZES
@sampled(2)
def test_other_platforms_get_a_program_without_custom_calls(platform, size):
    args = problem(size)
    for function in (total(), jax.value_and_grad(total()), jax.hessian(total())):
        lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
        assert "jax_ctc" not in lowered.as_text()


@needs_kernels
def test_one_module_for_several_platforms_calls_the_kernel_on_cpu():
    lowered = jax.jit(total()).trace(*problem(DENSE)).lower(lowering_platforms=("cpu", "tpu"))
    assert "jax_ctc_loss_v1" in lowered.as_text()


def test_every_primitive_has_its_derivatives():
    for op, primitive in family.items():
        assert ad.primitive_jvps[primitive]
        if op in ("tangent", "cotangent", "hvp"):
            assert ad.primitive_transposes[primitive]

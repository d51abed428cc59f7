# SPDX-License-Identifier: Apache-2.0
"""Lowerings of the primitives: a custom call on platforms with kernels, pure JAX on all others."""

import contextlib
import functools
import string
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.interpreters.mlir import LoweringRuleContext

from .. import _kernels, _mesh, _operands
from .._operands import Kind

# The name of a target promises its operands, its attributes and their meaning, because exported and
# cached programs call it by this name. A change needs a new name.
TARGETS = {
    "loss": "jax_ctc_loss_v1",
    "forward": "jax_ctc_forward_v1",
    "tangent": "jax_ctc_tangent_v1",
    "cotangent": "jax_ctc_cotangent_v1",
    "hvp": "jax_ctc_hvp_v1",
    "masked_hvp": "jax_ctc_masked_hvp_v1",
    "align": "jax_ctc_align_v2",
    "sums": "jax_ctc_sums_v1",
    "sums_cotangent": "jax_ctc_sums_cotangent_v1",
    "top_class": "jax_ctc_top_class_v1",
    "beam": "jax_ctc_beam_v1",
}
# The same for log-scores, softmax=False. Other targets that know of log-scores have an attribute.
OF_SCORES = {
    "loss": "jax_ctc_loss_of_scores_v1",
    "forward": "jax_ctc_forward_of_scores_v1",
    "tangent": "jax_ctc_tangent_of_scores_v1",
    "cotangent": "jax_ctc_cotangent_of_scores_v1",
    "hvp": "jax_ctc_hvp_of_scores_v1",
    "masked_hvp": "jax_ctc_masked_hvp_of_scores_v1",
}
# Targets that only programs exported in the past call.
RETIRED = ("jax_ctc_align_v1",)


def register(op: str, primitive: Primitive, pure: Callable) -> None:
    """Registers the lowerings of `primitive`: kernels on platforms that have one, `pure` JAX on all
    others, and on GPUs if one of them has no compiled kernels."""
    without_kernels = _pure_rule(primitive, pure)
    mlir.register_lowering(primitive, without_kernels)
    for platform in _platforms(op):
        rule = _kernel_rule(op, primitive, platform)
        if platform == "cuda":
            rule = _where_gpus_have_code(rule, without_kernels)
        mlir.register_lowering(primitive, rule, platform=platform)


def register_pure(primitive: Primitive, pure: Callable, platform: str) -> None:
    """Registers another computation in pure JAX for one platform."""
    mlir.register_lowering(primitive, _pure_rule(primitive, pure), platform=platform)


def _where_gpus_have_code(rule: Callable, otherwise: Callable) -> mlir.LoweringRule:
    """Returns a rule that asks for GPUs when the first program for one is lowered. By then JAX has
    initialised CUDA itself, if there is a GPU."""

    def choose(ctx, *operands, **params):
        return (rule if _kernels.runs_on_all_gpus() else otherwise)(ctx, *operands, **params)

    return choose


def _platforms(op: str) -> list[str]:
    """Returns the platforms that have a kernel for the op."""
    return [name for name, targets in _kernels.TARGETS.items() if TARGETS.get(op) in targets]


def _pure_rule(primitive: Primitive, pure: Callable) -> mlir.LoweringRule:
    several = primitive.multiple_results
    context = getattr(pure, "lowered_in", contextlib.nullcontext)

    def rule(ctx, *operands, **params):
        def computed(acts, *others):
            return pure(_operands.rounded(acts), *others, **params)

        function = _mesh.with_auto_axes(computed, ctx.avals_out if several else ctx.avals_out[0])
        with context():
            return mlir.lower_fun(function, multiple_results=several)(ctx, *operands)

    return rule


def _kernel_rule(op: str, primitive: Primitive, platform: str) -> mlir.LoweringRule:
    """Returns a rule that makes one custom call. If a partitioner will read the module, the call
    has a form that it can split."""
    partitioned = mlir.lower_fun(
        _with_time_moved(op, primitive.multiple_results),
        multiple_results=primitive.multiple_results,
    )

    def rule(ctx, *operands, **params):
        if _mesh.is_unpartitioned(ctx):
            return _custom_call(op, platform, ctx, operands, **params)
        return partitioned(ctx, *operands, **params)

    return rule


def _custom_call(
    op: str,
    platform: str,
    ctx: LoweringRuleContext,
    operands: Sequence[mlir.ir.Value],
    *,
    time_axis: int,
    time_moved: bool = False,
    operand_layouts: Sequence[Sequence[int]] | None = None,
    result_layouts: Sequence[Sequence[int]] | None = None,
    extra_attributes: Mapping[str, mlir.ir.Attribute] | None = None,
    **params: int,
):
    wanted = len(ctx.avals_out)
    if op in ("hvp", "masked_hvp") and platform == "cpu":
        operands = _without_kept_gradient(operands, ctx)
    target = TARGETS[op]
    if op in OF_SCORES and not params.pop("softmax"):
        target = OF_SCORES[op]
    lower = jax.ffi.ffi_lowering(
        target,
        operand_layouts=operand_layouts,
        result_layouts=result_layouts,
        operand_output_aliases=_aliases(op, platform, ctx, time_moved),
        extra_attributes=extra_attributes,
    )
    results = lower(
        ctx.replace(
            avals_out=[*ctx.avals_out, *_scratch(op, platform, ctx, time_axis, time_moved)]
        ),
        *operands,
        time_axis=np.int64(time_axis),
        time_moved=np.bool_(time_moved),
        **{name: _attribute(value) for name, value in params.items()},
    )
    return results[:wanted]


def _attribute(value: int) -> np.generic:
    return np.bool_(value) if isinstance(value, bool) else np.int64(value)


def _scratch(
    op: str, platform: str, ctx: LoweringRuleContext, time_axis: int, time_moved: bool
) -> list[ShapedArray]:
    """Returns the type of one more result on CUDA, the memory that the kernels of a call share. It
    is a result, so that XLA plans it."""
    if platform != "cuda" or not _kernels.has_scratch(op):
        return []
    acts, labels, lengths, *_ = _operand_types(ctx)
    T = acts.shape[-2 if time_moved else time_axis]
    is_double = acts.dtype == np.float64
    size = _kernels.scratch_bytes(op, is_double, T, labels.shape[-1])
    return [ShapedArray((*lengths.shape, size), np.dtype(np.uint8))]


def _aliases(op: str, platform: str, ctx: LoweringRuleContext, time_moved: bool) -> dict[int, int]:
    """Says which operand the gradient aliases, as {operand: result}.

    In the dense layout it aliases the gradient that the forward pass kept. In the compact layout on
    CUDA it aliases acts. That saves the size of acts if they are not used again, and costs a copy
    if they are. On the CPU the alias would save nothing and cost the copy, so there is none.
    """
    if op != "cotangent" or (platform == "cpu" and time_moved):
        return {}
    types = _operand_types(ctx)
    acts, labels = types[:2]
    V, L = acts.shape[-1], labels.shape[-1]
    dense = _operands.is_dense(V, L)
    if dense is None:
        return {}
    if not dense:
        fits = isinstance(L, int) and L <= _kernels.most_labels_in_place
        return {0: 0} if platform == "cuda" and fits else {}
    kept = _operands.SIGNATURES[op].operands.index(_operands.COLUMNS)
    same = types[kept].dtype == acts.dtype  # that of the gradient
    return {kept: 0} if same else {}


def _without_kept_gradient(
    operands: Sequence[mlir.ir.Value], ctx: LoweringRuleContext
) -> list[mlir.ir.Value]:
    """Returns the operands of the CPU's Hessian-vector product, with `acts` in the place of the
    gradient that the forward pass kept. XLA would copy that one, because the gradient of the
    backward pass takes its place (`_aliases`). The kernel for float32 rarely needs it, and then
    computes it again."""
    types = _operand_types(ctx)
    acts, labels = types[:2]
    kept = _operands.SIGNATURES["hvp"].operands.index(_operands.COLUMNS)
    dense = _operands.is_dense(acts.shape[-1], labels.shape[-1])
    if dense and acts.dtype == np.float32:
        return [*operands[:kept], operands[0], *operands[kept + 1 :]]
    return list(operands)


def _operand_types(ctx: LoweringRuleContext) -> list[ShapedArray]:
    return [aval for aval in ctx.avals_in if isinstance(aval, ShapedArray)]


# ---- on many devices ---------------------------------------------------------------------------
#
# XLA can partition a custom call only along leading axes. So T is transposed next to V logically,
# and the operand gets a layout that leaves the bytes where they are. `num_batch_dims` (for GSPMD)
# and a sharding rule (for Shardy) then declare the leading axes as batch, and T, V and L as
# replicated.


def _with_time_moved(op: str, multiple_results: bool) -> Callable:
    signature = _operands.SIGNATURES[op]

    def call(*operands, time_axis, **params):
        batch_rank = operands[0].ndim - 2

        def move(x: Array, kind: Kind, source: int, destination: int) -> Array:
            return jnp.moveaxis(x, source, destination) if kind.has_time else x

        moved = [
            move(x, kind, time_axis, batch_rank)
            for x, kind in zip(operands, signature.operands, strict=True)
        ]
        out = _moved_calls[op].bind(*moved, time_axis=time_axis, **params)
        outs = out if multiple_results else [out]
        back = [
            move(x, kind, batch_rank, time_axis)
            for x, kind in zip(outs, signature.results, strict=True)
        ]
        return back if multiple_results else back[0]

    return call


def _define_moved_call(op: str) -> Primitive:
    """Defines the custom call as a primitive of its own. Its operands have T next to V logically,
    and are stored with T at `time_axis`."""
    signature = _operands.SIGNATURES[op]
    primitive = Primitive(f"ctc_{op}_call")
    primitive.multiple_results = len(signature.results) > 1

    @primitive.def_abstract_eval
    def _(acts, labels, lengths, *rest, time_axis, **params):
        out = _operands.result_avals(op, acts, labels, time_axis=acts.ndim - 2, **params)
        return out if primitive.multiple_results else out[0]

    for platform in _platforms(op):
        mlir.register_lowering(primitive, _moved_call_rule(op, platform), platform=platform)
    return primitive


def _moved_call_rule(op: str, platform: str) -> mlir.LoweringRule:
    signature = _operands.SIGNATURES[op]

    def rule(ctx, *operands, time_axis, **params):
        batch_rank = ctx.avals_in[0].ndim - 2
        layouts = functools.partial(_layout, batch_rank=batch_rank, time_axis=time_axis)
        scratch = _scratch(op, platform, ctx, time_axis, time_moved=True)
        results = [*signature.results, *[_operands.SCRATCH] * len(scratch)]
        return _custom_call(
            op,
            platform,
            ctx,
            operands,
            time_axis=time_axis,
            time_moved=True,
            operand_layouts=[layouts(kind) for kind in signature.operands],
            result_layouts=[layouts(kind) for kind in results],
            extra_attributes=_partitioning(
                signature.operands, ctx.avals_in, results, [*ctx.avals_out, *scratch], batch_rank
            ),
            **params,
        )

    return rule


def _layout(kind: Kind, batch_rank: int, time_axis: int) -> tuple[int, ...]:
    """Returns the layout, minor to major, of an array with T next to V that is stored with T at
    `time_axis`."""
    stored = kind.axis_names(batch_rank, time_axis)
    logical = kind.axis_names(batch_rank, batch_rank)
    return tuple(logical.index(name) for name in reversed(stored))


def _partitioning(
    operand_kinds: Sequence[Kind],
    operand_avals: Sequence[ShapedArray],
    result_kinds: Sequence[Kind],
    result_avals: Sequence[ShapedArray],
    batch_rank: int,
) -> dict[str, mlir.ir.Attribute]:
    """Returns attributes that let GSPMD and Shardy split the call along its batch axes."""
    ir = mlir.ir
    avals = [*operand_avals, *result_avals]
    if not all(isinstance(d, int) for aval in avals for d in aval.shape):
        return {}  # symbolic sizes (jax.export): such a program is for one device
    # Shardy names factors i, j, k, ... by first appearance.
    letters: dict[str, str] = {}
    sizes: dict[str, int] = {}

    def factors(kinds: Sequence[Kind], avals: Sequence[ShapedArray]) -> str:
        arrays = []
        for kind, aval in zip(kinds, avals, strict=True):
            names = kind.axis_names(batch_rank, batch_rank)
            for name, size in zip(names, aval.shape, strict=True):
                letters.setdefault(name, string.ascii_lowercase[8 + len(letters)])
                sizes[name] = size
            arrays.append("[" + ", ".join(letters[name] for name in names) + "]")
        return ", ".join(arrays)

    operands = factors(operand_kinds, operand_avals)
    results = factors(result_kinds, result_avals)
    size = ", ".join(f"{letter}={sizes[name]}" for name, letter in letters.items())
    replicated = ", ".join(
        letter for name, letter in letters.items() if not name.startswith("batch")
    )
    attributes: dict[str, mlir.ir.Attribute] = {
        "mhlo.frontend_attributes": ir.DictAttr.get(
            {"num_batch_dims": ir.StringAttr.get(str(batch_rank))}
        )
    }
    if getattr(jax.config, "jax_use_shardy_partitioner", True):
        attributes["sdy.sharding_rule"] = ir.Attribute.parse(
            f"#sdy.op_sharding_rule<({operands})->({results}) {{{size}}} "
            f"need_replication={{{replicated}}}, custom>"
        )
    return attributes


_moved_calls = {op: _define_moved_call(op) for op in TARGETS}

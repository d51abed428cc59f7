# SPDX-License-Identifier: Apache-2.0
"""What XLA makes of the op on NVIDIA GPUs, read off programs that are compiled without having one.

Needs the CUDA kernels, and XLA's CUDA plugin for the JAX in use in a directory of its own, which
JAX_CUDA_PLUGIN names. `make test-all` has both where nvcc is found; the plugin comes by
  pip install --no-deps --target DIRECTORY jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION
"""

import json
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import export

import jax_ctc
from support import gpu_program
from support.runs import made_once, run, sampled

T, B, L = gpu_program.T, gpu_program.B, gpu_program.L
PLUGIN = os.environ.get("JAX_CUDA_PLUGIN", "")

with_kernels = pytest.mark.skipif(
    not jax_ctc.build_info()["cuda"],
    reason="jax_ctc was built without CUDA kernels (make test-all builds them if nvcc is there)",
)
with_compiler = pytest.mark.skipif(
    not (Path(PLUGIN) / "jax_plugins").is_dir() or not PLUGIN,
    reason="JAX_CUDA_PLUGIN names no directory with XLA's CUDA plugin (make test-all has it)",
)
SIZES = pytest.mark.parametrize("size", ["dense", "compact"])
LAYOUTS = pytest.mark.parametrize("layout", ["TBV", "BTV"])


def compile_programs(file):
    paths = os.pathsep.join(filter(None, [PLUGIN, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as temporary:
        done = run(sys.executable, gpu_program.__file__, PYTHONPATH=paths, TMPDIR=temporary)
        assert done.returncode == 0, done.stderr[-4000:]
        assert os.listdir(temporary) == []  # nothing stays behind
    file.write_text(done.stdout[done.stdout.index("{") :])


@pytest.fixture(scope="module")
def programs():
    return json.loads(made_once("programs.json", compile_programs).read_text())


def calls(program):
    return re.findall(r'custom_call_target="jax_ctc_(\w+)_v\d+"', program["text"])


def moved(program):
    """Copies and transposes of something as large as acts: four frames and more."""
    found = re.findall(
        r"= \(?(?:bf16|f32)\[([\d,]+)\]\S* (?:copy|transpose|copy-start)\(", program["text"]
    )
    sizes = [int(jnp.prod(jnp.array(list(map(int, shape.split(",")))))) for shape in found]
    return [size for size in sizes if size >= T * B]


@with_kernels
@with_compiler
@SIZES
@LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_as_large_as_acts_is_copied(programs, size, layout, dtype):
    value = programs[f"{size} {layout} {dtype} value"]
    gradient = programs[f"{size} {layout} {dtype} gradient"]
    assert calls(value) == ["loss"]
    assert calls(gradient) == ["forward", "cotangent"]
    assert moved(value) == moved(gradient) == []


@with_kernels
@with_compiler
@SIZES
@LAYOUTS
def test_transformations_copy_nothing_as_large_as_acts(programs, size, layout):
    jvp, vmap = programs[f"{size} {layout} jvp"], programs[f"{size} {layout} vmap"]
    assert sorted(calls(jvp)) == ["forward", "tangent"]
    assert calls(vmap) == ["forward", "cotangent"]
    assert moved(jvp) == moved(vmap) == []
    product = programs[f"{size} {layout} product"]
    assert sorted(calls(product)) == ["cotangent", "forward", "hvp"]
    assert moved(product) == []


@with_kernels
@with_compiler
def test_a_transpose_would_be_seen(programs):
    text = programs["transposed"]["text"]
    assert (
        moved(programs["transposed"]) or "transpose_fusion" in text or "wrapped_transpose" in text
    )


@with_kernels
@with_compiler
@SIZES
@LAYOUTS
def test_a_sharded_batch_stays_where_it_is(programs, size, layout):
    for kind, expected in (
        ("value", ["loss"]),
        ("gradient", ["cotangent", "forward"]),
        ("product", ["cotangent", "forward", "hvp"]),
    ):
        program = programs[f"{size} {layout} sharded {kind}"]
        assert sorted(calls(program)) == expected
        assert not re.search(r"all-gather|all-to-all|collective-permute", program["text"])
        assert moved(program) == []
        # The sum that the program asks for, of scalars, in whatever form XLA gives it.
        reduced = re.findall(r"= (.*?) all-reduce[\w-]*\(", program["text"])
        assert bool(reduced) == (kind != "product")
        assert all(not re.search(r"\[\d", shape) for shape in reduced)
        # An eighth of the batch: labels of two sequences.
        operands = re.findall(r"operand_layout_constraints=\{(.*?)\}, api", program["text"])
        assert operands
        assert all(f"s32[{B // 8},{L}]" in shapes for shapes in operands)


@with_kernels
@with_compiler
def test_one_command_buffer_holds_a_whole_training_step(programs):
    lines = programs["step"]["thunks"].splitlines()
    assert "kCommandBuffer" in lines[0]
    assert all(line.startswith(" ") for line in lines[1:] if line.strip())
    assert sum("kCustomCall" in line for line in lines) == 2


@with_kernels
@with_compiler
def test_the_gradient_takes_the_place_of_acts(programs):
    cotangent = re.search(
        r"custom-call\(.*jax_ctc_cotangent_v1.*", programs["step"]["text"]
    ).group()
    assert "output_to_operand_aliasing={{}: (0, {})}" in cotangent
    for layout in ("TBV", "BTV"):
        unit = re.search(
            r"custom-call\(.*jax_ctc_cotangent_v1.*",
            programs[f"dense {layout} float32 gradient"]["text"],
        ).group()
        assert "output_to_operand_aliasing={{}: (4, {})}" in unit  # what the forward pass kept


@with_kernels
@with_compiler
@pytest.mark.parametrize(
    ("size", "donated", "copies"),
    [
        ("compact", False, ["acts"]),  # the gradient must take the place of acts, which are kept
        ("compact", True, []),
        ("dense", False, []),
        ("dense", True, ["ctc_cotangent"]),  # it takes that of the residuals, and moves to acts
    ],
)
def test_acts_that_are_an_argument_cost_a_copy_of_the_gradient_or_none(
    programs, size, donated, copies
):
    program = programs[f"{size} argument{' donated' * donated}"]
    assert calls(program) == ["forward", "cotangent"]
    assert ("input_output_alias" in program["text"]) == donated
    V = {"dense": 8, "compact": 50}[size]
    assert moved(program) == [T * B * V] * len(copies)
    assert re.findall(r" copy\(%(\w+)\.\d+\)", program["text"]) == copies


@with_kernels
@with_compiler
def test_acts_are_not_copied_for_several_hypotheses(programs):
    program = programs["compact hypotheses"]
    assert calls(program) == ["forward", "cotangent"]
    # Arrays of hypotheses and their few classes are moved.
    assert max(moved(program), default=0) < T * B * 50
    shapes = re.findall(
        r"custom_call_target.*?operand_layout_constraints=\{f32\[([\d,]+)\]", program["text"]
    )
    assert shapes == [f"3,{T},{B},{L + 2}"] * 2  # the few classes that the labels name


@with_kernels
@with_compiler
def test_the_loss_alone_needs_no_memory_that_grows_with_classes(programs):
    few, many = (programs[f"loss alone, V = {V}"]["temporaries"] for V in (50, 5000))
    assert few == many <= B * (T * (L + 1) * 8 + T * 24 + 1024)


@with_kernels
@with_compiler
@LAYOUTS
@pytest.mark.parametrize("kind", ["", " sharded"])
def test_an_alignment_is_a_custom_call_without_a_loop_or_a_copy(programs, layout, kind):
    program = programs[f"{layout} align{kind}"]
    assert calls(program) == ["align"]
    assert moved(program) == []
    assert not re.search(r" while\(|all-gather|all-to-all|collective-permute", program["text"])
    if not kind:  # acts times 2, and the scratch memory: half a byte a pair and frame
        assert program["temporaries"] < 4 * T * B * 50 + B * (T * (L + 1) + 32 * T + 2048)


# ---- without the compiler: programs for CUDA as they are handed over -----------------------------


def problem():
    return jnp.zeros((5, 2, 9), jnp.float32), jnp.ones((2, 2), jnp.int32), jnp.full(2, 5, jnp.int32)


def cost(acts, labels, lengths):
    return jax_ctc.ctc(acts, labels, lengths).sum()


@with_kernels
@pytest.mark.parametrize("op", ["loss", "forward", "tangent", "hvp"])
@pytest.mark.parametrize("is_double", [False, True])
def test_scratch_memory_is_bilinear_so_that_symbolic_sizes_work(op, is_double):
    from jax_ctc import _cuda, _kernels

    def measured(T, L):
        return _cuda.scratch_bytes(op, is_double, T, L)

    constant = measured(0, 0)
    per_T, per_L = measured(1, 0) - constant, measured(0, 1) - constant
    both = measured(1, 1) - per_T - per_L - constant
    for T, L in ((2, 0), (0, 5), (17, 3), (1001, 77), (100_000, 50_000)):
        assert measured(T, L) == constant + per_T * T + per_L * L + both * T * L
        assert 0 <= _kernels.scratch_bytes(op, is_double, T, L) - measured(T, L) < 16


@with_kernels
@pytest.mark.parametrize("op", ["loss", "forward", "tangent", "hvp", "align"])
def test_scratch_memory_of_what_a_handler_takes_fits_an_int64(op):
    """It refuses sizes with 2^63 bytes or more at 1024 a frame and column (ffi_decode.h)."""
    from jax_ctc import _cuda

    for T, columns in ((0, 1), (1, 1), (1, 2**31 - 1025), (7, 2), (8, 1), (2**26, 2**27 - 1)):
        bytes_needed = _cuda.scratch_bytes(op, True, T, columns - 1)
        assert 0 <= bytes_needed < 1024 * max(T, 1) * columns < 2**63


@with_kernels
@pytest.mark.parametrize("is_double", [False, True])
def test_scratch_memory_of_an_alignment_is_known_for_symbolic_sizes(is_double):
    from jax_ctc import _cuda, _kernels

    def measured(T, L):
        return _cuda.scratch_bytes("align", is_double, T, L)

    _, block = _cuda.tile_and_block
    for T in (0, 1, 7, 8, 9, 500, block - 1, block, block + 1, 100_000, 3 * 10**9):
        for L in (0, 1, 5, block - 1, block, block + 1, 20_000, 2**31 - 2):
            assert _kernels._alignment_bytes(measured, T, L) == measured(T, L)
    t, n = export.symbolic_shape("t, n")
    symbolic = _kernels.scratch_bytes("align", is_double, t, n)
    assert "floordiv" in str(symbolic)
    assert _kernels.scratch_bytes("align", is_double, 9, 3) - measured(9, 3) in range(16)


@with_kernels
@pytest.mark.parametrize("platforms", [("cuda",), ("cpu", "cuda"), ("cpu", "cuda", "tpu")])
@sampled(2)
def test_export_for_cuda(platforms):
    pytest.importorskip("flatbuffers")
    checks = [
        export.DisabledSafetyCheck.custom_call(f"jax_ctc_{op}_v1")
        for op in ("loss", "forward", "tangent", "cotangent")
    ]
    T, B = export.symbolic_shape("t, b")
    shapes = (
        jax.ShapeDtypeStruct((T, B, 9), jnp.float32),
        jax.ShapeDtypeStruct((B, 2), jnp.int32),
        jax.ShapeDtypeStruct((B,), jnp.int32),
    )
    exported = export.export(
        jax.jit(jax.value_and_grad(cost)), platforms=platforms, disabled_checks=checks
    )(*shapes)
    assert exported.platforms == platforms
    assert "jax_ctc_forward_v1" in exported.mlir_module()
    again = export.deserialize(exported.serialize())
    if "cpu" in platforms:
        value, gradient = again.call(*problem())
        wanted, slope = jax.value_and_grad(cost)(*problem())
        assert value == wanted
        assert (gradient == slope).all()


# ---- an output layer ---------------------------------------------------------------------------


@with_compiler
@pytest.mark.parametrize("dtype", ["", " bfloat16"])
def test_no_array_of_an_output_layer_has_all_frames_and_all_classes(programs, dtype):
    program = programs[f"linear{dtype}"]
    shapes = re.findall(r"(?:f32|bf16)\[([\d,]+)\]", program["text"])
    sizes = [math.prod(map(int, s.split(","))) for s in shapes]
    assert max(sizes) == gpu_program.D * gpu_program.LINEAR_V
    kernel = gpu_program.D * gpu_program.LINEAR_V * 4  # whose gradient is summed in float32
    library = 32 << 20  # what cuBLAS works in
    assert program["temporaries"] < library + 4 * gpu_program.LINEAR_TILE + kernel


@with_compiler
def test_a_row_of_a_tile_is_reduced_in_one_step(programs):
    """Two loops in the forward pass, over frames and over classes, and two in the backward pass."""
    loops = re.findall(r" while\(.*op_name=\"jit\(linear\)/([^\"]*)\"", programs["linear"]["text"])
    assert len([x for x in loops if "ctc_tiles" in x]) == 4

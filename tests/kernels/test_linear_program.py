# SPDX-License-Identifier: Apache-2.0
"""What JAX and XLA make of ctc_linear: memory that does not grow with V, and no logits."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_ctc
from jax_ctc._primitives import tiles
from jax_ctc._primitives.tile_function import Function, Per
from support.results import COMPILED
from support.runs import only_all, sampled, sweep

needs_kernels = pytest.mark.skipif(not COMPILED, reason="memory is that of the CPU's kernels")
T, B, L, D = 100, 16, 20, 64
TILE = 1 << 20


def types(V, K=None, dtype=jnp.float32):
    many = () if K is None else (K,)
    return (
        jax.ShapeDtypeStruct((T, B, D), dtype),
        jax.ShapeDtypeStruct((D, V), dtype),
        jax.ShapeDtypeStruct((V,), dtype),
        jax.ShapeDtypeStruct((*many, B, L), jnp.int32),
        jax.ShapeDtypeStruct((B,), jnp.int32),
    )


def loss(hidden, kernel, bias, labels, lengths):
    return jax_ctc.ctc_linear(hidden, kernel, labels, lengths, bias=bias, tile_bytes=TILE)


def gradient(hidden, kernel, bias, labels, lengths):
    def total(*arrays):
        return loss(*arrays, labels, lengths).sum()

    return jax.value_and_grad(total, (0, 1, 2))(hidden, kernel, bias)


def product(*arguments):
    arrays, rest = arguments[:3], arguments[3:]
    return jax.jvp(lambda *x: gradient(*x, *rest)[1], arrays, arrays)[1]


def many(hidden, kernel, bias, labels, lengths):
    """Costs of many label sequences for the same hidden states, and their gradient."""

    def total(*arrays):
        return jax.vmap(loss, (None, None, None, 0, None))(*arrays, labels, lengths).sum()

    return jax.value_and_grad(total, (0, 1, 2))(hidden, kernel, bias)


@cache
def compiled(f, V, K=None, dtype=jnp.float32):
    return jax.jit(f).lower(*types(V, K, dtype)).compile()


def temporaries(f, V, K=None, dtype=jnp.float32):
    return compiled(f, V, K, dtype).memory_analysis().temp_size_in_bytes


@needs_kernels
@pytest.mark.parametrize(("f", "tiles"), [(loss, 1), (gradient, 2), (product, 5)])
@sampled(2)
def test_memory_is_a_few_tiles_and_what_the_lattice_keeps(f, tiles):
    """A quarter of a tile here is the kernel's columns. L + 2 numbers a frame are those of the few
    classes: 3 arrays of them for the loss, 4 for the gradient."""
    frames = T * B * 4
    lattice = {loss: 3, gradient: 4, product: 12}[f] * (L + 2) * frames
    assert temporaries(f, 20_000) < tiles * 1.5 * TILE + lattice + 12 * frames + D * frames


@needs_kernels
@pytest.mark.parametrize("f", sweep([loss, gradient, product], [gradient]))
def test_memory_does_not_grow_with_v(f):
    assert temporaries(f, 64_000) < 1.1 * temporaries(f, 16_000)


@needs_kernels
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@sampled(1)
def test_a_kernel_of_halves_is_never_a_kernel_of_floats(dtype):
    """Only its gradient is summed in floats."""
    more = {
        f: temporaries(f, 64_000, None, dtype) - temporaries(f, 16_000, None, dtype)
        for f in (loss, gradient)
    }
    assert more[loss] < TILE / 4
    assert more[gradient] < 48_000 * (D + 1) * 4 + TILE / 4


@needs_kernels
@only_all
def test_label_sequences_share_the_tile():
    """Each takes the memory of its scores and its lattice."""
    more = temporaries(many, 20_000, 8) - temporaries(many, 20_000, 2)
    assert more < 6 * 8 * T * B * (L + 2) * 4


@pytest.mark.parametrize("f", [loss, gradient])
def test_no_array_has_all_frames_and_all_classes(f):
    text = compiled(f, 20_000).as_text()
    sizes = [np.prod(list(map(int, s.split(",")))) for s in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(sizes) == D * 20_000


def test_each_pass_multiplies_once_and_the_gradient_twice_more():
    """Four products of a tile: the forward pass, again, and those of hidden and kernel."""
    assert products(compiled(loss, 20_000)) == 1
    assert products(compiled(gradient, 20_000)) == 4


@pytest.mark.parametrize("f", [loss, gradient, product])
@pytest.mark.parametrize("by", ["argument", "setting", "setting as it is traced"])
@sampled(3)
def test_every_product_has_the_precision_that_is_asked_for(f, by, monkeypatch):
    """Else some would be TF32 on an NVIDIA GPU."""
    asked = "high" if by == "argument" else None
    monkeypatch.setattr(jax_ctc, "ctc_linear", partial(jax_ctc.ctc_linear, precision=asked))
    with jax.default_matmul_precision("default" if asked else "high"):
        traced = jax.jit(f).trace(*types(2000))
        program = traced.lower().as_text()
    if by == "setting as it is traced":
        program = traced.lower().as_text()
    found = re.findall(r"dot_general.*? precision = \[(\w+), (\w+)\]", program)
    assert len(found) == len(re.findall(r"stablehlo\.dot_general", program)) >= 1
    assert {precision for pair in found for precision in pair} == {"HIGH"}


def products(program):
    """Products with D, of more than a column."""
    count = 0
    for shape in re.findall(r"= f32\[([\d,]+)\]\S* (?:dot|custom-call)\(", program.as_text()):
        sizes = [int(n) for n in shape.split(",")]
        count += len(sizes) == 2 and min(sizes) >= D
    return count


@needs_kernels
@only_all
def test_the_large_model_of_the_documents_runs():
    """Logits of 2.4 GB: temporaries of 46 MB."""
    sizes = (375, 32, 512), (512, 50_000), (50_000,)
    arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes]
    labels, lengths = jnp.ones((32, 40), jnp.int32), jnp.full(32, 375, jnp.int32)

    def total(hidden, kernel, bias):
        return jax_ctc.ctc_linear(hidden, kernel, labels, lengths, bias=bias).sum()

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(*arrays).compile()
    assert step.memory_analysis().temp_size_in_bytes < 60e6


TILES = []


def counted(tile, hidden, kernel):
    """Logits summed over classes, and over frames."""
    jax.debug.callback(lambda: TILES.append(tile.rows))
    logits = hidden @ kernel
    return logits.sum(-1), logits.sum(tuple(range(len(tile.rows))))


@pytest.mark.parametrize("lengths", [[20, 20, 20], [20, 3, 0], [0, 0, 0], [1, 0, 1], [-1, 21, 6]])
def test_frames_that_are_not_in_use_are_not_multiplied(lengths):
    """Frames in use fill the tiles. Eight tiles of 60 frames have all of the 480 frames."""
    repeats, V = 8, 5
    lengths = np.array(lengths * repeats, np.int32)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(20, len(lengths), 3)).astype(np.float32)
    kernel = rng.normal(size=(3, V)).astype(np.float32)
    function = Function(counted, (Per.FRAME, Per.CLASS), (Per.FRAME, Per.CLASS))
    TILES.clear()
    run = jax.jit(partial(tiles.tiled, function, time_axis=0, tile_bytes=64 * V * 4))
    of_frames, of_classes = run(lengths, hidden, kernel)
    jax.effects_barrier()
    inside = np.where((lengths < 0) | (lengths > 20), 0, lengths)
    used = (np.arange(20)[:, None] < inside)[..., None]
    logits = np.where(used, hidden @ kernel, 0)
    np.testing.assert_allclose(of_frames, logits.sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_classes, logits.sum((0, 1)), rtol=1e-4, atol=1e-5)
    assert TILES == [(60,)] * -(-inside.sum() // 60)


def test_threads_do_not_change_a_bit():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(20, 4, 8)).astype(np.float32)
    kernel = rng.normal(size=(8, 300)).astype(np.float32)
    labels = rng.integers(1, 300, (4, 5), dtype=np.int32)
    one = jax_ctc.ctc_linear(hidden, kernel, labels, None, num_threads=1)
    np.testing.assert_array_equal(one, jax_ctc.ctc_linear(hidden, kernel, labels, None))

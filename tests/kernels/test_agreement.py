# SPDX-License-Identifier: Apache-2.0
"""What both Python and C++ spell out must agree: constants, layouts of residuals, target names."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from test_sources import COMPILER, KERNELS, needs_compiler

from jax_ctc import _kernels, _operands
from jax_ctc._primitives import custom_call
from jax_ctc._reference import emission, scaled
from jax_ctc._reference.align import _LEAST_REFERENCE
from jax_ctc._shapes import _MOST_STEPS
from support.runs import run

pytestmark = pytest.mark.skipif(not KERNELS.is_dir(), reason="not in a source tree")

PROGRAM = """
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include "common/best_path.h"
#include "common/emission.h"
#include "common/problem.h"
using namespace jax_ctc;
template <class F> double worst_error() {
  long double worst = 0;
  for (int i = -4000; i <= 4000; ++i) {
    const F r = F(i * 0.34657359L / 4000);
    const long double found = exp_reduced<F>(r), right = std::exp((long double)(r));
    worst = std::fmax(worst, std::fabs(found / right - 1));
  }
  return double(worst);
}
int main() {
  std::printf("exp %a %a\\n", worst_error<float>(), worst_error<double>());
  std::printf("none %d\\ndead %d\\nno_path %d\\n", kNone, kDead, kNoPath);
  std::printf("most_steps %d\\n", int(kMostSteps));
  std::printf("furthest %a\\n", kFurthest);
  std::printf("least_reference %a\\n", kLeastReference);
  std::printf("ln2 %a %a %a\\n", Ln2<double>::high, Ln2<double>::middle, Ln2<double>::low);
  std::printf("dithers");
  for (int t : {0, 1, 2, 1000, 123456789}) std::printf(" %d", dither_of(t));
  std::printf("\\n");
  std::printf("float %d %d\\n", Layout<float>::mantissa, Layout<float>::bias);
  std::printf("double %d %d\\n", Layout<double>::mantissa, Layout<double>::bias);
  for (int V : {1, 2, 3, 7})
    for (int L : {0, 1, 2, 6, 7}) {
      const Shape shape = {1, 1, 1, V, L};
      std::printf("shape %d %d %d %d\\n", V, L, shape.dense(), int(shape.columns()));
    }
}
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the headers of the kernels say: a list of numbers for each line of PROGRAM."""
    folder = tmp_path_factory.mktemp("agreement")
    (folder / "program.cpp").write_text(PROGRAM)
    command = [COMPILER, "-std=c++17", "-Wno-psabi", "-I", KERNELS, folder / "program.cpp"]
    built = run(*command, "-o", folder / "program")
    assert built.returncode == 0, built.stderr
    lines = [line.split() for line in run(folder / "program").stdout.splitlines()]
    return [(name, [float.fromhex(x) if "x" in x else int(x) for x in xs]) for name, *xs in lines]


@needs_compiler
def test_numbers_without_a_range_are_the_same_in_python_and_cpp(said):
    said = dict(said)
    assert said["none"] == [scaled.NONE]
    assert said["dead"] == [scaled.DEAD]
    assert said["no_path"] == [scaled.NO_PATH]
    assert said["most_steps"] == [_MOST_STEPS]
    assert said["furthest"] == [-emission.FURTHEST]
    assert said["least_reference"] == [_LEAST_REFERENCE]
    assert said["ln2"] == list(scaled.LN2)
    frames = jnp.array([0, 1, 2, 1000, 123456789], jnp.int32)
    dithers = (np.asarray(emission.dithers(frames)) + 0.5) * 2**24  # of 29 bits, which C++ has
    assert [dither >> 5 for dither in said["dithers"]] == list(dithers)
    assert said["float"] == list(scaled._layout(np.dtype(np.float32))[1:])
    assert said["double"] == list(scaled._layout(np.dtype(np.float64))[1:])


@needs_compiler
def test_the_polynomials_of_exp_are_right_to_rounding(said):
    single, double = dict(said)["exp"]
    assert 0 < single < np.finfo(np.float32).eps
    assert 0 < double < np.finfo(np.float64).eps


@needs_compiler
def test_residuals_have_the_layout_that_kernels_expect(said):
    shapes = [numbers for name, numbers in said if name == "shape"]
    assert len(shapes) == 20
    for V, L, dense, columns in shapes:
        assert _operands.is_dense(V, L) == dense
        assert _operands.kept_sizes(V, L) == (0 if dense else 2, columns)


def test_target_names_are_those_of_the_handlers():
    header = (KERNELS / "common" / "ffi_targets.h").read_text()
    named = set(re.findall(r'(?:name|of_scores) = "(jax_ctc_\w+_v\d+)"', header))
    tables = custom_call.TARGETS, custom_call.OF_SCORES
    assert named == {*tables[0].values(), *tables[1].values(), *custom_call.RETIRED}
    assert _kernels.TARGETS.get("cpu", named) == named
    assert _kernels.TARGETS.get("cuda", set()) <= named

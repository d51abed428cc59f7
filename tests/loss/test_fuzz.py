# SPDX-License-Identifier: Apache-2.0
"""The fuzzer: a short run of it, and that it finds what it is there for."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fuzz
import jax_ctc
from support import fuzz_problems
from support.results import COMPILED
from support.runs import only_all, run, sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMPILED, reason="pure JAX does not promise the bits of batches of one"),
]
CASES = [*range(0, 12), *range(40, 52), *range(80, 92)]  # of three settings
SETTING = fuzz_problems.Setting(
    T=6, B=3, V=5, L=2, dtype=np.float32, label_dtype=np.int32, blank=0, time_major=True,
    zero_infinity=False, with_label_lengths=False,
)  # fmt: skip


def test_random_problems_are_solved():
    complaints = {case: found for case, found in fuzz.answers(12, CASES) if found}
    assert complaints == {}


def test_most_problems_have_an_edge_and_most_sequences_a_finite_cost():
    rng, edges, finite = np.random.default_rng(0), [], []
    for _ in range(60):
        setting = fuzz_problems.draw_setting(rng)
        problem = fuzz_problems.draw(rng, setting)
        solution = fuzz_problems.solve(setting, problem, problem.labels)
        finite.extend(np.isfinite(solution.cost))
        edges.append(not np.isfinite(solution.cost).all() or not np.isfinite(problem.acts).all())
    assert np.mean(edges) > 0.5
    assert 0.5 < np.mean(finite) < 0.9


# ---- planted faults ------------------------------------------------------------------------------


def one_cost_is_wrong(acts, *rest, **options):
    cost = jax_ctc.ctc(acts, *rest, **options)
    return cost * jnp.where(jnp.arange(cost.size) == 1, 1 + 1e-4, 1).astype(cost.dtype)


def nan_in_the_place_of_inf(acts, *rest, **options):
    cost = jax_ctc.ctc(acts, *rest, **options)
    return jnp.where(jnp.isinf(cost), jnp.nan, cost)


def finite_part(acts):
    """0 in value."""
    finite = jnp.where(jnp.isfinite(acts), acts, 0)
    return finite - jax.lax.stop_gradient(finite)


def a_gradient_is_wrong(acts, *rest, **options):
    return jax_ctc.ctc(acts, *rest, **options) + 1e-4 * finite_part(acts).sum((0, 2))


def padding_is_touched(acts, *rest, **options):
    return jax_ctc.ctc(acts, *rest, **options) + 1e-30 * finite_part(acts)[-1].sum(-1)


def a_second_derivative_is_wrong(acts, *rest, **options):
    return jax_ctc.ctc(acts, *rest, **options) + 1e-4 * (finite_part(acts) ** 2).sum((0, 2))


def labels_end_at_the_first_padding(acts, labels, *rest, **options):
    padded = jax.lax.cummax((jnp.asarray(labels) < 0).astype(int), axis=1)
    return jax_ctc.ctc(acts, jnp.where(padded == 1, -1, labels), *rest, **options)


def all_frames_are_used(acts, labels, lengths, *rest, **options):
    lengths = jnp.where(lengths > 0, len(acts), lengths)
    return jax_ctc.ctc(acts, labels, lengths, *rest, **options)


def a_batch_has_other_bits(acts, *rest, **options):
    cost = jax_ctc.ctc(acts, *rest, **options)
    return cost * np.float32(1 + 2**-22 if cost.size > 1 else 1)


def bad_labels_are_padding(acts, labels, *rest, **options):
    return jax_ctc.ctc(acts, jnp.where(jnp.asarray(labels) >= 5, -1, labels), *rest, **options)


FAULTS = {
    one_cost_is_wrong: r"cost\[1\] is \d.*, not \d",
    nan_in_the_place_of_inf: r"cost\[\d\] is nan, not inf",
    a_gradient_is_wrong: r"gradient\[.*\] is [\d.e-]+, not",
    padding_is_touched: r"gradient\[5, .*\] is [\d.e-]+, not 0",
    a_second_derivative_is_wrong: r"product\[.*\] is",
    labels_end_at_the_first_padding: r"cost\[\d\] is \d.*, not \d",
    all_frames_are_used: r"cost\[\d\] is \d.*, not \d",
    a_batch_has_other_bits: r"sequence \d alone costs other bits",
    bad_labels_are_padding: r"outside of jit it is not rejected",
}
FEW = [nan_in_the_place_of_inf, a_second_derivative_is_wrong, a_batch_has_other_bits]


@pytest.mark.parametrize(
    ("ctc", "complaint"), sweep(FAULTS, FEW).items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_a_planted_fault_is_found(ctc, complaint):
    programs, rng = fuzz.programs_of(ctc, SETTING), np.random.default_rng(0)
    found = []
    for _ in range(60):
        problem = fuzz_problems.draw(rng, SETTING)
        found += fuzz.complaints_about(ctc, SETTING, problem, programs, 1)
        if any(re.match(complaint, words) for words in found):
            return
    raise AssertionError(found)


def test_an_exception_is_a_failure_with_a_number():
    def ctc(*args, **options):
        raise ZeroDivisionError("on purpose")

    assert list(fuzz.answers(12, [7], ctc)) == [(7, ["raises ZeroDivisionError: on purpose"])]


@only_all
def test_a_failure_can_be_repeated_by_its_number_and_ends_with_1(tmp_path):
    """With a loss that is wrong in the place of ours."""
    folder = Path(fuzz.__file__).parent
    (tmp_path / "wrong.py").write_text(
        f"import sys; sys.path.insert(0, {str(folder)!r}); import fuzz, jax_ctc\n"
        "right = fuzz.answers\n"
        "wrong = lambda *args, **options: jax_ctc.ctc(*args, **options) + 1\n"
        "fuzz.answers = lambda seed, cases: right(seed, cases, wrong)\n"
        "sys.exit(fuzz.main())\n"
    )
    program = run(sys.executable, tmp_path / "wrong.py", "--seed", 12, "--seconds", 0)
    assert program.returncode == 1, program.stderr
    said = re.search(r"case (\d+)\n  (cost.*)\n", program.stdout)
    assert f'again: make fuzz FUZZ_ARGS="--seed 12 --case {said[1]}"' in program.stdout
    again = run(sys.executable, tmp_path / "wrong.py", "--seed", 12, "--case", said[1])
    assert again.returncode == 1
    assert said[2] in again.stdout
    assert "acts = array(" in again.stdout

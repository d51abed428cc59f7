# SPDX-License-Identifier: Apache-2.0
"""Random problems against a long double oracle, for as long as one likes.

    make fuzz                                       a minute of them
    make fuzz FUZZ_ARGS="--seconds 600 --seed 7"
    make fuzz FUZZ_ARGS="--seed 7 --case 1234"      one of them again, with all its arguments

Costs, gradients, occupancies, products with the Hessian, and all of them over two hypotheses of the
labels (vmap), within the contract's tolerances; the same bits from the loss alone, from a batch of
one and outside of jit. Exit status 1 where anything differs.
"""

import argparse
import secrets
import sys
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_ctc
from support import fuzz_problems

CASES_OF_A_SETTING = 40  # programs are compiled once for so many problems
MOST_FAILURES = 10


class Answer(NamedTuple):
    case: int
    complaints: list  # empty where all is well


class Programs(NamedTuple):
    """The compiled functions of one setting. Each takes a Problem."""

    alone: object  # -> costs, not differentiated
    trained: object  # -> costs, gradients
    occupancy: object
    product: object
    hypotheses: object  # -> costs, gradients; for each
    hypotheses_product: object  # of their sum


def programs_of(ctc, setting):
    ctc = partial(ctc, **setting.options)
    occupancy = partial(jax_ctc.ctc_occupancy, blank=setting.blank, time_major=setting.time_major)

    def costs(p, labels=None):
        labels = p.labels if labels is None else labels
        return lambda acts: ctc(acts, labels, p.lengths, p.label_lengths)

    def trained(p, labels=None):
        cost, vjp = jax.vjp(costs(p, labels), p.acts)
        return cost, vjp(p.weights.astype(cost.dtype))[0]

    def sum_over_hypotheses(p):
        return lambda acts: jax.vmap(lambda y: costs(p, y)(acts))(p.hypotheses).sum()

    def product(f, p):
        return jax.jvp(jax.grad(f), (p.acts,), (p.direction,))[1]

    return Programs(
        jax.jit(lambda p: costs(p)(p.acts)),
        jax.jit(trained),
        jax.jit(lambda p: occupancy(p.acts, p.labels, p.lengths, p.label_lengths)),
        jax.jit(lambda p: product(lambda acts: costs(p)(acts).sum(), p)),
        jax.jit(lambda p: jax.vmap(lambda y: trained(p, y))(p.hypotheses)),
        jax.jit(lambda p: product(sum_over_hypotheses(p), p)),
    )


def tolerance_of(dtype):
    """The contract's, before half precision is rounded."""
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if dtype == jnp.float64:
        return 1e-11
    return 1e-6 if jax_ctc.build_info()[device] else 1e-4


def off(name, actual, expected, allowed, zero=False, free=False, summands=None):
    """Complaints about where `actual` is not as it has to be: at most one. Half precision is
    rounded once more; each of the `summands` and each of their sums, where it is a sum."""
    rounding = 0
    if actual.dtype in (jnp.bfloat16, jnp.float16):
        info = jnp.finfo(actual.dtype)
        rounding = np.abs(expected) * float(info.eps) / 2 + float(info.smallest_subnormal) / 2
        if summands is not None:
            rounding = sum(map(np.abs, summands)) * float(info.eps)
    actual = actual.astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        close = np.abs(actual - expected) <= allowed + rounding
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    wrong = ~np.where(zero, actual == 0, close | same) & ~np.broadcast_to(free, same.shape)
    if not wrong.any():
        return []
    at = tuple(map(int, np.argwhere(wrong)[0]))
    return [
        f"{name}{list(at)} is {float(actual[at]):.9g}, not {float(expected[at]):.9g}"
        f" ({wrong.sum()} of {wrong.size} are wrong)"
    ]


def bits_differ(name, actual, expected):
    """A complaint unless both have the same bits. All NaN are one."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    nan = np.isnan(actual) & np.isnan(expected)
    same = nan | ((actual == expected) & (np.signbit(actual) == np.signbit(expected)))
    if same.all():
        return []
    return [f"{name}: {actual[~same].ravel()[:3]}, {expected[~same].ravel()[:3]}"]


def is_rejected(ctc, setting, problem):
    """Whether a call outside of jit raises, and the cost if not."""
    try:
        arguments = (problem.acts, problem.labels, problem.lengths, problem.label_lengths)
        return False, ctc(*arguments, **setting.options)
    except ValueError:
        return True, None


def complaints_about(ctc, setting, problem, programs, one):
    """What is wrong with the answers to this problem. Sequence `one` is solved alone too."""
    time_axis = 0 if setting.time_major else 1

    def T_first(x):
        return np.moveaxis(np.asarray(x), time_axis, 0)

    tolerance = tolerance_of(setting.dtype)
    solutions = [fuzz_problems.solve(setting, problem, y) for y in problem.hypotheses]

    def judged(name, costs, gradients, solution):
        scale = np.maximum(solution.cost, max(setting.T, 1) ** 0.5)
        found = off(f"{name}cost", np.asarray(costs), solution.cost, tolerance * scale)
        if (np.asarray(costs) < 0).any():
            found.append(f"{name}cost: below 0")
        allowed = tolerance * np.maximum(np.abs(problem.weights), 1e-30)[:, None]
        return found + off(
            f"{name}gradient", T_first(gradients), solution.gradient, allowed,
            solution.zero, solution.free,
        )  # fmt: skip

    costs, gradients = programs.trained(problem)
    found = judged("", costs, gradients, solutions[0])
    for k, (cost, gradient) in enumerate(zip(*programs.hypotheses(problem), strict=True)):
        found += judged(f"hypothesis {k}: ", cost, gradient, solutions[k])

    occupancy = T_first(programs.occupancy(problem))
    found += off("occupancy", occupancy, solutions[0].occupancy, 2 * tolerance)

    u = T_first(problem.direction).astype(np.longdouble)
    spread = np.abs(u - u.mean(axis=-1, keepdims=True)).max(initial=0)
    allowed = spread * max(5 * tolerance, 1e-10)  # 1e-10: the differences of the oracle
    product = T_first(programs.product(problem))
    found += off("product", product, solutions[0].product, allowed)
    product = T_first(programs.hypotheses_product(problem))
    parts = [solution.product for solution in solutions]
    allowed *= len(parts)
    found += off("product of hypotheses", product, sum(parts), allowed, summands=parts)

    found += bits_differ("the loss alone has other bits", programs.alone(problem), costs)
    part = slice(one, one + 1)
    alone = problem._replace(
        **{name: x[part] for name, x in problem._asdict().items() if x is not None and x.ndim < 3},
        acts=np.take(problem.acts, [one], 1 - time_axis),
    )
    cost, gradient = programs.trained(alone)
    found += bits_differ(f"sequence {one} alone costs other bits", cost, costs[part])
    found += bits_differ(
        f"sequence {one} alone has a gradient of other bits",
        T_first(gradient)[:, 0], T_first(gradients)[:, one],
    )  # fmt: skip
    rejected, cost = is_rejected(ctc, setting, problem)
    if rejected != fuzz_problems.is_bad(setting, problem):
        found.append(f"outside of jit it is {'rejected' if rejected else 'not rejected'}")
    if not rejected:
        found += bits_differ("outside of jit it costs other bits", cost, costs)
    return found


def drawn(seed, case):
    """(setting, problem, a sequence) of this case. Consecutive cases share a setting."""
    setting = fuzz_problems.draw_setting(
        np.random.default_rng([seed, case // CASES_OF_A_SETTING, 0])
    )
    rng = np.random.default_rng([seed, case, 1])
    return setting, fuzz_problems.draw(rng, setting), int(rng.integers(setting.B))


def answers(seed, cases, ctc=jax_ctc.ctc):
    """Yields an Answer for each of the cases."""
    setting = programs = None
    for case in cases:
        before = setting
        setting, problem, one = drawn(seed, case)
        if setting != before:
            programs = programs_of(ctc, setting)
        try:
            complaints = complaints_about(ctc, setting, problem, programs, one)
        except Exception as error:  # whatever it is, the problem has a number
            complaints = [f"raises {type(error).__name__}: {error}"]
        yield Answer(case, complaints)


def described(seed, case, whole):
    setting, problem, _ = drawn(seed, case)
    lines = [" ".join(f"{name}={value!r}" for name, value in setting._asdict().items())]
    for name, value in problem._asdict().items():
        if whole or value is None or value.ndim < 3:
            lines.append(f"{name} = {value!r}".replace("\n", "\n    "))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="to go on for (%(default)s)")
    parser.add_argument("--seed", type=int, help="of all problems; drawn and printed if not given")
    parser.add_argument("--case", type=int, help="only this one of the seed's problems")
    args = parser.parse_args()
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    jax.config.update("jax_enable_x64", True)
    print(f"seed {seed}, {jax_ctc.build_info()}", flush=True)

    start = said = time.monotonic()
    failed = count = sequences = 0
    cases = iter(range(sys.maxsize)) if args.case is None else [args.case]
    if args.case is not None:
        np.set_printoptions(threshold=sys.maxsize)
        print(described(seed, args.case, whole=True))
    for case, complaints in answers(seed, cases):
        count += 1
        sequences += drawn(seed, case)[0].B
        if complaints:
            failed += 1
            print(f"\ncase {case}\n  " + "\n  ".join(complaints))
            if args.case is None:
                print(described(seed, case, whole=False))
                print(f'again: make fuzz FUZZ_ARGS="--seed {seed} --case {case}"', flush=True)
        now = time.monotonic()
        if now - said > 10:
            said = now
            print(f"{count} problems in {now - start:.0f} s", flush=True)
        if now - start > args.seconds or failed == MOST_FAILURES:
            break
    seconds = time.monotonic() - start
    print(
        f"seed {seed}: {count} problems, {sequences} sequences, {failed} failed, "
        f"{count / seconds:.1f} problems a second"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

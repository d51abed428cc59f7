# SPDX-License-Identifier: Apache-2.0
"""`ctc_align` beside torchaudio's forced_align and hirschberg-viterbi, where these are installed.

    python -m benchmarks.cpu.alignment            # some two minutes
    python -m benchmarks.cpu.alignment --quick    # small problems, to see that it runs

Times are the least of rounds in which the programs take turns. The peers take one sequence at a
call, so a batch is a loop over them. All are given log-probabilities. Memory is by how much the
resident size of a process grows at most in one call, in a process of its own (Linux). Every score
is compared with that of `ctc_align`. The results are a table in benchmarks/results/.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from .. import ROOT, import_what_is_installed, need

import_what_is_installed()
need("rich", "matplotlib")

import jax  # noqa: E402
import numpy as np  # noqa: E402

import jax_ctc  # noqa: E402

from .compare import file_name, machine  # noqa: E402
from .resident import growth  # noqa: E402
from .transcript import Transcript  # noqa: E402
from .turns import taking_turns  # noqa: E402

Shape = tuple[int, int, int, int]  # T, B, V, L
SHAPES: list[Shape] = [(20_000, 1, 32, 4000), (1500, 32, 32, 100), (1500, 1, 32, 100)]
LONG: Shape = (100_000, 1, 32, 20_000)
SMALL: Shape = (200, 2, 8, 20)
Aligner = Callable[[], object]  # what it returns are the paths, (B, T)


def problem(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities (T, B, V), and labels without equal neighbours (B, L)."""
    T, B, V, L = shape
    rng = np.random.default_rng(0)
    acts = jax.nn.log_softmax(rng.normal(size=(T, B, V)).astype(np.float32))
    steps = rng.integers(1, V - 1, (B, L))
    return np.array(acts), (1 + np.cumsum(steps, axis=-1) % (V - 1)).astype(np.int32)


def ours(acts: np.ndarray, labels: np.ndarray) -> Aligner:
    arguments = jax.device_put((acts, labels))
    align = jax.jit(lambda acts, labels: jax_ctc.ctc_align(acts, labels, None).path.T)
    return partial(align.lower(*arguments).compile(), *arguments)


def by_torch(acts: np.ndarray, labels: np.ndarray, align: Callable) -> Aligner:
    import torch  # pyright: ignore[reportMissingImports]

    acts_of = [torch.from_numpy(acts[None, :, b].copy()) for b in range(acts.shape[1])]
    labels_of = [torch.from_numpy(row[None].copy()) for row in labels]
    return lambda: [align(*x)[0][0].numpy() for x in zip(acts_of, labels_of, strict=True)]


def torchaudio(acts: np.ndarray, labels: np.ndarray) -> Aligner:
    import torchaudio.functional  # pyright: ignore[reportMissingImports]

    return by_torch(acts, labels, torchaudio.functional.forced_align)


def hirschberg(acts: np.ndarray, labels: np.ndarray) -> Aligner:
    import hirschberg_viterbi  # pyright: ignore[reportMissingImports]

    return by_torch(acts, labels, hirschberg_viterbi.hirschberg_viterbi)


PROGRAMS = {"jax_ctc": ours, "torchaudio": torchaudio, "hirschberg-viterbi": hirschberg}


def installed() -> list[str]:
    """Returns the programs that run here. A torchaudio that was built for another PyTorch does not
    even load."""
    found = []
    for name, make in PROGRAMS.items():
        try:
            make(*problem(SMALL))()
            found.append(name)
        except (ImportError, OSError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def score(acts: np.ndarray, paths: object) -> float:
    taken = np.take_along_axis(acts.astype(float), np.asarray(paths).T[..., None], axis=-1)
    return float(taken.sum())


def times(shapes: list[Shape], names: list[str], say: Callable[[str], None]) -> None:
    say("| T, B, V, L | " + " | ".join(f"{name}, ms" for name in names) + " |")
    say("|---|" + "---|" * len(names))
    for shape in shapes:
        given = problem(shape)
        programs = {name: PROGRAMS[name](*given) for name in names}
        scores = {name: score(given[0], align()) for name, align in programs.items()}
        for name in names:
            assert abs(scores[name] - scores["jax_ctc"]) < 1e-4 * abs(scores["jax_ctc"]), scores
        found = taking_turns(programs, 15, min)
        cells = [f"{ms:.2f} ({ms / found['jax_ctc']:.1f}x)" for ms in found.values()]
        say(f"| {', '.join(f'{n:,}' for n in shape)} | {' | '.join(cells)} |")


def once(name: str) -> None:
    """Prints the seconds and the MB of one call at LONG. Ours is compiled before."""
    align = PROGRAMS[name](*problem(LONG))
    start = time.perf_counter()
    megabytes = growth(align)
    print(time.perf_counter() - start, megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu.alignment", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small problems; nothing is written")
    parser.add_argument("--once", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        once(options.once)
        return
    transcript = Transcript()
    say = transcript.say
    names, where = installed(), machine([])
    peers = {p: importlib.metadata.version(p) for p in names if p != "jax_ctc"}
    versions = {**where["versions"], **peers}
    say(f"{where['cpu']}, {where['threads']} threads; {versions}")
    say("\nBest paths of log-probabilities; in brackets the ratio to jax_ctc.\n")
    times([SMALL] if options.quick else SHAPES, names, say)
    if options.quick:
        return
    say(f"\nOne call at T, B, V, L = {', '.join(f'{n:,}' for n in LONG)}:\n")
    for name in names:
        command = [sys.executable, "-m", "benchmarks.cpu.alignment", "--once", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            why = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
            say(f"- {name}: ends with an error ({why[0]})")
        else:
            seconds, megabytes = map(float, done.stdout.split()[-2:])
            say(f"- {name}: {seconds:.1f} s, and the resident size grows by {megabytes:,.0f} MB")
    transcript.write(f"{file_name(where)}-alignment")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of the documents, each for a light and for a dark page.

    python -m benchmarks.pictures

It reads benchmarks/results and measures nothing.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from . import ROOT, need, no_options

need("matplotlib")

import matplotlib  # noqa: E402

matplotlib.use("Agg")
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


class Style(NamedTuple):
    """The colours of a page. Peers are told apart by their markers too."""

    ink: str
    grid: str
    lines: tuple[str, ...]  # ours first


STYLES = {
    "light": Style("#24292f", "#d5dae0", ("#0a53be", "#c2410c", "#6b7280", "#9d2a8f", "#3f7d20")),
    "dark": Style("#d7dde4", "#3a414b", ("#6cb2ff", "#ff9a5c", "#9aa4b1", "#e58ad9", "#8fd16a")),
}
MARKERS = "os^Dv"
NAMES = {"scan": "a plain scan", "torch": "PyTorch"}
AXES = {"T": "frames T", "B": "sequences B", "V": "classes V", "L": "labels L"}
UNITS = {"ms": "ms", "largest error": "largest error of a gradient entry"}


def number(x: float, _: int = 0) -> str:
    """0.1, 1, 10, 100, 1k, 10k; a power of ten below a hundredth."""
    if x >= 1000:
        return f"{x / 1000:g}k"
    return f"{x:g}" if x > 0.009 else f"$10^{{{round(math.log10(x))}}}$"


def draw(
    axis: Axes, style: Style, x: list[float], peers: dict[str, list[float | None]], unit: str
) -> None:
    """Lines of y against x, both in decades, with a tick at each x that was measured."""
    for k, (peer, values) in enumerate(peers.items()):
        points = [(a, b) for a, b in zip(x, values, strict=True) if b is not None]
        if points:
            axis.loglog(
                *zip(*points, strict=True),
                marker=MARKERS[k],
                color=style.lines[k],
                linewidth=3 if k == 0 else 1.6,
                markersize=7 if k == 0 else 5,
                label=NAMES.get(peer, peer),
                zorder=3 if k == 0 else 2,
            )
    axis.xaxis.set_major_locator(FixedLocator(x))
    axis.yaxis.set_major_locator(LogLocator(numticks=8))
    for along in (axis.xaxis, axis.yaxis):
        along.set_major_formatter(FuncFormatter(number))
        along.set_minor_locator(NullLocator())
    axis.set_ylabel(unit, color=style.ink)
    axis.tick_params(colors=style.ink, length=0)
    axis.grid(color=style.grid, linewidth=0.8)
    axis.patch.set_alpha(0)
    axis.spines[:].set_visible(False)


def save(figure: Figure, style: Style, stem: Path, name: str) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False,
        labelcolor=style.ink, fontsize=12,
    )  # fmt: skip
    # No date and no version, so that the same results give the same bytes.
    figure.savefig(f"{stem}-{name}.png", dpi=140, transparent=True, metadata={"Software": None})


def sweeps(run: dict[str, Any], stem: Path) -> None:
    """`make bench`: the time and the error of each peer, against each size."""
    for name, style in STYLES.items():
        with matplotlib.rc_context({"font.size": 11}):
            figure = Figure(figsize=(8, 10.5), layout="constrained")
            axes = figure.subplots((len(run["sweeps"]) + 1) // 2, 2)
            for axis, sweep in zip(axes.flat, run["sweeps"].values(), strict=False):
                draw(axis, style, sweep["x"], sweep["peers"], UNITS[sweep["unit"]])
                what = "time" if sweep["unit"] == "ms" else "error"
                what = f"{what} against {AXES[sweep['axis']]}"
                rest = zip("TBVL", sweep["base"], strict=True)
                fixed = ", ".join(f"{k} = {n}" for k, n in rest if k != sweep["axis"])
                axis.set_title(f"{what}\n{fixed}", color=style.ink, fontsize=11, loc="left")
            save(figure, style, stem, name)


def memory(found: dict[str, Any], stem: Path) -> None:
    """`python -m benchmarks.cpu.output_layer`: the memory of each way, against V."""
    for name, style in STYLES.items():
        with matplotlib.rc_context({"font.size": 11}):
            figure = Figure(figsize=(8, 4.5), layout="constrained")
            axis = figure.subplots()
            draw(axis, style, found["V"], found["MB"], "MB beside arguments and gradients")
            T, B, _, _, D = found["shape"]
            title = f"memory against classes V: {T} frames, {B} sequences, D = {D}"
            axis.set_title(title, color=style.ink, fontsize=11, loc="left")
            axis.set_ylim(5, None)
            save(figure, style, stem, name)


def main() -> None:
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text())
        if isinstance(found, dict) and "sweeps" in found:
            sweeps(found, file.with_suffix(""))
        elif isinstance(found, dict) and "MB" in found:
            memory(found, file.with_suffix(""))
        else:
            continue
        print(f"{file.with_suffix('')}-light.png, -dark.png")


if __name__ == "__main__":
    no_options("pictures", __doc__)
    main()

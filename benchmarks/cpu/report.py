# SPDX-License-Identifier: Apache-2.0
"""Results as a table for the terminal and for the documents."""

from collections.abc import Sequence
from typing import Any

HEADER = (
    "shape", "T, B, V, L", "what", "jax_ctc ms", "spread", "peers, ms (ratio)", "to the fastest",
    "to the limit", "temporary", "compiles in",
)  # fmt: skip
OURS = "jax_ctc"


def rows(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of the results that have a time of ours."""
    table = []
    for result in results:
        peers = {k: v for k, v in result["peers"].items() if "ms" in v}
        if OURS not in peers:
            continue
        ours = peers.pop(OURS)
        others = {k: v["ms"] / ours["ms"] for k, v in peers.items()}
        size = 4 * result["shape"][0] * result["shape"][1] * result["shape"][2]
        table.append(
            [
                result["name"],
                ", ".join(map(str, result["shape"])),
                "loss + gradient" if result["training"] else "loss",
                f"{ours['ms']:.3g}",
                f"{ours['low']:.3g} to {ours['high']:.3g}",
                "; ".join(f"{k} {v['ms']:.3g} ({others[k]:.1f})" for k, v in peers.items()),
                f"{min(others.values()):.1f}x" if others else "",
                f"{ours['ms'] / result['limit']:.1f}x" if result.get("limit") else "",
                f"{100 * ours['temporary_bytes'] / size:.1f} % of acts",
                f"{ours['compile_seconds']:.2f} s",
            ]
        )
    return table


def markdown(run: dict[str, Any]) -> str:
    machine = run["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {run['date']}; "
        + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()),
        "",
        f"Medians over {run['rounds']} rounds in which peers took turns, of the medians of "
        f"{run['seconds']} s of calls each. Spread: the lowest and highest of the rounds.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows(run["results"])]
    if run.get("limits"):
        slopes = ", ".join(f"{k} {v:.3f}" for k, v in run["limits"].items())
        lines += ["", f"Limits: ns of wall time a class or pair of a frame: {slopes}."]
    for name, sweep in run.get("sweeps", {}).items():
        lines += ["", f"### {name}", ""]
        peers = list(sweep["peers"])
        lines += [
            "| " + " | ".join([sweep["axis"], *peers]) + " |",
            "|" + "---|" * (1 + len(peers)),
        ]
        for k, x in enumerate(sweep["x"]):
            values = [sweep["peers"][p][k] for p in peers]
            cells = ["" if v is None else f"{v:.3g}" for v in values]
            lines.append("| " + " | ".join([str(x), *cells]) + " |")
    return "\n".join(lines) + "\n"

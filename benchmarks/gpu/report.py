# SPDX-License-Identifier: Apache-2.0
"""The rows of all sections in Markdown: a table for each section, then the aims of the design."""

from typing import Any

Rows = list[dict[str, Any]]


def number(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}"
    return "" if x is None else str(x)


def cell(x: Any, longest: int) -> str:
    text = number(x).replace("\n", " ").replace("|", "/").strip()
    return text if len(text) <= longest else f"...{text[-longest:]}"


def report(rows: Rows, sections: list[str], log_characters: int = 6000) -> str:
    parts = []
    for section in sections:
        mine = [row for row in rows if row["section"] == section]
        ends = [row for row in mine if "ended" in row]
        found = [row for row in mine if "ended" not in row]
        if not mine:
            continue
        how = f"{ends[-1]['ended']}, {ends[-1]['seconds']} s" if ends else "cut off"
        parts.append(f"## {section}: {how}\n")
        if ends and ends[-1].get("log"):
            parts.append("```\n" + ends[-1]["log"][-log_characters:] + "\n```\n")
        parts += table(found, 400 if log_characters > 2000 else 160)
    return "\n".join([*parts, "## What the design asked for\n", *verdicts(rows)])


def table(rows: Rows, longest: int) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row if key != "section")
    columns = [key for key in keys if any(row.get(key) not in (None, "") for row in rows)]
    if not columns:
        return []
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(cell(row.get(column), longest) for column in columns) + " |"
        for row in rows
    ]
    return [*lines, ""]


def verdicts(rows: Rows) -> list[str]:
    """One line for each aim: yes, no, or not measured."""
    return [
        f"- {'not measured' if met is None else 'yes' if met else 'NO'}: {wish}. {why}".rstrip()
        for wish, met, why in (
            every("all of tests/gpu pass", rows, "tests", passes),
            every("all of the ordinary tests pass", rows, "suite", passes),
            every("compute-sanitizer finds nothing", rows, "sanitizer", is_clean),
            every("gradients within 1e-6 of float64", rows, "accuracy", is_accurate),
            every("never slower than a peer that was measured", rows, "speed", is_faster),
            every("within 1.5 times of v1 as predicted", rows, "speed", is_as_predicted),
            every("55 cycles a frame at (200, 1, 32, 30)", rows, "kernels", is_quick_chain),
            every("rows at 85% of the copy's bandwidth", rows, "kernels", is_full_bandwidth),
        )
    ]


def every(wish: str, rows: Rows, section: str, holds: Any) -> tuple[str, bool | None, str]:
    """`holds` of a row is None if the row says nothing about the aim. Otherwise it says whether the
    aim is met, and the number."""
    answers = [answer for row in rows if row["section"] == section and (answer := holds(row))]
    failing = [why for good, why in answers if not good]
    if not answers:
        return wish, None, ""
    shown = failing or [why for _, why in answers]
    return wish, not failing, "; ".join(shown[:6])


def passes(row: dict[str, Any]) -> Any:
    if row.get("test") != "all":
        return None
    outcome = row["outcome"]
    good = "failed" not in outcome and "crashed" not in outcome and "passed" in outcome
    return good and row.get("not_run") == 0, f"{outcome}; {row.get('not_run')} not run"


def is_clean(row: dict[str, Any]) -> Any:
    if "exit" not in row:
        return None
    return row["exit"] == 0, f"{row['tool']}: {row['result']}"


def is_accurate(row: dict[str, Any]) -> Any:
    if "gradient_error" not in row:
        return None
    error = row["gradient_error"]
    return error <= 1e-6, f"{error:.1e} at T = {row['T']}, spread {row['spread']}"


def where(row: dict[str, Any]) -> str:
    return f"({row['shape']}) {row['dtype']} {row['what']}"


def is_faster(row: dict[str, Any]) -> Any:
    ratio = row.get("peer / call")
    return ratio and (ratio >= 1, f"{ratio:.2g} times as fast at {where(row)}")


def is_as_predicted(row: dict[str, Any]) -> Any:
    ratio = row.get("x v1")
    return ratio and (ratio <= 1.5, f"{ratio:.2g} at {where(row)}")


def is_quick_chain(row: dict[str, Any]) -> Any:
    if "lattice" not in row.get("kernel", "") or not row["what"].startswith("200 1 32 30 "):
        return None
    return row["value"] <= 55, f"{row['value']:.0f} ({row['what']}, {row['kernel']})"


def is_full_bandwidth(row: dict[str, Any]) -> Any:
    if "of the copy" not in row or not row["what"].startswith("1000 64 5000 100 "):
        return None
    return row["of the copy"] >= 0.85, f"{row['of the copy']:.2f} ({row['kernel']})"

"""Table of the field: medians over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LEVELS = (50, 80, 90)
CLOCKS = ("seconds", "cpu_seconds")
HEAD = (
    "| peer | seeds | decisions/s | per CPU s | flagtrl's / the peer's: seconds, CPU s "
    "| memory, MiB | steps | share "
    "| to 50%: steps, s | to 80% | to 90% | statements |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def summary(records: Sequence[dict[str, Any]]) -> str:
    """As Markdown, in the records' order."""
    by = {r["peer"]: [each for each in records if each["peer"] == r["peer"]] for r in records}
    ours = [_rate(by["flagtrl"], clock) for clock in CLOCKS] if "flagtrl" in by else None
    return "\n".join([HEAD, *(_row(rows, ours) for rows in by.values())])


def _row(rows: list[dict[str, Any]], ours: Sequence[float] | None) -> str:
    rates = [_rate(rows, clock) for clock in CLOCKS]
    shares = [r["share"] for r in rows if r["share"] is not None]
    cells = [
        rows[0]["title"],
        str(len(rows)),
        *map(_number, rates),
        ", ".join(f"{own / rate:.1f}" for own, rate in zip(ours or (), rates, strict=bool(ours))),
        f"{np.median([r['memory_mib'] for r in rows]):,.0f}",
        f"{np.median([r['steps'] for r in rows]):,.0f}",
        f"{np.median(shares):.2f}" if shares else "-",
        *(_reached(rows, level) for level in LEVELS),
        str(rows[0]["statements"] or "-"),
    ]
    return f"| {' | '.join(cells)} |"


def _rate(rows: list[dict[str, Any]], seconds: str) -> float:
    return float(np.median([r["steps"] / r[seconds] for r in rows]))


def _reached(rows: list[dict[str, Any]], level: int) -> str:
    """Where the median run first reached a level; `-` where half of the runs never did."""
    steps = [r[f"steps_to_{level}"] or np.inf for r in rows]
    seconds = [r[f"seconds_to_{level}"] or np.inf for r in rows]
    return (
        f"{np.median(steps):,.0f}, {np.median(seconds):,.0f}"
        if np.isfinite(np.median(steps))
        else "-"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"

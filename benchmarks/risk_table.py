"""The table of what risk in the objective changes; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite_table import interval

MEASURED = ("return", "exposure", "storm_exposure", "drawdown", "cvar", "turnover")


def summary(records: Sequence[dict[str, Any]]) -> str:
    """A row for each case: means over seeds, and half the width of their 95% interval."""
    lines = ["| case | seeds | " + " | ".join(MEASURED) + " |", "|---|---:" + "|---:" * 6 + "|"]
    for case in dict.fromkeys(record["case"] for record in records):
        rows = [record for record in records if record["case"] == case]
        cells = [
            interval([row[name] for row in rows if row[name] is not None], 3) for name in MEASURED
        ]
        lines.append(f"| {case} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)

"""The table of what going on with new days keeps and learns; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suite_table import interval, signed


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """A row for each change of the market and what was done: mean shares over seeds, and half the
    width of their 95% interval.
    """
    lines = [
        "| what changed | policy | seeds | share on new days | share on old days |",
        "|---|---|---:|---:|---:|",
    ]
    for change, arm in dict.fromkeys((each["change"], each["arm"]) for each in records):
        rows = [each for each in records if (each["change"], each["arm"]) == (change, arm)]
        cells = [interval([row[f"{kind}_share"] for row in rows]) for kind in ("new", "old")]
        lines.append(f"| {change} | {arm} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(
    records: Sequence[Mapping[str, Any]], arm: str, other: str, kind: str, change: str
) -> str:
    """What an arm's share on `new` or `old` days is above another's, seed by seed."""
    shares = {
        (each["arm"], each["seed"]): each[f"{kind}_share"]
        for each in records
        if each["change"] == change
    }
    seeds = sorted({seed for name, seed in shares if name == arm})
    return signed([shares[arm, seed] - shares[other, seed] for seed in seeds])

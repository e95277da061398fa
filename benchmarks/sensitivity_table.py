"""The table of how often other words change a decision; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suite_table import interval


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The share of changed decisions, mean over runs and 95% interval by Student's t; of runs that
    are all alike, as those of one untrained model, the one number.
    """
    kinds = [(trained, how) for trained in (False, True) for how in ("kept", "measured again")]
    names = ("untrained", "trained")
    head = [f"{names[trained]}, prior {how}" for trained, how in kinds]
    lines = [f"| prompt | {' | '.join(head)} |", "|---|" + "---:|" * len(kinds)]
    for prompt in list(dict.fromkeys(row["prompt"] for row in rows))[1:]:  # the first is training's
        cells = [
            interval(found if len(set(found)) > 1 else found[:1])
            for found in (
                [
                    row["changed"]
                    for row in rows
                    if (row["prompt"], row["trained"], row["prior"]) == (prompt, *kind)
                ]
                for kind in kinds
            )
        ]
        lines.append(f"| {prompt} | {' | '.join(cells)} |")
    return "\n".join(lines)

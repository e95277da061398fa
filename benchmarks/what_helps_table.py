"""The table of what helps learning; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suite_table import interval

PRESET = "preset"


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """A row for each change: the preset's own share, or the mean difference from it over seeds with
    its 95% interval, by market.
    """
    markets = list(dict.fromkeys(record["market"] for record in records))
    lines = [
        "| training bars | change | seeds | " + " | ".join(markets) + " |",
        "|---|---|---:|" + "---:|" * len(markets),
    ]
    shares = {
        (each["setting"], each["variant"], each["market"], each["seed"]): each["share"]
        for each in records
    }
    for setting, variant in dict.fromkeys((each["setting"], each["variant"]) for each in records):
        cells, seeds = [], set()
        for market in markets:
            values = []
            for seed in sorted({key[3] for key in shares}):
                own = shares.get((setting, variant, market, seed))
                base = shares.get((setting, PRESET, market, seed))
                if own is not None and base is not None:
                    values.append(own if variant == PRESET else own - base)
                    seeds.add(seed)
            shown = interval(values)
            signed = variant != PRESET and bool(values) and not shown.startswith("-")
            cells.append(f"+{shown}" if signed else shown)
        lines.append(f"| {setting} | {variant} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)

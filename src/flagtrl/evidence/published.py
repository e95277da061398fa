"""The rows that FLAG-Trader's Tables 1 and 2 print (arXiv 2502.11433), to stand beside ours. They
mix conventions: which of them a path of positions can reach at all, an audit must say.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from flagtrl.errors import unknown

# number of the table to its assets
TABLES = {1: ("MSFT", "JNJ", "UVV"), 2: ("HON", "TSLA", "BTC")}
ASSETS = tuple(asset for assets in TABLES.values() for asset in assets)
# Asset to the first and the last day of its test window, as the paper has it. Its rows are of all
# of these prices, or of all but the last.
WINDOWS = {
    **dict.fromkeys(ASSETS, ("2020-10-01", "2021-05-06")),
    "BTC": ("2023-04-05", "2023-11-05"),
}
OURS = "FLAG-TRADER"  # the group of the row that this package implements


class Published(NamedTuple):
    """A printed row: percent, but for the Sharpe ratio.

    Attributes:
        model: as printed.
        group: of the table.
        asset: by symbol.
        CR, SR, AV, MDD: as printed.
    """

    model: str
    group: str
    asset: str
    CR: float
    SR: float
    AV: float
    MDD: float


@cache
def published(asset: str) -> Sequence[Published]:
    """The rows of one asset, in the order of the table; ConfigError of another asset."""
    if asset not in ASSETS:
        raise unknown("asset", asset, ASSETS)
    text = (files("flagtrl.evidence") / "published.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(
        Published(row["model"], row["group"], row["asset"], *_numbers(row))
        for row in rows
        if row["asset"] == asset
    )


def _numbers(row: dict[str, str]) -> tuple[float, float, float, float]:
    return float(row["CR"]), float(row["SR"]), float(row["AV"]), float(row["MDD"])

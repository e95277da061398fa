"""Markets in a folder, found by an asset's name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flagtrl.errors import DataError, in_one_line
from flagtrl.market.data import MarketData, Window
from flagtrl.market.sources import load
from flagtrl.market.tables import TABLE_SUFFIXES, suffix_of
from flagtrl.market.values import listed


@dataclass(frozen=True)
class Found:
    """What a folder holds of an asset.

    Attributes:
        markets: path to what was read.
        troubles: what is wrong with files that could not be read, a line each.
    """

    markets: dict[Path, MarketData]
    troubles: tuple[str, ...] = ()


def markets_in(folder: Path, asset: str) -> Found:
    """The markets of every file below a folder whose name, or else whose folder's name, has the
    asset's among its words, in any case: `msft.json`, `TSLA_daily.csv`, `tsla/prices.csv`.
    """
    word = re.compile(rf"(?<![a-z0-9]){re.escape(asset.lower())}(?![a-z0-9])")
    known = (".json", *TABLE_SUFFIXES)
    files = [each for each in sorted(folder.rglob("*")) if suffix_of(each) in known]
    named = [each for each in files if word.search(each.name.lower())]
    named = named or [each for each in files if word.search(_folders(each, folder))]
    markets, troubles = {}, []
    for path in named:
        try:
            markets[path] = load(str(path), symbol=asset)
        except DataError as error:
            troubles.append(in_one_line(error))
    return Found(markets, tuple(troubles))


def _folders(path: Path, folder: Path) -> str:
    return path.relative_to(folder).parent.as_posix().lower()


def window_in(found: Found, asset: str, start: str, end: str) -> Window | str:
    """The bars of one of the markets from start to end, or why there are none, in a line.

    Raises:
        DataError: two files that differ in these days or prices, or days that are none.
    """
    windows: dict[Path, Window] = {}
    for path, market in found.markets.items():
        if str(market.dates[0]) <= start and str(market.dates[-1]) >= end:
            windows[path] = market.window(start, end)
    if not windows:
        covered = [f"{p} has {m.dates[0]} to {m.dates[-1]}" for p, m in found.markets.items()]
        why = listed(covered) if covered else "; ".join(found.troubles) or "no file is named so"
        return f"{asset} has no prices of {start} to {end}: {why}"
    (first, window), *others = windows.items()
    for path, other in others:
        same = np.array_equal(window.dates, other.dates)
        if not same or not np.allclose(window.prices, other.prices, rtol=1e-9, atol=0):
            raise DataError(
                f"{first} and {path} differ in {asset}'s prices of {start} to {end}; leave one of "
                "them in the folder"
            )
    return window

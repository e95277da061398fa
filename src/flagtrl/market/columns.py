"""Which columns a market is in, under the names of the exports that people have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flagtrl.errors import DataError
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.tables import FIELDS, Table, plain
from flagtrl.market.values import listed, some

# Names as `plain` has them, in tiers: a later tier counts only where no name of an earlier one
# occurs.
DATE_COLUMNS = (
    ("date",),
    ("tradedate", "tradingdate", "observationdate"),
    ("datetime", "timestamp", "ds", "time", "opentime", "windowstart", "t", "unix"),
)
PRICE_COLUMNS = (
    ("adjclose", "adjustedclose"),  # and whatever else `_is_adjusted`
    ("close", "c", "closelast", "closeprice", "closingprice"),
    ("price", "last", "lastprice", "settle"),
)
NEWS_COLUMNS = (
    ("news", "headline", "headlines"),
    ("title", "articletitle", "newstitle"),
    ("text", "summary", "article", "content", "body"),
)
SENTIMENT_COLUMNS = (
    ("sentiment", "sentimentlabel", "overallsentimentlabel"),
    ("sentimentscore", "overallsentimentscore"),
)
SYMBOL_COLUMNS = (("ticker", "symbol", "tic"),)
# Names in capitals that are no asset's.
_NO_ASSETS = {
    *FIELDS,
    *(name for tiers in (DATE_COLUMNS, PRICE_COLUMNS, NEWS_COLUMNS) for t in tiers for name in t),
    *("o", "h", "l", "v", "n", "vw", "vwap", "value", "trades", "series", "qty", "quantity"),
    *("turnover", "openint", "openinterest", "per", "vol", "change"),
}
_TICKER = re.compile(r"[A-Z][A-Z0-9.^=/-]*")
Tiers = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Columns:
    """Where in a table each part of a market is; None: nowhere."""

    date: int
    price: int
    news: int | None
    sentiment: int | None

    def named(self, names: Sequence[str]) -> dict[str, str]:
        """What is read to the name of its column."""
        found = {name: getattr(self, name) for name in ("date", "price", "news", "sentiment")}
        return {what: names[at] for what, at in found.items() if at is not None}


def is_wide(names: Sequence[str], price_column: str | None) -> bool:
    """Whether a table has a column of prices for each asset, and this is one."""
    if any(plain(name) in FIELDS for name in names):
        return False
    tickers = [n for n in names if _TICKER.fullmatch(n) and plain(n) not in _NO_ASSETS]
    return price_column in tickers and len(tickers) > 1


def columns_of(table: Table, where: str, reading: ReadingSettings, symbol: str | bool) -> Columns:
    """The columns of a table that are read.

    Args:
        table: of one asset.
        where: names it in messages.
        reading: names columns, where their own names leave that open.
        symbol: whose column of prices counts, where each asset may have one; else False.

    Raises:
        DataError: no column of dates or prices, or several.
    """
    names = table.names
    date = _date_column(table, where, reading)
    price = _price_column(names, where, reading, symbol, date)
    return Columns(
        date,
        price,
        find_optional(names, NEWS_COLUMNS, reading.news_column, "news", where),
        find_optional(names, SENTIMENT_COLUMNS, reading.sentiment_column, "sentiment", where),
    )


def _date_column(table: Table, where: str, reading: ReadingSettings) -> int:
    names = table.names
    # pandas writes an index without a name so: first in CSV, last in Parquet
    unnamed = [i for i, n in enumerate(names) if plain(n) in ("unnamed0", "indexlevel0")]
    unnamed += [0] if names and not names[0].strip() else []
    if reading.date_column is None and unnamed and tier_of(names, DATE_COLUMNS) == []:
        return unnamed[0]
    return _find(names, DATE_COLUMNS, reading.date_column, "date", where)


def _price_column(
    names: Sequence[str], where: str, reading: ReadingSettings, symbol: str | bool, date: int
) -> int:
    adjusted = [name for name in names if _is_adjusted(plain(name))]
    if reading.price_column is None and len(adjusted) == 1:
        return list(names).index(adjusted[0])
    if reading.price_column is None and symbol and not tier_of(names, PRICE_COLUMNS):
        own = [i for i, name in enumerate(names) if name.upper() == str(symbol).upper()]
        if len(own) == 1 and own[0] != date and plain(names[own[0]]) not in _NO_ASSETS:
            return own[0]
    return _find(names, PRICE_COLUMNS, reading.price_column, "price", where)


def _is_adjusted(name: str) -> bool:
    """Whether a column's plain name is that of a close adjusted for splits and dividends."""
    return name in ("adjusted", "adj") or (
        "adj" in name and ("close" in name or "price" in name or "closing" in name)
    )


def tier_of(names: Sequence[str], tiers: Tiers) -> list[int]:
    """Where the names of the first tier that occurs are."""
    groups = [[i for i, name in enumerate(names) if plain(name) in tier] for tier in tiers]
    return next((group for group in groups if group), [])


def _find(names: Sequence[str], tiers: Tiers, override: str | None, what: str, where: str) -> int:
    """The position of the only column that bears a name of the first tier that occurs, or exactly
    `override`.
    """
    accepted = [name for tier in tiers for name in tier]
    remedy = (
        f"columns found: {some(names)}; names accepted: {listed(accepted)}; or say which with "
        f"--{what}_column{' (or --symbol, where each asset has one)' if what == 'price' else ''}"
    )
    matches = (
        [i for i, name in enumerate(names) if name == override.strip()]
        if override is not None
        else tier_of(names, tiers)
    )
    if len(matches) == 1:
        return matches[0]
    if not matches:
        missing = f"no column {override!r}" if override is not None else f"no {what} column"
        raise DataError(f"{where}: {missing}; {remedy}")
    raise DataError(
        f"{where}: {len(matches)} {what} columns ({listed(names[i] for i in matches)}); {remedy}"
    )


def find_optional(
    names: Sequence[str], tiers: Tiers, override: str | None, what: str, where: str
) -> int | None:
    """The column that bears a name of the first tier that occurs, or exactly `override`; None where
    none does. DataError where several do.
    """
    if override is None and not tier_of(names, tiers):
        return None
    return _find(names, tiers, override, what, where)

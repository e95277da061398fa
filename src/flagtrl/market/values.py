"""What all sources share: single values of market files, and the market made of them; what cannot
be used is a DataError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flagtrl.errors import DataError
from flagtrl.market.data import SENTIMENTS, MarketData, NewsItem, parse_date
from flagtrl.market.frequency import frequency_of
from flagtrl.market.reading import Reading

_LABEL = re.compile(r"\(\s*sentiment\s*:\s*([^()]*?)\s*\)\s*$", re.IGNORECASE)
MOST_SHOWN, MOST_NAME = 60, 90  # characters of a value, and of a name, in a message
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_ISO_DAY = re.compile(r"(\d{4})([-/]?)(\d\d)\2(\d\d)(?=$|[ T])")


def read_day(value: object, where: str) -> np.datetime64:
    """The calendar day that an ISO date, timestamp or YYYYMMDD begins with.

    Stricter than `parse_date`, which also reads '2020' (as January 1st) and 'today'; and 03/04/2020
    is nobody's to guess.
    """
    match = _ISO_DAY.match(str(value))
    if match is None:
        raise DataError(f"{where}: {str(value)!r} is not a date; write it as YYYY-MM-DD")
    try:
        return parse_date(f"{match[1]}-{match[3]}-{match[4]}")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def read_price(value: Any, where: str) -> float:
    """The number that a price cell or JSON value is."""
    try:
        if isinstance(value, (bool, np.bool_)):  # which float() takes for 0 and 1
            raise TypeError
        if isinstance(value, str) and "_" in value:  # which float() takes for a separator
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: the price is {shown(value)}; it must be a plain number above 0, without "
            "currency sign or separators"
        ) from error


def read_news_item(text: str, where: str) -> NewsItem:
    """The item without its closing `(Sentiment: label)`, which becomes its sentiment.

    Half of a surrogate pair, which is no character, and which no tokenizer takes, becomes U+FFFD.
    """
    text = _SURROGATE.sub("\ufffd", text)
    match = _LABEL.search(text)
    if match is None:
        return NewsItem(text)
    return NewsItem(text[: match.start()].rstrip(), read_sentiment(match[1], where))


def read_sentiment(label: str, where: str) -> str:
    """A news item's label, one of SENTIMENTS."""
    known = label.strip().lower()
    if known not in SENTIMENTS:
        raise DataError(
            f"{where}: a news item has the sentiment {label!r}; it must be one of "
            f"{listed(SENTIMENTS)}, or absent"
        )
    return known


def listed(names: Iterable[object]) -> str:
    """Names for a message."""
    return ", ".join(str(name) for name in names) or "none"


def some(names: Sequence[str], most: int = 12, between: str = ", ") -> str:
    """Names for a message, so many at most, each cut where it is long."""
    told = [name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}..." for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(told) + more


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def market_of(
    where: str,
    symbol: str,
    days: Sequence[np.datetime64],
    prices: Sequence[float],
    news: Sequence[tuple[NewsItem, ...]],
    periods_per_year: int | None,
    reading: Reading | None = None,
) -> MarketData:
    """MarketData, whose own complaints are given the file they are about."""
    dates = np.array(days, dtype="datetime64[D]")
    periods = periods_per_year or frequency_of(dates).periods_per_year
    values = np.array(prices, dtype=np.float64)
    try:
        return MarketData(symbol, dates, values, tuple(news), periods, reading)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def symbol_of(stem: str) -> str:
    """A file's name up to its first underscore, in capitals."""
    return stem.split("_")[0].upper()


def check_file(path: Path) -> None:
    """DataError where there is no such file."""
    if path.is_dir():
        raise DataError(f"{path} is a directory; give one file in it")
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path (it is relative to {Path.cwd()})")

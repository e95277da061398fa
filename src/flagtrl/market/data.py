"""MarketData: a validated, frozen series of prices and news, and windows on it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from flagtrl.errors import DataError
from flagtrl.market.reading import Reading

logger = logging.getLogger(__name__)

MOST_SYMBOL = 64  # characters
SENTIMENTS = ("positive", "neutral", "negative")


@dataclass(frozen=True)
class NewsItem:
    """One news item of one bar; `sentiment` is one of SENTIMENTS, or None where the source gave no
    label.
    """

    text: str
    sentiment: str | None = None

    def __post_init__(self) -> None:
        if self.sentiment is not None and self.sentiment not in SENTIMENTS:
            raise DataError(
                f"news sentiment is {self.sentiment!r}; it must be one of {', '.join(SENTIMENTS)}, "
                "or absent"
            )


@dataclass(frozen=True, eq=False)
class MarketData:
    """One asset: a price and the news of every bar, oldest first.

    Attributes:
        symbol: the asset's name, as the prompt will show it.
        dates: (T,) datetime64[D], strictly increasing.
        prices: (T,) float64, adjusted close, currency per share, finite and positive.
        news: T tuples of NewsItem; a bar without news has an empty one.
        periods_per_year: bars in a year: 252, or 365 for markets that trade every day.
        reading: what reading its file found; None where there was none.

    Raises:
        DataError: naming the first offending bar, the bound, and the remedy.
    """

    symbol: str
    dates: np.ndarray
    prices: np.ndarray
    news: tuple[tuple[NewsItem, ...], ...] = field(repr=False)
    periods_per_year: int = 252
    reading: Reading | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        dates = _as_days(self.dates, self.symbol)
        prices = _as_prices(self.prices, self.symbol)
        _check_symbol(self.symbol)
        if dates.ndim != 1 or dates.shape != prices.shape or len(self.news) != len(dates):
            raise DataError(
                f"{self.symbol}: {dates.shape} dates, {prices.shape} prices and {len(self.news)} "
                "days of news; the three must be one-dimensional and equally long"
            )
        if len(dates) < 2:
            raise DataError(f"{self.symbol}: {len(dates)} bars; at least 2 are needed to trade")
        _check_increasing(dates, self.symbol)
        _check_prices(prices, dates, self.symbol)
        if self.periods_per_year < 1:
            raise DataError(
                f"{self.symbol}: periods_per_year is {self.periods_per_year}; use 252, or 365 "
                "where every day is traded"
            )
        dates.flags.writeable = False
        prices.flags.writeable = False
        object.__setattr__(self, "dates", dates)
        object.__setattr__(self, "prices", prices)
        object.__setattr__(self, "news", tuple(tuple(items) for items in self.news))

    def __len__(self) -> int:
        return len(self.dates)

    def window(self, start: str | None = None, end: str | None = None) -> Window:
        """The bars from `start` to `end`, both days included (ISO dates; None: the first or last
        bar).

        Raises:
            DataError: a date that cannot be read, a start after the end, or fewer than 2 bars in
                between.
        """
        first = self.dates[0] if start is None else parse_date(start)
        last = self.dates[-1] if end is None else parse_date(end)
        if first > self.dates[-1] or last < self.dates[0]:
            where = "after" if first > self.dates[-1] else "before"
            raise DataError(
                f"{self.symbol}: the window {first}..{last} lies {where} the data, which cover "
                f"{self.dates[0]}..{self.dates[-1]}; choose days of these"
            )
        if first > last:
            raise DataError(
                f"{self.symbol}: the window starts on {first}, after its end on {last}; swap the "
                "two dates"
            )
        lo = int(np.searchsorted(self.dates, first, side="left"))
        hi = int(np.searchsorted(self.dates, last, side="right"))
        if hi - lo < 2:
            raise DataError(
                f"{self.symbol}: the window {first}..{last} holds {hi - lo} bars, at least 2 are "
                f"needed; the data covers {self.dates[0]}..{self.dates[-1]}"
            )
        for day, beyond in ((first, first < self.dates[0]), (last, last > self.dates[-1])):
            if beyond:
                logger.warning(
                    "%s: the window %s..%s goes beyond the data, which cover %s..%s: %s is not in "
                    "it",
                    *(self.symbol, first, last, self.dates[0], self.dates[-1], day),
                )
        return Window(self, lo, hi)

    def fingerprint(self) -> str:
        """SHA-256 over symbol, dates, prices and news: equal for equal data, whatever file it came
        from.
        """
        digest = hashlib.sha256(self.symbol.encode())
        digest.update(self.dates.astype("datetime64[D]").astype(np.int64).tobytes())
        digest.update(self.prices.tobytes())
        for items in self.news:
            digest.update(repr([(item.text, item.sentiment) for item in items]).encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Window:
    """Bars `start` to `stop` (exclusive) of a market. Look-backs may reach before `start`, never
    past a bar.
    """

    market: MarketData
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= len(self.market) or len(self) < 2:
            raise DataError(
                f"{self.market.symbol}: window [{self.start}, {self.stop}) must hold at least 2 of "
                f"the {len(self.market)} bars"
            )

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def prices(self) -> np.ndarray:
        """(n,) float64 prices of the window."""
        return self.market.prices[self.start : self.stop]

    @property
    def dates(self) -> np.ndarray:
        """(n,) datetime64[D] dates of the window."""
        return self.market.dates[self.start : self.stop]

    @property
    def span(self) -> tuple[str, str, int]:
        """First day, last day and number of bars, as a run's record has a window."""
        return str(self.dates[0]), str(self.dates[-1]), len(self)


def parse_date(text: str) -> np.datetime64:
    """An ISO date, YYYY-MM-DD, as datetime64[D]; DataError where it is none ("2020" and "today" are
    none).
    """
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(text)):
        raise DataError(f"{text!r} is not a date; write it as YYYY-MM-DD")
    try:
        day = np.datetime64(text, "D")
    except (ValueError, TypeError) as error:
        raise DataError(f"{text!r} is not a date; write it as YYYY-MM-DD") from error
    if np.isnat(day):
        raise DataError(f"{text!r} is not a date; write it as YYYY-MM-DD")
    return day


def count_sentiments(items: Sequence[NewsItem]) -> tuple[int, int, int]:
    """Number of positive, neutral and negative items; unlabelled ones are not counted."""
    counts = [sum(item.sentiment == label for item in items) for label in SENTIMENTS]
    return counts[0], counts[1], counts[2]


def _check_symbol(symbol: str) -> None:
    """It stands in prompts, tables and pictures: one line of text, and no more."""
    if not symbol.strip():
        raise DataError("the symbol is empty; name the asset, as in symbol='MSFT'")
    if len(symbol) > MOST_SYMBOL:
        raise DataError(
            f"the symbol has {len(symbol)} characters, {symbol[:20]!r}...; use {MOST_SYMBOL} at "
            "most (--symbol)"
        )
    if not symbol.isprintable():
        raise DataError(
            f"the symbol {symbol!r} holds control characters or line breaks; write it without "
            "(--symbol)"
        )


def _as_days(dates: np.ndarray, symbol: str) -> np.ndarray:
    try:
        days = np.array(dates, dtype="datetime64[D]")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{symbol}: a date cannot be read ({error}); write dates as YYYY-MM-DD"
        ) from error
    missing = np.flatnonzero(np.isnat(days))
    if len(missing):
        raise DataError(
            f"{symbol}: the date of row {missing[0]} is missing; every bar needs one, as YYYY-MM-DD"
        )
    return days


def _as_prices(prices: np.ndarray, symbol: str) -> np.ndarray:
    try:
        return np.array(prices, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{symbol}: a price is no number ({error}); prices must be finite and above 0"
        ) from error


def _check_increasing(dates: np.ndarray, symbol: str) -> None:
    wrong = np.flatnonzero(np.diff(dates).astype(np.int64) <= 0)
    if not len(wrong):
        return
    i = int(wrong[0])
    if dates[i + 1] == dates[i]:
        raise DataError(
            f"{symbol}: the date {dates[i]} occurs twice (rows {i} and {i + 1}); keep one bar a day"
        )
    raise DataError(
        f"{symbol}: dates are not sorted: {dates[i + 1]} (row {i + 1}) follows {dates[i]}; sort "
        "the file, oldest first"
    )


def _check_prices(prices: np.ndarray, dates: np.ndarray, symbol: str) -> None:
    wrong = np.flatnonzero(~(np.isfinite(prices) & (prices > 0)))
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{symbol}: the price of {dates[i]} is {prices[i]}; prices must be finite and above 0; "
            "drop the bar or repair it at its source (filling it forward is your decision, not "
            "ours)"
        )

"""What a market holds, as `flagtrl data check` prints it and a run's record keeps it: enough to see
that a file was understood as it was meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flagtrl.countdown import WARNING
from flagtrl.market.data import SENTIMENTS, MarketData
from flagtrl.market.frequency import (
    bars_in_365_days,
    frequency_of,
    is_gap,
    odd_days,
    weekdays_missing,
)
from flagtrl.market.reading import Reading
from flagtrl.market.values import some
from flagtrl.record import DataFacts

# Shares for one, and one for shares: the ratios of usual splits.
SPLITS = (1.25, 4 / 3, 1.5, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 40, 50, 100)
# Of a log return: what the price may have done itself on that day; less where a day may do as much.
SPLIT_TOLERANCE, SMALL_SPLIT, SMALL_TOLERANCE = 0.05, 1.5, 0.01
LARGEST_STEP = 3  # of a price, up or down by this factor: beyond it something else is at work
RATE_OFF = 0.15  # by which bars may come more or less often than their number a year says
_SHOWN = 3  # of gaps, splits and days in one warning


@dataclass(frozen=True)
class Summary:
    """What a market holds.

    Attributes:
        symbol: the asset's name.
        bars: their number.
        first, last: days, ISO.
        first_price, last_price: currency per share.
        frequency: daily, weekly, monthly, quarterly or yearly.
        periods_per_year: bars in a year, as the market has it.
        periods_why: where that number is from.
        news: number of items.
        labelled: number of items with a label.
        labels: number of items by label.
        days_with_news, days_with_labels: shares of the bars, 0 to 1.
        columns: what is read to where from.
        ignored: columns that are not read.
        words: how the file was understood.
        warnings: what should be checked.
    """

    symbol: str
    bars: int
    first: str
    last: str
    first_price: float
    last_price: float
    frequency: str
    periods_per_year: int
    periods_why: str
    news: int
    labelled: int
    labels: Mapping[str, int]
    days_with_news: float
    days_with_labels: float
    columns: Mapping[str, str]
    ignored: tuple[str, ...]
    words: tuple[str, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, market: MarketData) -> Summary:
        """The summary of a market, with what reading its file found."""
        frequency, reading = frequency_of(market.dates), market.reading or Reading()
        told = market.periods_per_year == frequency.periods_per_year
        items = [[item.sentiment for item in own] for own in market.news]
        labels = Counter(label for own in items for label in own if label is not None)
        return cls(
            symbol=market.symbol,
            bars=len(market),
            first=str(market.dates[0]),
            last=str(market.dates[-1]),
            first_price=float(market.prices[0]),
            last_price=float(market.prices[-1]),
            frequency=frequency.name,
            periods_per_year=market.periods_per_year,
            periods_why=frequency.why if told else "as given",
            news=sum(map(len, items)),
            labelled=sum(labels.values()),
            labels={label: labels[label] for label in SENTIMENTS},
            days_with_news=float(np.mean([bool(own) for own in items])),
            days_with_labels=float(np.mean([any(own) for own in items])),
            columns=dict(reading.columns),
            ignored=reading.ignored,
            words=reading.words,
            warnings=(
                *(*reading.warnings, *_calendar(market), *_rate(market)),
                *(*_gaps(market), *_splits(market)),
            ),
        )

    def told(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        found = asdict(self).items()
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found}

    def lines(self) -> list[str]:
        """All of it to read."""
        labels = ", ".join(f"{n} {label}" for label, n in self.labels.items() if n)
        news = f"{self.news} items of news on {self.days_with_news:.0%} of the bars"
        source = ", ".join(
            what if what == name else f"{what} from {name!r}" for what, name in self.columns.items()
        )
        parts = [
            f"{self.symbol}: {self.bars} {self.frequency} bars, {self.first} at "
            f"{self.first_price:g} to {self.last} at {self.last_price:g}; "
            f"{self.periods_per_year} a year ({self.periods_why})",
            (f"{news}: {labels or 'none labelled'}" if self.news else "no news"),
            *([f"read: {source}"] if source else []),
            *([f"not read: {', '.join(self.ignored)}"] if self.ignored else []),
            *self.words,
            *(f"{WARNING}{warning}" for warning in self.warnings),
        ]
        return parts


def _calendar(market: MarketData) -> list[str]:
    """Days on which such a market does not trade."""
    if market.periods_per_year != 252 or frequency_of(market.dates).name != "daily":
        return []
    if odd := odd_days(market.dates):
        bars = f"{len(odd)} bars are" if len(odd) > 1 else "a bar is"
        return [f"{bars} on a weekend, in a market of trading days: {some(odd, _SHOWN, '; ')}"]
    missing = weekdays_missing(market.dates)
    if len(market) >= 20 and missing == ("Friday", "Saturday"):
        return [
            "bars on Sundays and none on Fridays: an exchange of that week, or days in UTC that "
            "are the exchange's next (--timezone)"
        ]
    return []


def _rate(market: MarketData) -> list[str]:
    """Bars that come more or less often than the number of them in a year says; and from the
    future.
    """
    warnings = []
    rate, periods = bars_in_365_days(market.dates), market.periods_per_year
    # trading days without holidays are 261 a year
    if len(market) >= 20 and abs(np.log(rate / periods)) > RATE_OFF:
        warnings.append(
            f"bars come {rate:.0f} times in 365 days, and a year is taken to have {periods} "
            "(--periods_per_year)"
        )
    if market.dates[-1] > np.datetime64("today", "D") + 1:
        warnings.append(f"the last bar, {market.dates[-1]}, lies in the future")
    return warnings


def _gaps(market: MarketData) -> list[str]:
    steps = np.diff(market.dates).astype(np.int64)
    at = np.flatnonzero(is_gap(steps))
    if not len(at):
        return []
    largest = at[np.argsort(-steps[at], kind="stable")]
    told = [f"{market.dates[i]} to {market.dates[i + 1]} ({steps[i]} days)" for i in largest]
    gaps = f"{len(at)} gaps" if len(at) > 1 else "a gap"
    return [f"{gaps} without bars: {some(told, _SHOWN, '; ')}"]


def _splits(market: MarketData) -> list[str]:
    """Steps by the ratio of a usual split, and others as large; those over a gap are neither."""
    returns = np.diff(np.log(market.prices))
    logs = np.log(np.array([*SPLITS, *(1 / ratio for ratio in SPLITS)]))
    nearest = np.abs(returns[:, None] + logs[None, :])  # (T - 1, ratios)
    usual = ~is_gap(np.diff(market.dates).astype(np.int64))
    small = np.abs(logs) < np.log(SMALL_SPLIT)
    fits = nearest < np.where(small, SMALL_TOLERANCE, SPLIT_TOLERANCE)
    at = np.flatnonzero(fits.any(axis=1) & usual)
    told = []
    for i in at:
        ratio = float(np.exp(logs[int(nearest[i].argmin())]))
        words = f"{ratio:g} for 1" if ratio >= 1 else f"1 for {1 / ratio:g}"
        before, after = market.prices[i], market.prices[i + 1]
        told.append(f"{market.dates[i + 1]} ({before:g} to {after:g}, as a {words} split)")
    jumps = np.flatnonzero((np.abs(returns) > np.log(LARGEST_STEP)) & usual)
    others = [i for i in jumps if i not in at]
    warnings = []
    if told:
        splits = some(told, _SHOWN, "; ")
        warnings.append(f"prices jump as at a split that they are not adjusted for: {splits}")
    if others:
        i = others[0]
        warnings.append(
            f"{len(others)} prices jump by more than {LARGEST_STEP} times, as from "
            f"{market.prices[i]:g} to {market.prices[i + 1]:g} on {market.dates[i + 1]}: are they "
            "all in one unit?"
        )
    return warnings


def data_facts(market: MarketData, source: str) -> DataFacts:
    """Of a market that is at hand, what a run's record has of it."""
    return DataFacts(market.symbol, source, market.fingerprint(), Summary.of(market).told())

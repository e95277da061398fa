"""Windows that roll through a long series: a policy is trained before each test window and tested
on it, so that together the test windows are out of sample from the first to the last bar.

    |-- train ------|embargo|-- validate --|embargo|-- test --|
                    |-- train ------|embargo|-- validate --|embargo|-- test --|

Every length counts back from the test window that it serves. The embargo is taken off the ends of
training and validation (Lopez de Prado 2018, section 7.4.2): it is seen by neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from flagtrl.errors import ConfigError
from flagtrl.evidence.statistics import FEWEST_RETURNS
from flagtrl.market.data import parse_date

UNITS = {"y": "years", "m": "months", "w": "weeks", "d": "days"}
# Data that begin so much later than a training window still have it: markets close over holidays.
SLACK = pd.Timedelta(days=7)
FEWEST_BARS = 2  # of a window
LARGEST = 10_000  # of a length: beyond any series, and within what dates can hold in days


class Place(NamedTuple):
    """A day of the calendar, and the first bar on it or after it."""

    day: pd.Timestamp
    bar: int


@dataclass(frozen=True)
class Length:
    """Of a window.

    Attributes:
        count: how many.
        unit: bars where it is empty, else of the calendar: a letter of UNITS.
    """

    count: int
    unit: str = ""

    @classmethod
    def parse(cls, name: str, text: str) -> Length:
        """Of `252`, which are bars, or `1y`, `6m`, `8w`, `90d`; ConfigError of another text.

        Args:
            name: of the option, for the error.
            text: as the user wrote it.
        """
        found = re.fullmatch(rf"(\d{{1,9}})([{''.join(UNITS)}]?)", text)
        if found is None or not 1 <= int(found[1]) <= LARGEST:
            raise ConfigError(
                f"{name} is {text!r}; write 1 to {LARGEST} bars, as 252, or of the calendar, as "
                "1y, 6m, 8w or 90d"
            )
        return cls(int(found[1]), found[2])

    def moved(self, dates: pd.DatetimeIndex, place: Place, times: int = 1) -> Place:
        """The place so many lengths after another one, or before it; its bar may be none of the
        data's, below 0 or beyond them.
        """
        if not self.unit:
            bar = place.bar + times * self.count
            return Place(dates[min(max(bar, 0), len(dates) - 1)], bar)
        by = pd.DateOffset(**{UNITS[self.unit]: abs(times) * self.count})
        try:
            day = place.day + by if times > 0 else place.day - by
        except (OverflowError, ValueError):  # a year that dates cannot hold
            day = pd.Timestamp.max if times > 0 else pd.Timestamp.min
        return Place(day, int(dates.searchsorted(day)))

    def __str__(self) -> str:
        return f"{self.count}{self.unit}" if self.unit else f"{self.count} bars"


@dataclass(frozen=True)
class Step:
    """Bars of a series, each range without its end.

    Attributes:
        train: trained on.
        validate: by which a policy is chosen; None where none is.
        test: traded by it, and seen by neither.
    """

    train: range
    validate: range | None
    test: range


@dataclass(frozen=True)
class Walk:
    """How windows roll.

    Attributes:
        train, test: their lengths; each test window begins where the last one ended.
        validate: its length; None: no such window.
        embargo: bars between what a policy is trained on or chosen by and what comes next.
        anchored: every training window begins where the first one does, and grows.
        first_test: ISO day from which tests are made; None: as early as the lengths allow.

    Raises:
        ConfigError: an embargo below 0, or a day that cannot be read.
    """

    train: Length
    test: Length
    validate: Length | None = None
    embargo: int = 0
    anchored: bool = False
    first_test: str | None = None

    def __post_init__(self) -> None:
        if self.embargo < 0:
            raise ConfigError(f"embargo is {self.embargo} bars; it must be at least 0")

    def steps(self, dates: np.ndarray) -> list[Step]:
        """The windows over (T,) datetime64[D] dates, oldest first. The test windows cover all bars
        from the first one's to the last of the data; a rest of fewer than 21 bars, and shorter
        than the window before it, is that one's.

        Raises:
            ConfigError: lengths that do not fit the data.
        """
        days = pd.DatetimeIndex(dates.astype("datetime64[ns]"))
        first = self._first(days)
        places = self._places(days, first)
        stops = [*(place.bar for place in places[1:]), len(days)]
        anchor = self._before(days, first)[0].bar if self.anchored else None
        return [
            self._step(days, place, stop, anchor) for place, stop in zip(places, stops, strict=True)
        ]

    def _first(self, days: pd.DatetimeIndex) -> Place:
        """Where the first test window begins."""
        earliest = Place(days[0], 0)
        for length in (self.train, self.validate):
            earliest = length.moved(days, earliest) if length else earliest
        first = earliest
        if self.first_test is not None:
            day = pd.Timestamp(parse_date(self.first_test))
            first = Place(day, int(days.searchsorted(day)))
        if first.bar > len(days) - FEWEST_BARS:
            raise ConfigError(
                f"{self._told()} before the first test, from {first.day:%Y-%m-%d} on, leave no day "
                f"to test: the data have {len(days)} bars, {_from_to(days)}; shorten them, test "
                "from an earlier day on, or bring longer data"
            )
        begun = self._before(days, first)[0]
        if begun.bar < 0 or begun.day < days[0] - SLACK:
            raise ConfigError(
                f"first_test is {self.first_test}, before which the data, {_from_to(days)}, do not "
                f"hold {self._told()}; test from {earliest.day:%Y-%m-%d} on, or shorten them"
            )
        return first

    def _told(self) -> str:
        validation = f" and {self.validate} of validation" if self.validate else ""
        return f"{self.train} of training{validation}"

    def _before(self, days: pd.DatetimeIndex, test: Place) -> tuple[Place, Place]:
        """Where training and validation for a test window begin; the latter is where it does
        itself without validation.
        """
        validate = self.validate.moved(days, test, -1) if self.validate else test
        return self.train.moved(days, validate, -1), validate

    def _places(self, days: pd.DatetimeIndex, first: Place) -> list[Place]:
        """Where the test windows begin."""
        places = [first]
        # from the first one, so that months of other lengths do not add up
        while (place := self.test.moved(days, first, len(places))).bar < len(days):
            places.append(place)
        if len(places) > 1:
            rest, before = len(days) - places[-1].bar, places[-1].bar - places[-2].bar
            if rest < min(FEWEST_RETURNS + 1, before):
                places.pop()
        return places

    def _step(self, days: pd.DatetimeIndex, test: Place, stop: int, anchor: int | None) -> Step:
        train, validate = self._before(days, test)
        begin = train.bar if anchor is None else anchor
        end = validate.bar - self.embargo
        chosen = range(validate.bar, test.bar - self.embargo) if self.validate else None
        step = Step(range(begin, end), chosen, range(test.bar, stop))
        for name, bars in {"train": step.train, "validate": chosen, "test": step.test}.items():
            if bars is not None and len(bars) < FEWEST_BARS:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, of which the window of the test from "
                    f"{test.day:%Y-%m-%d} on keeps {len(bars)} bars, with an embargo of "
                    f"{self.embargo}; it needs at least {FEWEST_BARS}: lengthen {name}, or "
                    "shorten the embargo"
                )
        return step


def _from_to(days: pd.DatetimeIndex) -> str:
    return f"{days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d}"

"""How often a market's bars come, told by their dates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Largest median step in calendar days to the frequency's name and its bars in a year.
_SLOWER = ((10, "weekly", 52), (45, "monthly", 12), (135, "quarterly", 4), (np.inf, "yearly", 1))
# Where only working days are traded, at most 4 of 5 steps are of one day; holidays make it fewer.
_EVERY_DAY = 0.88
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Frequency:
    """How often bars come.

    Attributes:
        name: daily, weekly, monthly, quarterly or yearly.
        periods_per_year: bars in a year.
        why: in a few words.
    """

    name: str
    periods_per_year: int
    why: str


def frequency_of(dates: np.ndarray) -> Frequency:
    """The frequency of (T,) datetime64[D] dates, by their median step; daily bars are 365 a year
    where nearly all follow the day before and some fall on a weekend, else 252.
    """
    steps = np.diff(dates).astype(np.int64)
    if not len(steps) or np.median(steps) <= 4:
        weekend = int((~np.is_busday(dates)).sum())
        if weekend and (steps == 1).mean() >= _EVERY_DAY:
            return Frequency("daily", 365, "weekends are traded")
        return Frequency("daily", 252, "bars on trading days")
    median = float(np.median(steps))
    name, periods = next((name, n) for most, name, n in _SLOWER if median <= most)
    return Frequency(name, periods, f"a bar every {median:g} days")


def odd_days(dates: np.ndarray) -> list[str]:
    """Days on which a market of 252 bars a year hardly ever trades, but has a bar here: those of a
    weekday that fewer than one bar in twenty falls on.
    """
    weekdays = (dates.astype(np.int64) + 3) % 7  # day 0, 1970-01-01, was a Thursday
    rare = [day for day in (5, 6) if 0 < (weekdays == day).mean() < 1 / 20]
    return [f"{_DAYS[w]} {d}" for d, w in zip(dates, weekdays, strict=True) if w in rare]


def weekdays_missing(dates: np.ndarray) -> tuple[str, ...]:
    """Names of the weekdays, weekends included, that no bar falls on."""
    found = set(((dates.astype(np.int64) + 3) % 7).tolist())
    return tuple(name for day, name in enumerate(_DAYS) if day not in found)

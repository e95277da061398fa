"""How often a market's bars come, told by their dates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Largest median step in calendar days to the frequency's name and its bars in a year.
_SLOWER = (
    *((10, "weekly", 52), (14.5, "biweekly", 26), (20, "semi-monthly", 24), (45, "monthly", 12)),
    *((135, "quarterly", 4), (250, "half-yearly", 2), (np.inf, "yearly", 1)),
)
# Bars in 365 days above which weekends are traded: between 252 and 365, nearer to the former's 261
# without holidays, for exchanges that miss days.
_EVERY_DAY = 300
_GAP_STEPS, _GAP_DAYS = 5, 10  # a gap is longer than both: so many usual steps, so many days
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Frequency:
    """How often bars come.

    Attributes:
        name: daily, weekly, biweekly, semi-monthly, monthly, quarterly, half-yearly or yearly.
        periods_per_year: bars in a year.
        why: in a few words.
    """

    name: str
    periods_per_year: int
    why: str


def frequency_of(dates: np.ndarray) -> Frequency:
    """The frequency of (T,) datetime64[D] dates, by their median step; daily bars are 365 a year
    where weekends are traded, 313 where one day of them always is, else 252.
    """
    steps = np.diff(dates).astype(np.int64)
    if not len(steps):
        return Frequency("daily", 252, "there are no two bars")
    if np.median(steps) <= 4:
        shares = np.bincount(_weekdays(dates), minlength=7) / len(dates)
        saturday, sunday = shares[5] > 0, shares[6] > 0
        all_days = len(dates) < 8 and bool((steps == 1).all()) and (saturday or sunday)
        if all_days or (saturday and sunday and bars_in_365_days(dates) > _EVERY_DAY):
            return Frequency("daily", 365, "weekends are traded")
        if min(shares[:5]) > 0.1 and max(shares[5:]) > 0.1 and min(shares[5:]) == 0:
            return Frequency("daily", 313, "six days a week are traded")
        return Frequency("daily", 252, "bars on trading days")
    median = float(np.median(steps))
    name, periods = next((name, n) for most, name, n in _SLOWER if median <= most)
    return Frequency(name, periods, f"a bar every {median:g} days")


def bars_in_365_days(dates: np.ndarray) -> float:
    """How many bars come in 365 days, gaps left out."""
    steps = np.diff(dates).astype(np.int64)
    usual = steps[~is_gap(steps)]
    return 365 * len(usual) / int(usual.sum()) if len(usual) else math.nan


def is_gap(steps: np.ndarray) -> np.ndarray:
    """Which of (T - 1,) steps, in days, are gaps."""
    if not len(steps):
        return np.zeros(0, dtype=bool)
    return steps > max(_GAP_STEPS * float(np.median(steps)), _GAP_DAYS)


def _weekdays(dates: np.ndarray) -> np.ndarray:
    return (dates.astype(np.int64) + 3) % 7  # day 0, 1970-01-01, was a Thursday


def odd_days(dates: np.ndarray) -> list[str]:
    """Days on which a market of 252 bars a year hardly ever trades, but has a bar here: those of a
    weekday that fewer than one bar in twenty falls on.
    """
    weekdays = _weekdays(dates)
    rare = [day for day in (5, 6) if 0 < (weekdays == day).mean() < 1 / 20]
    return [f"{_DAYS[w]} {d}" for d, w in zip(dates, weekdays, strict=True) if w in rare]


def weekdays_missing(dates: np.ndarray) -> tuple[str, ...]:
    """Names of the weekdays, weekends included, that no bar falls on."""
    found = set(_weekdays(dates).tolist())
    return tuple(name for day, name in enumerate(_DAYS) if day not in found)

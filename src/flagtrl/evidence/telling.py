"""How well a figure or a word says what a price does next: (n,) the days on which it does, or None
where that is no more than a market's own regularity allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

FEWEST_DAYS = 30
CORRELATION, OVERLAPPING, AGREEMENT = 0.9, 0.97, 0.97
FEWEST_SPANS = 10  # of days on which a figure stays the same
# The next price is on one side of a bound on that many days; and today's on at most so many. A
# forecast whose errors are normal, and whose correlation with the move is .9, has today's price
# within its 99th percentile on 87% of days.
WITHIN, OF_TODAY = 0.99, 0.87
ONE_WAY = 0.9  # of days
# A figure is a price of as many coming bars, and of none of the last ones, on so many days; and one
# of a path that goes on as it came by chance, on at most so many.
AHEAD, BEFORE, COPIED, CHANCE = 10, 20, 0.5, 0.1


def foretells(
    series: np.ndarray, now: np.ndarray, move: np.ndarray, of_one_bar: bool
) -> np.ndarray | None:
    """(n,) on which days a figure says a move to come, where it does so too well; else None: the
    figure, its own moves, or what it is beside the price.
    """
    if not of_one_bar:
        return correlates(series, move, OVERLAPPING)
    days = agrees(series, move)
    if days is None and (series > 0).all():
        days = correlates(np.log(series / now), move)
        if days is None and (days := correlates(np.diff(np.log(series)), move[1:])) is not None:
            days = np.append(False, days)
    return days


def agrees(series: np.ndarray, move: np.ndarray) -> np.ndarray | None:
    """(n,) on which days a figure says a move, where it does so on too many; else None."""
    known = np.isfinite(series) & np.isfinite(move)
    if known.sum() < FEWEST_DAYS or np.ptp(series[known]) == 0:
        return None
    # above or below nothing, or where the figure is halved: a count, or one of two values
    middle = (series[known].min() + series[known].max()) / 2
    for cut in (0.0, float(np.median(series[known])), middle):
        above, told = series > cut, known & (series != cut) & (move != 0)
        # what is nearly always on one side is right as often as the market rises
        if told.sum() < FEWEST_DAYS or not 0.1 <= above[told].mean() <= 0.9:
            continue
        right = told & (above == (move > 0))
        for days in (right, told & ~right):
            if days.sum() >= AGREEMENT * told.sum():
                return days
    return correlates(series, move)


def correlates(
    series: np.ndarray, move: np.ndarray, least: float = CORRELATION
) -> np.ndarray | None:
    """(n,) the days of a figure whose rank correlation with a move is too high; else None."""
    known = np.isfinite(series) & np.isfinite(move)
    if known.sum() < FEWEST_DAYS or min(np.ptp(series[known]), np.ptp(move[known])) == 0:
        return None
    r = stats.spearmanr(series[known], move[known]).statistic
    return known if abs(r) >= least else None


def spans(series: np.ndarray, logs: np.ndarray, bars: np.ndarray) -> np.ndarray | None:
    """(n,) the days of a figure that stays the same for some days and says the move over just these
    days, from the close before the first to that of the last; else None.
    """
    if not np.isfinite(series).all():
        return None
    begins = np.flatnonzero(np.diff(series, prepend=np.nan) != 0)
    ends = np.append(begins[1:], len(series)) - 1
    first, last = begins[1:-1], ends[1:-1]  # the outer ones may be cut
    if len(first) < FEWEST_SPANS or (last - first + 1).mean() < 2:
        return None
    figures, moves = series[first], logs[bars[last]] - logs[bars[first] - 1]
    if np.ptp(moves) == 0 or np.ptp(figures) == 0:
        return None
    r = stats.spearmanr(figures, moves).statistic
    return np.isin(np.arange(len(series)), ends, invert=True) if abs(r) >= OVERLAPPING else None


def stands_right(there: np.ndarray, move: np.ndarray) -> np.ndarray | None:
    """(n,) on which days a word that is not always there stands before a rise, or before a fall,
    where nearly all of its days are such.
    """
    told = there & np.isfinite(move) & (move != 0)
    if told.sum() < FEWEST_DAYS or there.mean() > 0.9:
        return None
    for days in (told & (move > 0), told & (move < 0)):
        if days.sum() >= AGREEMENT * told.sum():
            return days
    return None


def copied(
    shown: Sequence[Sequence[tuple[float, float]]], prices: np.ndarray, bars: np.ndarray
) -> np.ndarray | None:
    """(n,) the days on which a figure is a price of a coming bar, to the digits in which it is
    shown, and none of a bar before; None where they are few, or where prices are so coarse that the
    last moves in reverse order would lead to as many.

    Args:
        shown: of each day, figures and how near to them a price is the same.
        prices: (T,) of the market.
        bars: (n,) of the days.
    """
    if len(bars) < FEWEST_DAYS:
        return None
    found, by_chance = np.zeros((2, len(bars)), dtype=bool)
    steps = np.diff(np.unique(prices))
    tick = steps.min() if len(steps) else prices[0]  # chance moves by ticks, too
    for day, (bar, figures) in enumerate(zip(bars, shown, strict=True)):
        if not figures:
            continue
        values, near = np.array(figures).T[:, :, None]
        past = prices[max(bar - BEFORE, 0) : bar + 1]
        fresh = ~(abs(values - past) <= near).any(1)
        back = past[-1] ** 2 / past[-2 : -2 - AHEAD : -1] - past[-1]
        back = past[-1] + np.round(back / tick) * tick
        found[day], by_chance[day] = (
            bool((fresh & (abs(values - ahead) <= near).any(1)).any())
            for ahead in (prices[bar + 1 : bar + 1 + AHEAD], back)
        )
    few = found.sum() < max(COPIED * len(bars), FEWEST_DAYS)
    return None if few or by_chance.mean() > CHANCE else found


def bounds(
    figures: Mapping[str, np.ndarray], now: np.ndarray, coming: np.ndarray
) -> tuple[str, np.ndarray] | None:
    """The figure that the next price stays above or below, as it does of the next session's low and
    high, while today's does so least often: its name, and the days. Where the price nearly always
    goes one way, nothing on the other side is a bound.

    Args:
        figures: (n,) each, by name.
        now: (n,) today's price.
        coming: (n,) the next.
    """
    found, least = None, OF_TODAY
    if len(now) < FEWEST_DAYS:
        return None
    for side in (1, -1):
        if (side * coming >= side * now).mean() > ONE_WAY:
            continue
        for name, figure in figures.items():
            days, today = side * figure <= side * coming, (side * figure <= side * now).mean()
            if (figure > 0).all() and days.mean() >= WITHIN and today <= least:
                found, least = (name, days), today
    return found

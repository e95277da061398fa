"""Paths of positions: what a day in each position adds to an account, what a row prints of an
account, and the ledger along a path.

Positions are 0 (cash), 1 (shares) and -1, a short as the tables' agents have it: its daily log
return is minus the asset's, as if one held the price's inverse. So the account's log return of a
day is h_t r_t in both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from flagtrl.market.ledger import Account, Action, Costs, step_account
from flagtrl.market.metrics import paper_of_many

# Kind of path to the positions that it may take.
KINDS: Mapping[str, tuple[int, ...]] = {"long_flat": (0, 1), "long_short": (0, 1, -1)}
SHARPE_PERIODS = 252  # a year's, in the SR of the `paper` convention, whatever AV has
# Of a printed interval: what rounding in float64 may move a computed figure by, with room.
ROUNDING_SHARE, ROUNDING = 1e-6, 1e-10


class Interval(NamedTuple):
    """Numbers from low to high, both included."""

    low: float
    high: float

    def meets(self, other: Interval) -> bool:
        """Whether any number is in both."""
        return self.low <= other.high and other.low <= self.high


class Figure(NamedTuple):
    """A printed number: its value, and half a unit of its last digit, by which it is rounded."""

    value: float
    half: float

    @classmethod
    def of(cls, text: str) -> Figure:
        """Of a decimal number as printed; ValueError where it is none."""
        digits = text.strip()
        if not digits.lstrip("+-").replace(".", "", 1).isdigit():  # no exponent, nan or inf
            raise ValueError(f"{text!r} is not a decimal number")
        return cls(float(digits), 0.5 * 10.0 ** -len(digits.partition(".")[2]))

    def wide(self) -> Interval:
        """All that may be printed so, and the rounding of this machine: outside it nothing is."""
        reach = self.half + max(self.half * ROUNDING_SHARE, ROUNDING)
        return Interval(self.value - reach, self.value + reach)

    def rounds(self, computed: np.ndarray) -> np.ndarray:
        """Whether `computed` is surely printed so; NaN is not."""
        reach = self.half - max(self.half * ROUNDING_SHARE, ROUNDING)
        return np.abs(computed - self.value) <= reach

    def __str__(self) -> str:
        return f"{self.value:.{max(0, round(-np.log10(2 * self.half)))}f}"


class Printed(NamedTuple):
    """A row's figures: percent, but for the Sharpe ratio."""

    CR: Figure
    SR: Figure
    AV: Figure
    MDD: Figure


@dataclass(frozen=True, eq=False)
class Days:
    """What each position of each day adds, (N, K) each, in percent.

    Attributes:
        positions: (K,) in {-1, 0, 1}.
        gain: 100 h r, what the day adds to CR.
        square: (100 h r)^2, what it adds to the sum of squares in AV.
        growth: 100 log(1 + h r), what it adds to the log of the value that the `paper` convention's
            MDD is of: it compounds log returns as if they were simple ones.
        allowed: bool; a position that loses everything in that sense is not, as no MDD is defined
            with it.
    """

    positions: np.ndarray
    gain: np.ndarray
    square: np.ndarray
    growth: np.ndarray
    allowed: np.ndarray

    @classmethod
    def of(cls, prices: np.ndarray, kind: str) -> Days:
        """Of (n,) prices; N = n - 1 returns."""
        positions = np.array(KINDS[kind])
        r = np.diff(np.log(prices))[:, None] * positions
        allowed = r > -1 + 1e-12
        growth = 100 * np.log1p(np.where(allowed, r, 0.0))
        return cls(positions, 100 * r, (100 * r) ** 2, growth, allowed)

    def __len__(self) -> int:
        return len(self.gain)

    def best(self, worth: np.ndarray) -> np.ndarray:
        """(N,) the largest of (N, K) that a day may have."""
        return np.where(self.allowed, worth, -np.inf).max(-1)

    def figures(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CR, the sum of squares, and minus 100 log(1 - MDD / 100), (B,) each, of (B, N) indices of
        positions.
        """
        rows = np.arange(len(self))
        gain, square = self.gain[rows, chosen].sum(-1), self.square[rows, chosen].sum(-1)
        grown = np.cumsum(self.growth[rows, chosen], axis=-1)
        peaks = np.maximum(np.maximum.accumulate(grown, axis=-1), 0.0)
        return gain, square, (peaks - grown).max(-1, initial=0.0)


def account_values(prices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(n,) account values of (n - 1,) positions in {-1, 0, 1}, through the ledger: the order of a
    bar fills at its own price, without costs, so that position t earns the return from price t to
    t + 1.

    A short is long of the inverse price, whose log returns are minus the asset's: the ledger sells
    the one, and spends the cash on the other.
    """
    held, account, values = 0, Account.of(1.0, 0.0), [1.0]
    for wanted, now, then in zip(positions.tolist(), prices[:-1], prices[1:], strict=True):
        if wanted != held:
            for order, side in ((Action.SELL, held), (Action.BUY, wanted)):
                if side:
                    at, later = (now, then) if side == 1 else (1 / now, 1 / then)
                    account, _ = step_account(account, order, at, later, "same_price", Costs())
            held = wanted
        values.append(float(account.value(then if held >= 0 else 1 / then)))
    return np.array(values)


Figures = TypeVar("Figures", float, np.ndarray)


def sharpe(cr: Figures, av: Figures, count: int) -> Figures:
    """SR = CR (252 / count) / AV, as the `paper` convention has it of `count` prices."""
    return cr * (SHARPE_PERIODS / count) / av


def replayed(
    prices: np.ndarray, positions: np.ndarray, periods: int, count: int
) -> Mapping[str, float]:
    """The `paper` convention's CR, SR, AV and MDD of a path that the ledger replays.

    Args:
        prices: (n,).
        positions: (n - 1,).
        periods: bars a year in AV.
        count: of prices in SR; n, or n - 1 where a table divides by the number of returns.
    """
    values = account_values(prices, positions)
    cr, sr, av, mdd = paper_of_many(values[None], periods)[0].tolist()
    return {"CR": cr, "SR": sr * len(prices) / count, "AV": av, "MDD": mdd}


def matches(printed: Printed, figures: Mapping[str, float]) -> Sequence[str]:
    """The names of the figures that are printed so."""
    return [
        name for name, each in printed._asdict().items() if each.rounds(np.array(figures[name]))
    ]

"""Whether a policy's probabilities mean anything: of the days on which it is so sure that the price
will rise, does it rise on as many?
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flagtrl.evidence.backtest import Backtest
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action

BINS = 5


@dataclass(frozen=True)
class Calibration:
    """Of the probability to be long after a decision, as a forecast that the move which that
    decision earns is a rise.

    Attributes:
        days: forecasts; days on which the price did not move are none.
        base_rate: share of rises.
        brier: mean (p - rise)^2; 0 is perfect (Brier 1950).
        skill: 1 - brier / brier of the base rate, which knows the window's own share; NaN where
            that is 0 or 1.
        error: expected calibration error over `bins`: mean |p - share of rises|, by days.
        bins: of each fifth of the range that has any: mean forecast, share of rises, days.
    """

    days: int
    base_rate: float
    brier: float
    skill: float
    error: float
    bins: list[tuple[float, float, int]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable; None where undefined."""
        return {n: None if isinstance(v, float) and math.isnan(v) else v
                for n, v in asdict(self).items()}  # fmt: skip

    def sentence(self) -> str:
        """In words."""
        if math.isnan(self.skill):
            return "Its probabilities cannot be judged: the price only rose, or only fell."
        word = "better" if self.skill > 0 else "no better"
        return (
            f"As forecasts of a rise its probabilities are {word} than the window's own share of "
            f"rises, {self.base_rate:.0%} (Brier skill {self.skill:+.3f}; calibration error "
            f"{self.error:.2f} over {self.days} days)."
        )


def calibration(run: Backtest, settings: MarketSettings) -> Calibration | None:
    """Of a pass's probabilities; None where no day is left.

    An order that fills at the next price earns the move after the next: the forecast is of that.
    """
    held = run.shares[:-1] > 0
    forecast = np.where(
        held, 1 - run.probabilities[:, Action.SELL], run.probabilities[:, Action.BUY]
    )
    moves = np.diff(np.log(run.window.prices))
    if settings.execution == "next_price":
        forecast, moves = forecast[:-1], moves[1:]
    forecast, moves = forecast[moves != 0], moves[moves != 0]
    if not len(moves):
        return None
    rise = (moves > 0).astype(np.float64)
    base, brier = float(rise.mean()), float(np.mean((forecast - rise) ** 2))
    of_base = base * (1 - base)
    place = np.minimum((forecast * BINS).astype(int), BINS - 1)
    bins = []
    for k in range(BINS):
        if (there := place == k).any():
            bins.append(
                (float(forecast[there].mean()), float(rise[there].mean()), int(there.sum()))
            )
    error = sum(days * abs(p - share) for p, share, days in bins) / len(rise)
    skill = 1 - brier / of_base if of_base else math.nan
    return Calibration(len(rise), base, brier, skill, float(error), bins)

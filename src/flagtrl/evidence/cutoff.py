"""Before and after the day at which a base model's knowledge ends: what a result loses where the
model cannot have read of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from flagtrl.evidence.backtest import backtest
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import standard_of_many
from flagtrl.play.policy import Policy

FEWEST_BARS = 20


class Side(NamedTuple):
    """Of the cut-off; figures of the `standard` convention, NaN where there are under 20 bars.

    Attributes:
        bars: prices.
        CR, SR: of the agent, percent and a year's Sharpe ratio.
        held_CR, held_SR: of buy and hold by order on the same bars.
    """

    bars: int
    CR: float = math.nan
    SR: float = math.nan
    held_CR: float = math.nan
    held_SR: float = math.nan


@dataclass(frozen=True)
class Sides:
    """A window, divided.

    Attributes:
        cutoff: last day of the first side.
        before, after: each begun flat.
    """

    cutoff: str
    before: Side
    after: Side

    @property
    def comparable(self) -> bool:
        """Whether both sides have enough bars."""
        return min(self.before.bars, self.after.bars) >= FEWEST_BARS

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable; None where undefined."""
        told = {"before": self.before, "after": self.after}
        return {
            "cutoff": self.cutoff,
            **{
                name: {n: None if v != v else v for n, v in side._asdict().items()}
                for name, side in told.items()
            },
        }

    def sentences(self) -> list[str]:
        """In words."""
        for side, where in ((self.after, "on or before"), (self.before, "after")):
            if not side.bars:
                return [
                    f"All of its days lie {where} the base model's knowledge cut-off, "
                    f"{self.cutoff}: nothing can be compared."
                ]
        short = [s.bars for s in (self.before, self.after) if s.bars < FEWEST_BARS]
        if short:
            return [
                f"On one side of the cut-off, {self.cutoff}, lie {short[0]} bars; at least "
                f"{FEWEST_BARS} are needed to compare."
            ]
        told = [
            f"{_ratio(side.SR)} ({side.bars} bars; buy and hold {_ratio(side.held_SR)})"
            for side in (self.before, self.after)
        ]
        return [
            f"Up to the base model's knowledge cut-off, {self.cutoff}, its Sharpe ratio is "
            f"{told[0]}, after it {told[1]}; so few bars show no decay by themselves."
        ]


def _ratio(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def sides(
    policy: Policy, held: Policy, window: Window, settings: MarketSettings, cutoff: np.datetime64
) -> Sides:
    """A policy on the bars up to a day, and on those after it.

    Args:
        policy: takes its likeliest action.
        held: buy and hold by order.
        window: what is divided.
        settings: execution and costs.
        cutoff: the last day of the first side.
    """
    middle = window.start + int(np.searchsorted(window.dates, cutoff, side="right"))
    parts = [(window.start, middle), (middle, window.stop)]
    return Sides(str(cutoff), *(_side(policy, held, window, settings, *part) for part in parts))


def _side(
    policy: Policy, held: Policy, window: Window, settings: MarketSettings, start: int, stop: int
) -> Side:
    if stop - start < FEWEST_BARS:
        return Side(stop - start)
    part, figures = Window(window.market, start, stop), []
    for each in (policy, held):
        values = backtest(each, part, settings).values
        year, rate = window.market.periods_per_year, settings.risk_free_rate
        figures += standard_of_many(values[None], year, rate)[0][:2].tolist()
    return Side(stop - start, *figures)

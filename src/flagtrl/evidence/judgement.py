"""What the greedy agent's returns can show, as numbers: intervals, how long they would have to
last, and whether the days that it chose matter.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flagtrl.evidence.backtest import Backtest
from flagtrl.evidence.statistics import (
    FEWEST_RETURNS,
    Interval,
    Shifts,
    TrackRecord,
    circular_shifts,
    minimum_track_record,
    probabilistic_sharpe,
    sharpe_interval,
)
from flagtrl.market.env import MarketSettings


@dataclass(frozen=True)
class Judgement:
    """Of one pass; Sharpe ratios are a year's.

    Attributes:
        returns: how many.
        sharpe: with its interval, by a stationary bootstrap.
        beside_buy_and_hold: the same of what it is above buy and hold's by order.
        blocks: mean block to interval of `sharpe`: what another choice would have given.
        probabilistic: how likely the true ratio is above 0, skew and kurtosis counted in.
        needed: returns that a ratio like this needs to differ from 0 at 5%, two-sided.
        shifts: whether the same decisions at other times earn as much.
    """

    returns: int
    sharpe: Interval
    beside_buy_and_hold: Interval
    blocks: dict[int, tuple[float, float]]
    probabilistic: float
    needed: float
    shifts: Shifts

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable; None where something is undefined or infinite."""
        return _finite(
            asdict(self)
            | {
                name: getattr(self, name)._asdict()
                for name in ("sharpe", "beside_buy_and_hold", "shifts")
            }
        )


OTHER_BLOCKS = (1, 5, 10)


def judgement(
    run: Backtest, held: Backtest, settings: MarketSettings, seed: int = 0
) -> Judgement | None:
    """Of a pass, beside one Buy order; None below 20 returns.

    Args:
        run: the agent's.
        held: buy and hold by order, on the same bars.
        settings: both were traded with.
        seed: of the resampling.
    """
    if len(run.values) - 1 < FEWEST_RETURNS:
        return None
    periods = run.window.market.periods_per_year
    rate, shifts = settings.risk_free_rate, _shifts(run, settings)
    return of_values(run.values, held.values, periods, shifts, seed, rate)


def of_values(
    values: np.ndarray,
    others: np.ndarray,
    periods_per_year: int,
    shifts: Shifts,
    seed: int = 0,
    risk_free_rate: float = 0.0,
) -> Judgement | None:
    """Of (n,) account values beside (n,) others on the same days; None below 20 returns.

    Args:
        values: the agent's.
        others: buy and hold's by order.
        periods_per_year: of the market.
        shifts: of the agent's positions along the returns that they were held over.
        seed: of the resampling.
        risk_free_rate: a fraction per bar.
    """
    if len(values) - 1 < FEWEST_RETURNS:
        return None
    # as the table's, of the standard convention: above the risk-free rate
    returns, theirs = (each[1:] / each[:-1] - 1 - risk_free_rate for each in (values, others))
    year = math.sqrt(periods_per_year)
    record = TrackRecord.of(returns)
    other = {block: sharpe_interval(returns, block=block, seed=seed) for block in OTHER_BLOCKS}
    return Judgement(
        returns=len(returns),
        sharpe=of_a_year(sharpe_interval(returns, seed=seed), year),
        beside_buy_and_hold=of_a_year(sharpe_interval(returns, theirs, seed=seed), year),
        blocks={block: (each.low * year, each.high * year) for block, each in other.items()},
        probabilistic=probabilistic_sharpe(record),
        needed=minimum_track_record(record),
        shifts=shifts,
    )


def _shifts(run: Backtest, settings: MarketSettings) -> Shifts:
    """Positions over the returns that they were held for: with fills at the next price those of
    the bar after.
    """
    held = run.shares[1:] > 0
    moves = np.diff(np.log(run.window.prices))
    if settings.execution == "next_price":
        held, moves = held[:-1], moves[1:]
    return circular_shifts(held, moves)


def of_a_year(interval: Interval, year: float) -> Interval:
    """An interval of a Sharpe ratio per bar, a year's; `year` is the root of its bars."""
    value, low, high = (year * each for each in interval[:3])
    return interval._replace(value=value, low=low, high=high)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentences(found: Judgement) -> list[str]:
    """What the numbers say, in words."""
    said = []
    sharpe, beside, shifts = found.sharpe, found.beside_buy_and_hold, found.shifts
    if math.isnan(sharpe.low):
        said.append("Its Sharpe ratio is undefined: its returns do not vary, or too seldom.")
    else:
        said.append(
            f"Its Sharpe ratio of {sharpe.value:.2f} a year has a 95% interval from "
            f"{sharpe.low:.2f} to {sharpe.high:.2f}"
            + (
                f"; it would take {found.needed:,.0f} returns like these to tell it from zero."
                if math.isfinite(found.needed) and found.needed > found.returns
                else "."
            )
        )
    if not math.isnan(beside.low):
        within = beside.low <= 0 <= beside.high
        said.append(
            f"Against buy and hold by order it is {beside.value:+.2f}, from {beside.low:+.2f} to "
            f"{beside.high:+.2f}: "
            + ("no difference can be told." if within else "a difference that can be told.")
        )
    if math.isnan(shifts.p):
        said.append(
            f"Whether it chose its days well is undefined: its positions have {shifts.distinct} "
            "distinct shifts, fewer than 20."
        )
    else:
        said.append(
            "The same positions, shifted in time, earn as much or more in "
            f"{shifts.p_better:.0%} of all shifts (p = {shifts.p:.2f}, two-sided)."
        )
    return said

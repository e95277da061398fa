"""More about an account than return, Sharpe ratio, volatility and drawdown: what it risks below
zero, how it trades, what it is beside the asset, and what costs it would bear.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import brentq

from flagtrl.evidence.backtest import Backtest
from flagtrl.evidence.rules import spells
from flagtrl.market.env import MarketSettings
from flagtrl.market.metrics import max_drawdown_pct, varies

# a fall that is no more than rounding: beside it no ratio means anything
ROUNDING = 1e-9


@dataclass(frozen=True)
class Measures:
    """Of one pass; NaN where undefined.

    Attributes:
        sortino: mean return above the risk-free rate, over the root mean square of the negative
            ones, a year (Sortino and Price 1994).
        calmar: return a year over the largest drawdown (Young 1991).
        hit_rate: share of holdings, the last open one included, that earned after costs.
        trades: orders that were filled.
        turnover: value traded a year, in multiples of the mean account value.
        exposure: share of bars that begin with shares held.
        average_holding: mean length of a holding, bars.
        alpha, beta: of a regression of the returns on the asset's, both above the risk-free rate;
            alpha a year, arithmetic, in percent.
        break_even_bps: the cost of a trade, in basis points, at which the same decisions would have
            earned nothing; 0 where they earn nothing without costs, infinite where they never
            trade.
    """

    sortino: float
    calmar: float
    hit_rate: float
    trades: int
    turnover: float
    exposure: float
    average_holding: float
    alpha: float
    beta: float
    break_even_bps: float

    def as_dict(self) -> dict[str, float | None]:
        """Name to value; None where it is undefined or infinite, as JSON needs it."""
        return {
            name: value if math.isfinite(value) else None for name, value in asdict(self).items()
        }


def measures(run: Backtest, settings: MarketSettings) -> Measures:
    """Of one pass over its window.

    Args:
        run: the pass.
        settings: that it was traded with.
    """
    periods, rate = run.window.market.periods_per_year, settings.risk_free_rate
    values, prices = run.values, run.window.prices
    returns = values[1:] / values[:-1] - 1 - rate
    asset = prices[1:] / prices[:-1] - 1 - rate
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0.0) ** 2)))
    growth = (values[-1] / values[0]) ** (periods / len(returns)) - 1
    drawdown = max_drawdown_pct(values) / 100
    beta = math.nan
    if varies(asset):
        beta = float(np.cov(returns, asset)[0, 1] / asset.var(ddof=1))
    held = (run.shares[1:] > 0).astype(np.int64)
    holdings = list(spells(held))
    # an exit shows in the value of the bar after it
    won = [values[min(end + 1, len(held))] > values[begin] for begin, end in holdings]
    filled = prices[:-1] if settings.execution == "same_price" else prices[1:]
    traded = np.abs(np.diff(run.shares)) * filled
    return Measures(
        sortino=float(returns.mean()) / downside * math.sqrt(periods)
        if downside > ROUNDING
        else math.nan,
        calmar=growth / drawdown if drawdown > ROUNDING else math.nan,
        hit_rate=float(np.mean(won)) if won else math.nan,
        trades=int(np.count_nonzero(traded)),
        turnover=float(traded.sum() / values.mean() * periods / len(returns)),
        exposure=float(np.mean(run.shares > 0)),
        average_holding=float(np.mean([e - b for b, e in holdings])) if holdings else math.nan,
        alpha=100 * periods * float(returns.mean() - beta * asset.mean()),
        beta=beta,
        break_even_bps=break_even(run, settings),
    )


def break_even(run: Backtest, settings: MarketSettings) -> float:
    """The cost of a trade, basis points, at which a pass's decisions would have earned nothing.

    A fee f leaves 1 / (1 + f) of the value at an entry and 1 - f at an exit, so it solves
    G - entries log(1 + f) + exits log(1 - f) = 0 with G the log gain without costs, interest on
    cash included.
    """
    traded = np.diff(run.shares)
    entries, exits = np.count_nonzero(traded > 0), np.count_nonzero(traded < 0)
    if not entries:
        return math.inf
    moves = np.diff(np.log(run.window.prices))
    # what is held while a price moves: an order that fills at the next price came a bar before
    held = (run.shares[:-1] if settings.execution == "next_price" else run.shares[1:]) > 0
    gain = float(np.where(held, moves, math.log1p(settings.cash_rate)).sum())
    if gain <= 0:
        return 0.0

    def left(fee: float) -> float:
        return gain - entries * math.log1p(fee) + exits * math.log1p(-fee)

    most = math.expm1(gain / entries)  # at which the entries alone cost as much
    if not exits:
        return 10_000 * most  # a fee of 1 or more, where the account doubled
    return 10_000 * float(brentq(left, 0.0, min(most, 1 - 1e-12)))

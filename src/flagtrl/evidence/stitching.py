"""Accounts chained over test windows that follow one another: one curve of what was traded out of
sample.

Every window begins in cash, as a run's backtest does. So where a window ends, shares are sold at
its last price, at the usual cost; the move to the next window's first price is nobody's; and with
fills at the next price nor is the move after it, before the first order can have filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd

from flagtrl.evidence.backtest import Backtest, backtest
from flagtrl.evidence.baselines import buy_and_hold, flat
from flagtrl.evidence.days import BAND
from flagtrl.evidence.rows import Rows, conventions, row_of, rows_of_paths
from flagtrl.evidence.rules import MATCHED_DRAWS, matched_paths
from flagtrl.evidence.statistics import Shifts, circular_shifts
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Account, Action, Costs, transition
from flagtrl.market.policy import always

AGENT, BY_ORDER, WHOLE = "agent_greedy", "buy_and_hold_by_order", "buy_and_hold"
SAME_MOVE = 1e-9  # difference of two log returns that counts as none
MOST_VALUES = 20_000_000  # of all matched accounts, for memory: 160 MB


@dataclass(frozen=True, eq=False)
class Stitched:
    """Accounts over all test windows.

    Attributes:
        window: the N bars from the first one's first to the last one's last.
        windows: the test windows.
        settings: that all were traded with.
        passes: the agent's in each window.
        curves: (N,) account values by row name.
        matched: (draws, N) values of accounts with the agent's own spells in the market, in another
            order within each window.
    """

    window: Window
    windows: Sequence[Window]
    settings: MarketSettings
    passes: Sequence[Backtest]
    curves: Mapping[str, np.ndarray]
    matched: np.ndarray

    @property
    def seams(self) -> list[int]:
        """Where every test window but the first begins, bars of `window`."""
        return [each.start - self.window.start for each in self.windows[1:]]

    @cached_property
    def held(self) -> np.ndarray:
        """(N - 1,) whether the agent's shares were held over the move from each bar to the next."""
        found = np.zeros(len(self.window) - 1, dtype=bool)
        now = slice(1, None) if self.settings.execution == "same_price" else slice(None, -1)
        for run in self.passes:
            begin = run.window.start - self.window.start
            found[begin : begin + len(run.window) - 1] = run.shares[now] > 0
        return found

    @property
    def shifts(self) -> Shifts:
        """Whether the agent's positions at other times would have earned as much."""
        return circular_shifts(self.held, np.diff(np.log(self.window.prices)))

    def rows(self, volatility_periods: int) -> Rows:
        """Row name to convention to metrics of the chained values.

        Args:
            volatility_periods: of the `paper` convention's AV.
        """
        periods, rate = self.window.market.periods_per_year, self.settings.risk_free_rate
        known = conventions(volatility_periods, periods, rate)
        rows: Rows = {row: row_of(values, known) for row, values in self.curves.items()}
        return {**rows, **rows_of_paths("matched_mean", "matched", self.matched, known)}

    def identical(self, row: str) -> int:
        """In how many windows the agent's account moved as another row's did, on every day."""
        own, other = (np.diff(np.log(self.curves[each])) for each in (AGENT, row))
        begins = [each.start - self.window.start for each in self.windows]
        moves = [slice(a, a + len(w) - 1) for a, w in zip(begins, self.windows, strict=True)]
        return sum(np.allclose(own[each], other[each], rtol=0, atol=SAME_MOVE) for each in moves)

    def nobodys(self) -> tuple[float, float]:
        """What the asset made over the seams, and over the moves in which no order can have filled;
        fractions.
        """
        prices, seams = self.window.prices, np.array(self.seams, dtype=int)
        over = float(np.prod(prices[seams] / prices[seams - 1])) - 1
        if self.settings.execution == "same_price":
            return over, 0.0
        begun = np.array([0, *seams])
        return over, float(np.prod(prices[begun + 1] / prices[begun])) - 1

    def days(self) -> pd.DataFrame:
        """Columns row, date and value; the 5% and 95% of the matched accounts are rows too."""
        shares = zip(BAND, np.percentile(self.matched, BAND, axis=0), strict=True)
        curves = {**self.curves, **{f"matched_p{share}": values for share, values in shares}}
        dates = self.window.dates.astype("datetime64[ns]")
        parts = [
            pd.DataFrame({"row": row, "date": dates, "value": values})
            for row, values in curves.items()
        ]
        return pd.concat(parts, ignore_index=True)


def stitch(
    windows: Sequence[Window],
    passes: Sequence[Mapping[str, Backtest]],
    settings: MarketSettings,
    draws: int = MATCHED_DRAWS,
    seed: int = 0,
) -> Stitched:
    """Chain what was traded in windows that follow one another.

    Args:
        windows: each begins with the bar after the last one's.
        passes: of each window by row name, the agent's among them; rows that are in all of them are
            chained.
        settings: that they were traded with.
        draws: of matched accounts, or fewer where all would be more than 20 million values.
        seed: of their order.
    """
    for one, other in pairwise(windows):
        assert one.stop == other.start, "test windows follow one another"
    market, first = windows[0].market, windows[0].start
    whole = Window(market, first, windows[-1].stop)
    agent = [each[AGENT] for each in passes]
    common = [row for row in passes[0] if all(row in each for each in passes)]
    curves = {row: _chained([each[row] for each in passes], settings) for row in common}
    curves[BY_ORDER] = _chained(
        [backtest(always(Action.BUY), window, settings) for window in windows], settings
    )
    curves[WHOLE] = buy_and_hold(whole, settings)
    curves["flat"] = flat(whole, settings)
    draws = max(min(draws, MOST_VALUES // len(whole)), 1)
    matched = [
        matched_paths(run, settings, draws, seed + number) for number, run in enumerate(agent)
    ]
    # in another order the same spells end in the same position
    kept = [kept_at_the_end(run, settings.costs) for run in agent]
    chained = chain(matched, kept, settings.cash_rate)
    return Stitched(whole, windows, settings, agent, curves, chained)


def _chained(runs: Sequence[Backtest], settings: MarketSettings) -> np.ndarray:
    kept = [kept_at_the_end(run, settings.costs) for run in runs]
    return chain([run.values for run in runs], kept, settings.cash_rate)


def chain(parts: Sequence[np.ndarray], kept: Sequence[float], cash_rate: float = 0.0) -> np.ndarray:
    """(..., N) account values over all windows.

    Args:
        parts: (..., n) values over each window, which begin with what there is then.
        kept: of each window's last value, the share that selling what is held leaves; that of the
            last window, which nothing follows, is not read.
        cash_rate: a fraction that cash, which everything is then, earns over a seam.
    """
    found = [np.asarray(parts[0], dtype=np.float64)]
    for part, share in zip(parts[1:], kept[:-1], strict=True):
        scale = share * (1 + cash_rate) * found[-1][..., -1:] / part[..., :1]
        found.append(part * scale)
    return np.concatenate(found, axis=-1)


def kept_at_the_end(run: Backtest, costs: Costs) -> float:
    """The share of a pass's last value that it keeps when what it holds is sold at the last price,
    by the ledger; 1 where it holds nothing.
    """
    if run.shares[-1] == 0:
        return 1.0
    price = run.window.prices[-1]
    account = Account.of(0.0, run.shares[-1])
    sold, _ = transition(account, Action.SELL, price, costs)
    return float(sold.value(price) / account.value(price))

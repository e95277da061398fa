"""What an agent may know at one bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from flagtrl.market.data import MarketData, NewsItem, count_sentiments
from flagtrl.market.ledger import Account, legal_actions

RECENT = 10  # the paper's prompt shows the last ten rewards, net values and actions


@dataclass(frozen=True, eq=False)
class Observation:
    """What an agent may know at one bar; every sequence is oldest first and ends at or before this
    bar.

    Attributes:
        symbol, date, bar: asset, day, and the bar's index in its market.
        prices: (k,) float64 of the last k <= lookback bars, this one last.
        news: k tuples of NewsItem, of the same bars.
        cash, shares, value: the account now, marked at this bar's price.
        rewards, net_values, actions: of the last ten steps at most.
        legal: (A,) bool, indexed by Action.
    """

    symbol: str
    date: np.datetime64
    bar: int
    prices: np.ndarray
    news: tuple[tuple[NewsItem, ...], ...]
    cash: float
    shares: float
    value: float
    rewards: tuple[float, ...]
    net_values: tuple[float, ...]
    actions: tuple[int, ...]
    legal: np.ndarray


class EpisodeSoFar(NamedTuple):
    """t steps of an episode: t + 1 account values, the initial one first; t rewards, t actions."""

    values: Sequence[float]
    rewards: Sequence[float] = ()
    actions: Sequence[int] = ()


class HasLookback(Protocol):
    """Of MarketSettings: how many bars an observation holds."""

    @property
    def lookback(self) -> int:
        """Bars."""


def observation(
    market: MarketData, settings: HasLookback, bar: int, account: Account, so_far: EpisodeSoFar
) -> Observation:
    """What there is to see at `bar` of a market with a single account, marked at its price."""
    back = slice(max(0, bar + 1 - settings.lookback), bar + 1)
    return Observation(
        symbol=market.symbol,
        date=market.dates[bar],
        bar=bar,
        prices=market.prices[back],
        news=market.news[back],
        cash=float(account.cash),
        shares=float(account.shares),
        value=so_far.values[-1],
        rewards=tuple(so_far.rewards[-RECENT:]),
        net_values=tuple(so_far.values[1:][-RECENT:]),
        actions=tuple(so_far.actions[-RECENT:]),
        legal=legal_actions(account),
    )


def numbers(seen: Observation, lookback: int) -> dict[str, np.ndarray]:
    """An observation as numbers alone, each array left-padded to a fixed length, float64.

    Args:
        seen: at one bar.
        lookback: bars.
    """
    return {
        "prices": _left_padded(seen.prices, lookback, 0.0),
        "sentiment": np.array(count_sentiments(seen.news[-1]), dtype=np.float64),
        "account": np.array([seen.cash, seen.shares, seen.value]),
        "recent_rewards": _left_padded(seen.rewards, RECENT, 0.0),
        "recent_net_values": _left_padded(seen.net_values, RECENT, 0.0),
        "recent_actions": _left_padded(seen.actions, RECENT, -1.0),
    }


def _left_padded(values: Sequence[float] | np.ndarray, length: int, fill: float) -> np.ndarray:
    out = np.full(length, fill, dtype=np.float64)
    if len(values):
        out[-len(values) :] = values
    return out

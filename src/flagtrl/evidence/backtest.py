"""A trained policy on a window it has not seen: one pass, every decision recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flagtrl.market.accounts import Accounts
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.play.loop import Played, Sampler, likeliest, play
from flagtrl.play.policy import Policy

SAMPLING_TEMPERATURE = 0.6  # InvestorBench's setting, for the sampled row


@dataclass(frozen=True, eq=False)
class Backtest:
    """One pass over a window of n bars.

    Attributes:
        window: the bars.
        values: (n,) account values.
        actions: (n - 1,) Action, decided at each bar but the last.
        probabilities: (n - 1, A) of the policy, before temperature.
        shares: (n,) shares held.
        fees: (n - 1,) paid for each decision.
        critic: (n - 1,) what the policy's critic expects; NaN of one without.
    """

    window: Window
    values: np.ndarray
    actions: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray
    fees: np.ndarray
    critic: np.ndarray | None = None

    def trades(self) -> pd.DataFrame:
        """One row a decision: day, price, action, probabilities, and what the account was after its
        fill.
        """
        return pd.DataFrame(
            {
                "date": self.window.dates[:-1],
                "price": self.window.prices[:-1],
                "action": [ACTION_WORDS[a] for a in self.actions],
                **{
                    f"p_{word.lower()}": self.probabilities[:, i]
                    for i, word in enumerate(ACTION_WORDS)
                },
                "traded_shares": np.diff(self.shares),
                "fee": self.fees,
                "shares_after": self.shares[1:],
                "value_after": self.values[1:],
            }
        )


def backtest(
    policy: Policy,
    window: Window,
    settings: MarketSettings,
    temperature: float | None = None,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Backtest:
    """Trade `window` once; arguments as `backtests`'s."""
    return backtests(policy, window, settings, temperature, seed, tell=tell)[0]


def backtests(
    policy: Policy,
    window: Window,
    settings: MarketSettings,
    temperature: float | None = None,
    seed: int = 0,
    paths: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Backtest]:
    """Trade `window` several times, from its first bar.

    Args:
        policy: decides.
        window: the bars.
        settings: execution, costs and look-back.
        temperature: None takes the likeliest action; else actions are sampled from
            pi^(1/temperature).
        seed: of the sampling; path p > 0 is drawn from (seed, p), however many there are.
        paths: how many.
        tell: is called with the decisions done of a path, and their number.

    Raises:
        ConfigError: a temperature that is not above 0, or no path.
    """
    choose = likeliest if temperature is None else Sampler(seed, paths, temperature)
    world, bars = Accounts(window, settings, paths), len(window)
    played = play(policy, world, choose, tell=lambda done: tell(done, bars - 1))
    return [_of_path(window, settings, played, path) for path in range(paths)]


def _of_path(window: Window, settings: MarketSettings, played: Played, path: int) -> Backtest:
    """One path's record. A ruined account stops trading; its bars stay in the record."""
    ruin = np.flatnonzero(played.terminated[:, path])
    traded = int(ruin[0]) + 1 if len(ruin) else len(played.actions)
    rest = len(window) - 1 - traded

    def whole(column: np.ndarray, then: Any) -> np.ndarray:
        """`column` (T, B, ...) of this path, and `then` after its ruin."""
        done = column[:traded, path]
        return np.concatenate([done, np.broadcast_to(then, (rest, *done.shape[1:]))])

    told = played.told
    values, shares = told["values"][traded - 1, path], told["shares"][traded - 1, path]
    return Backtest(
        window=window,
        values=np.concatenate([[settings.initial_cash], whole(told["values"], values)]),
        actions=whole(played.actions, int(Action.HOLD)),
        probabilities=whole(np.exp(played.logprobs), np.eye(len(Action))[Action.HOLD]),
        shares=np.concatenate([[0.0], whole(told["shares"], shares)]),
        fees=whole(told["fees"], 0.0),
        critic=whole(played.predictions, np.nan),
    )

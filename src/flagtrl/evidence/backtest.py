"""A trained policy on a window it has not seen: one pass, every decision recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flagtrl.errors import ConfigError
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.policy.acting import Policy

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
    """

    window: Window
    values: np.ndarray
    actions: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray
    fees: np.ndarray

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
    path: int = 0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Backtest:
    """Trade `window` once.

    Args:
        policy: log-probabilities of the actions at one bar.
        window: the bars; the first decision is made at its first bar.
        settings: execution, costs and look-back.
        temperature: None takes the likeliest action; else actions are sampled from
            pi^(1/temperature).
        seed: of the sampling.
        path: its number, where several are sampled with one seed.
        tell: is called with the decisions done and their number.
    """
    if temperature is not None and not temperature > 0:
        raise ConfigError(
            f"temperature is {temperature}; it must be above 0, or None for the likeliest action"
        )
    generator = np.random.default_rng([seed, path] if path else seed)
    env = TradingEnv(window, settings)
    env.reset(seed=seed, options={"start": 0})
    actions, probabilities, fees, values, shares = [], [], [], [settings.initial_cash], [0.0]
    over = False
    while not over:
        seen = env.observe()
        logprobs = np.asarray(policy(seen), dtype=np.float64)
        if temperature is None:
            action = int(np.argmax(logprobs))
        else:
            weights = np.exp((logprobs - logprobs.max()) / temperature)
            action = int(generator.choice(len(weights), p=weights / weights.sum()))
        _, _, terminated, truncated, info = env.step(action)
        actions.append(action)
        probabilities.append(np.exp(logprobs))
        fees.append(info["fee"])
        values.append(info["value"])
        shares.append(float(env.account.shares))
        over = terminated or truncated
        tell(len(actions), len(window) - 1)
    # A ruined account stops trading; its bars stay in the record.
    rest = len(window) - len(values)
    return Backtest(
        window=window,
        values=np.array(values + [values[-1]] * rest),
        actions=np.array(actions + [int(Action.HOLD)] * rest),
        probabilities=np.array(probabilities + [np.eye(len(Action))[Action.HOLD]] * rest),
        shares=np.array(shares + [shares[-1]] * rest),
        fees=np.array(fees + [0.0] * rest),
    )

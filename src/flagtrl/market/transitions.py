"""What every action does at every bar, in every position: the market as tables.

No action moves a price, and an account that is all in or all out is its value times its position.
So where a reward is of one step alone, all that can happen between two bars is known: positions are
the states, and these are their rewards and ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flagtrl.errors import ConfigError
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import NUM_ACTIONS, Account, legal_actions, step_account
from flagtrl.market.observation import EpisodeSoFar, Observation, observation
from flagtrl.market.rewards import ADDITIVE, OF_MOMENTS, EpisodeHistory, load_reward

FLAT, LONG = POSITIONS = (0, 1)


@dataclass(frozen=True, eq=False)
class Transitions:
    """T decisions in H positions, by A actions.

    legal: (H, A) bool.
    returns: (T, H, A) float64, what the account gains in the step, a fraction; where illegal, as
        Hold's.
    rewards: (T, H, A) float64, the reward of the step; None for one that is not of one step alone.
    after: (T, H, A) int64, the next position; where illegal, the same one.
    last_counts: whether the last decision can earn anything: an order that fills at the next bar's
    price only costs there.
    """

    legal: np.ndarray
    returns: np.ndarray
    rewards: np.ndarray | None
    after: np.ndarray
    last_counts: bool


def transitions(window: Window, settings: MarketSettings) -> Transitions:
    """The tables of a window's decisions, one fewer than it has bars, by the ledger itself.

    Raises:
        ConfigError: a reward that is neither of one step alone nor of an episode's moments.
    """
    if settings.reward not in (*ADDITIVE, *OF_MOMENTS):
        raise ConfigError(
            f"reward is {settings.reward!r}, which is known neither to be of one step alone nor "
            "of the moments of an episode's returns; exact advantages need one that is: "
            f"{', '.join((*ADDITIVE, *OF_MOMENTS))}"
        )
    now, then = window.prices[:-1], window.prices[1:]
    shape = (len(now), len(POSITIONS), NUM_ACTIONS)
    reward = load_reward(settings.reward) if settings.reward in ADDITIVE else None
    returns, rewards, after, legal = (
        np.zeros(shape),
        np.full(shape, np.nan),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape[1:], dtype=bool),
    )
    for position in POSITIONS:
        account = standing(position, now)
        legal[position] = legal_actions(account)[0]
        for action in range(NUM_ACTIONS):
            new, _ = step_account(
                account,
                np.full(len(now), action),
                now,
                then,
                settings.execution,
                settings.costs,
                settings.cash_rate,
            )
            after[:, position, action] = new.shares > 0
            returns[:, position, action] = new.value(then) - 1  # of a value of 1
            if reward is None:
                continue
            for t, gain in enumerate(returns[:, position, action]):
                shares = np.array([account.shares[t], new.shares[t]])
                step = EpisodeHistory(
                    np.array([gain]),
                    np.array([1, 1 + gain]),
                    shares,
                    np.array([action]),
                    settings.risk_free_rate,
                )
                rewards[t, position, action] = reward(step)
    paid = rewards if reward else None
    return Transitions(legal, returns, paid, after, settings.execution == "same_price")


def transitions_of(env: TradingEnv) -> Transitions:
    """The tables of an environment's window. One that changes what a step does says what its own
    are, in a method `transitions`.

    Raises:
        ConfigError: it changes `step` and has no such method; a reward as of `transitions`.
    """
    own = getattr(env, "transitions", None)
    if own is not None:
        return own()
    if type(env).step is not TradingEnv.step:
        raise ConfigError(
            f"advantage is 'exact', which calls no step(), but {type(env).__name__} changes it; "
            "give it a method transitions(), or set advantage to gae"
        )
    return transitions(env.window, env.settings)


def shows_its_own(env: TradingEnv) -> bool:
    """Whether a class changes what is seen or legal, so that `seen_at` does not tell it."""
    return any(
        getattr(type(env), name) is not getattr(TradingEnv, name) for name in ("observe", "legal")
    )


def standing(position: int, price: np.ndarray | float, value: float = 1.0) -> Account:
    """The account of that value in a position, at a price."""
    price = np.asarray(price, dtype=np.float64)
    return Account.of(np.full(price.shape, value * (1 - position)), value * position / price)


def seen_at(window: Window, settings: MarketSettings, bar: int, position: int) -> Observation:
    """What an agent sees at the window's `bar` (0 is its first) in a position, with nothing done
    before.
    """
    market, bar = window.market, window.start + bar
    account = standing(position, market.prices[bar], settings.initial_cash)
    return observation(market, settings, bar, account, EpisodeSoFar([settings.initial_cash]))

"""What needs no learning: account values of buy and hold, flat, random policies and simple rules,
on the same ledger.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flagtrl.market.data import Window, count_sentiments
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Account, Action, legal_actions, step_account, transition

RANDOM_PATHS = 1000


def buy_and_hold(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of a position that is entered at the window's first price, as the published rows
    have it.

    The entry's costs, where there are any, fall on the first day, so the series starts at the cash
    before them.
    """
    account, _ = transition(
        Account.of(settings.initial_cash, 0.0), Action.BUY, window.prices[0], settings.costs
    )
    return np.concatenate([[settings.initial_cash], account.value(window.prices)[1:]])


def buy_and_hold_by_order(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of one Buy order at the first bar, filled as every order is: what an agent can do
    at best to copy it.
    """
    return follow(window, settings, lambda bar, legal: np.full(len(legal), Action.BUY))[0]


def flat(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of never trading."""
    return np.full(len(window), settings.initial_cash)


def random_paths(
    window: Window, settings: MarketSettings, paths: int = RANDOM_PATHS, seed: int = 0
) -> np.ndarray:
    """(paths, n) values of policies that draw uniformly from the legal actions at every bar."""
    generator = np.random.default_rng(seed)

    def decide(bar: int, legal: np.ndarray) -> np.ndarray:
        return np.argmax(np.where(legal, generator.random(legal.shape), -1.0), axis=-1)

    return follow(window, settings, decide, paths)


def follow_news(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of the rule: Buy on more positive than negative news, Sell on fewer, else
    Hold.
    """

    def decide(bar: int, legal: np.ndarray) -> np.ndarray:
        positive, _, negative = count_sentiments(window.market.news[bar])
        return np.full(len(legal), Action.HOLD + np.sign(positive - negative))

    return follow(window, settings, decide)[0]


def follow_last_move(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of a rule that reads no news: Buy after a rise, Sell after a fall, else (and at
    the first bar of all) Hold.

    Beside `follow_news` it shows how much of a news market's gain prices alone would earn.
    """
    prices = window.market.prices

    def decide(bar: int, legal: np.ndarray) -> np.ndarray:
        move = np.sign(prices[bar] - prices[max(bar - 1, 0)])
        return np.full(len(legal), Action.HOLD + int(move))

    return follow(window, settings, decide)[0]


def follow(
    window: Window,
    settings: MarketSettings,
    decide: Callable[[int, np.ndarray], np.ndarray],
    paths: int = 1,
) -> np.ndarray:
    """(paths, n) values of the accounts that `decide(bar, legal (paths, A)) -> actions (paths,)`
    steers.
    """
    prices = window.market.prices
    account = Account.of(np.full(paths, settings.initial_cash), np.zeros(paths))
    values = [account.value(prices[window.start])]
    for bar in range(window.start, window.stop - 1):
        action = decide(bar, legal_actions(account))
        account, _ = step_account(
            account, action, prices[bar], prices[bar + 1], settings.execution, settings.costs
        )
        values.append(account.value(prices[bar + 1]))
    return np.stack(values, axis=1)

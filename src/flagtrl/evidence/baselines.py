"""What needs no learning: account values of buy and hold, flat, random policies and rules, on the
same ledger.
"""

from __future__ import annotations

import numpy as np

from flagtrl.evidence.backtest import backtest
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Account, Action, transition
from flagtrl.market.policy import always
from flagtrl.play.loop import Uniformly, play
from flagtrl.play.policy import uniform

RANDOM_PATHS = 1000


def buy_and_hold(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of a position that is entered at the window's first price, as the published rows
    have it.

    The entry's costs, where there are any, fall on the first day, so the series starts at the cash
    before them. Once it is ruined it keeps its value, as every account does.
    """
    account, _ = transition(
        Account.of(settings.initial_cash, 0.0), Action.BUY, window.prices[0], settings.costs
    )
    values = np.concatenate([[settings.initial_cash], account.value(window.prices)[1:]])
    ruined = np.flatnonzero(values <= settings.ruin_fraction * settings.initial_cash)
    if len(ruined):
        values[ruined[0] :] = values[ruined[0]]
    return values


def buy_and_hold_by_order(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of one Buy order at the first bar, filled as every order is: what an agent can do
    at best to copy it.
    """
    return backtest(always(Action.BUY), window, settings).values


def flat(window: Window, settings: MarketSettings) -> np.ndarray:
    """(n,) values of never trading: cash, and its interest."""
    return backtest(always(Action.HOLD), window, settings).values


def random_paths(
    window: Window, settings: MarketSettings, paths: int = RANDOM_PATHS, seed: int = 0
) -> np.ndarray:
    """(paths, n) values of policies that draw uniformly from the legal actions at every bar."""
    world = Accounts(window, settings, paths)
    play(uniform, world, Uniformly(seed))
    rest = [world.values[-1]] * (len(window) - len(world.values))  # all of them were ruined
    return np.stack(world.values + rest, axis=1)

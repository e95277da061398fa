"""Whether a purchase is paid before it was filled: with the price it was decided at in a market
that fills at the next one, or with the better of the two.

Such a reward reads no bar that is to come by the time it is paid, so that no change of later bars
moves it; but no account could have earned it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from flagtrl.evidence.leaks import Build, Leak
from flagtrl.market.data import Window
from flagtrl.market.ledger import Action

BEFORE_THE_FILL = "the price before its order was filled"
MOVES = (0.9, 1.1)  # of the price at which the order fills, and of all later ones
ROUNDING = 1e-9
SHARE = 0.5  # of what a purchase is paid, that must be of the move: a fee by shares is of its price


def paid_before_filled(build: Build, window: Window, seed: int = 0) -> list[Leak]:
    """Rewards that pay a purchase for the move between its decision and its fill.

    Without shares and with fills at the next price, no order and no waiting has a part in that
    move: whatever it is, a purchase is paid as much more or less than waiting. Both are tried at
    every flat decision of an episode of random legal orders, before a fall and before a rise. An
    order that is filled before one of them alone says nothing: its fee is of that one.

    Args:
        build: a window's environment.
        window: what is traded; where its orders fill at the price they are decided at, they have
            earned the move, and nothing is found.
        seed: of the orders.
    """
    rng, env = np.random.default_rng(seed), build(window).env
    env.reset(seed=seed)
    days: list[str] = []
    tested = 0
    while env.settings.execution == "next_price" and not env.ended:
        seen = env.observe()
        if seen.shares == 0 and env.legal[Action.BUY]:
            tested += 1
            gains = []
            for moved in (_with_move(window, seen.bar, by) for by in (*MOVES, MOVES[0])):
                bought, filled = _paid(build, moved, env.state_dict(), Action.BUY)
                waited, _ = _paid(build, moved, env.state_dict(), Action.HOLD)
                gains += [bought - waited] if filled else []
            steady = (
                len(gains) == 3 and gains[0] == gains[2]
            )  # else noise, which nothing is said of
            most = max(map(abs, gains), default=0.0)
            if steady and abs(gains[1] - gains[0]) > max(ROUNDING, SHARE * most):
                days.append(str(seen.date))
        env.step(int(rng.choice(np.flatnonzero(env.legal))))
    if not days:
        return []
    return [Leak("reward", "", BEFORE_THE_FILL, len(days), tested, days[0])]


def _paid(
    build: Build, window: Window, state: Mapping[str, Any], action: Action
) -> tuple[float, bool]:
    """The step's reward, and whether there are shares after it."""
    env = build(window).env
    env.load_state_dict(dict(state))
    reward = float(env.step(action)[1])
    return reward, bool(env.observe().shares > 0)


def _with_move(window: Window, bar: int, by: float) -> Window:
    prices = window.market.prices.copy()
    prices[bar + 1 :] *= by * prices[bar] / prices[bar + 1]
    return replace(window, market=replace(window.market, prices=prices))

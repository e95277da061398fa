"""Bars of a market as a policy would come to them: what it is asked about before training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flagtrl.market.accounts import Accounts
from flagtrl.market.data import Window
from flagtrl.market.env import TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.observation import RECENT, Observation
from flagtrl.market.policy import rule
from flagtrl.play.loop import likeliest, play

SURVEY_BARS = 64


def visits(env: TradingEnv, bars: int = SURVEY_BARS, seed: int = 0) -> list[Observation]:
    """Observations of up to `bars` bars spread over the environment's window, each flat and (but
    for the first) long.

    Each comes at the end of a short episode of random orders, so that prompts which show more of
    the account than its position show what they would in training.
    """
    window, generator = env.window, np.random.default_rng(seed)
    last = len(window) - 1
    seen = []
    for bar in np.unique(np.linspace(0, last, min(bars, last + 1)).round().astype(int)).tolist():
        before = min(RECENT, env.max_steps - 1, bar)
        for long in (False, True)[: 1 + (before > 0)]:
            trades = Window(window.market, window.start + bar - before, window.stop)
            world = Accounts(trades, env.settings)
            if before:
                play(rule(_orders(before, long, generator)), world, likeliest, before)
            seen.append(world.observe()[0])
    return seen


def _orders(steps: int, long: bool, generator: np.random.Generator) -> Callable[[Observation], int]:
    """Random orders, of which the last leads to the wanted position."""

    def order(seen: Observation) -> int:
        wanted = generator.random() < 0.5 if len(seen.actions) < steps - 1 else long
        held = bool(seen.legal[Action.SELL])
        return Action.HOLD if held == wanted else Action.BUY if wanted else Action.SELL

    return order


def position_of(legal: np.ndarray) -> str:
    """What a market's states with these legal actions (A,) are called."""
    return "long" if legal[Action.SELL] else "flat"

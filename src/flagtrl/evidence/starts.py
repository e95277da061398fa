"""How much of a result the first day decides: the same policies, begun some days later.

A policy whose decisions hang on its position alone, as an untrained model's, trades on other days
when it begins on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flagtrl.evidence.backtest import backtest
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.metrics import standard_of_many
from flagtrl.market.policy import always
from flagtrl.play.policy import Policy

SHIFTS, FEWEST_BARS = 10, 20  # first days; bars that the last of them leaves
HELD = "buy_and_hold_by_order"


class Spread(NamedTuple):
    """Of returns in percent over first days.

    Attributes:
        first: of the window as it is.
        low, high: of all.
        starts: how many.
    """

    first: float
    low: float
    high: float
    starts: int


def spreads(
    policies: Mapping[str, Policy], window: Window, settings: MarketSettings, shifts: int = SHIFTS
) -> dict[str, Spread]:
    """Of the return by the `standard` convention, the window begun 0, 1, 2 ... bars later; with a
    Buy order's beside them. Fewer first days where the last would leave under 20 bars; none where
    the window has so few, or there is no policy.

    Args:
        policies: by row name; asked a few times as much as for one pass.
        window: as it is.
        settings: execution and costs.
        shifts: first days.
    """
    count = min(shifts, len(window) - FEWEST_BARS)
    if count < 2 or not policies:
        return {}
    known = {**policies, HELD: always(Action.BUY)}
    found = {}
    for row, policy in known.items():
        made = []
        for later in range(count):
            part = Window(window.market, window.start + later, window.stop)
            values = backtest(policy, part, settings).values
            made.append(float(standard_of_many(values[None], 1)[0, 0]))
        found[row] = Spread(made[0], min(made), max(made), count)
    return found


def as_dict(found: Mapping[str, Spread]) -> dict[str, Any]:
    """JSON-serialisable."""
    return {row: spread._asdict() for row, spread in found.items()}


def in_words(found: Mapping[str, Spread]) -> list[str]:
    """What the agent's spread says beside a Buy order's."""
    if "agent_greedy" not in found:
        return []
    agent, held = found["agent_greedy"], found[HELD]
    return [
        f"Begun on any of the first {agent.starts} days it makes {agent.low:.1f} to "
        f"{agent.high:.1f}%, and one Buy order {held.low:.1f} to {held.high:.1f}%."
    ]

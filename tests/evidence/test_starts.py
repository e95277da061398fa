"""Policies that are begun later: what the first day decides."""

import json

import numpy as np
import pytest

from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.starts import HELD, as_dict, in_words, spreads
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.policy import rule
from flagtrl.market.synthetic import news_leads_price

MARKET = news_leads_price(60, seed=2)
SETTINGS = MarketSettings(reward="log_return")


def alternating(seen):
    """Buy, Sell, Buy, Sell, as an untrained model."""
    return int(Action.SELL if seen.legal[Action.SELL] else Action.BUY)


def test_each_first_day_is_a_window_of_its_own():
    window = MARKET.window()
    found = spreads({"agent_greedy": rule(alternating)}, window, SETTINGS, shifts=4)
    assert set(found) == {"agent_greedy", HELD}
    made = []
    for later in range(4):
        run = backtest(rule(alternating), Window(MARKET, later, len(MARKET)), SETTINGS)
        made.append(100 * (run.values[-1] / run.values[0] - 1))
    agent = found["agent_greedy"]
    assert agent.starts == 4 and agent.first == pytest.approx(made[0])
    assert (agent.low, agent.high) == pytest.approx((min(made), max(made)))
    assert max(made) - min(made) > 1, "one day's shift puts it on the other days"
    (said,) = in_words(found)
    assert f"{min(made):.1f} to {max(made):.1f}%" in said and "first 4 days" in said
    assert json.loads(json.dumps(as_dict(found)))[HELD]["starts"] == 4


@pytest.mark.parametrize(("bars", "starts"), [(21, 0), (22, 2), (25, 5), (40, 10)])
def test_the_last_first_day_leaves_twenty_bars(bars, starts):
    found = spreads({"a": rule(alternating)}, Window(MARKET, 0, bars), SETTINGS)
    assert (found[HELD].starts if found else 0) == starts
    assert in_words(found) == []
    assert spreads({}, Window(MARKET, 0, bars), SETTINGS) == {}
    assert not np.isnan([each.low for each in found.values()]).any()

"""Baselines that decide: what they read, what hindsight earns, and luck that trades as the agent
does.
"""

import itertools

import numpy as np
import pytest

from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.report import evaluate
from flagtrl.evidence.rules import (
    crossover,
    matched_paths,
    mean_reversion,
    momentum,
    oracle,
    spells,
    usual_rules,
)
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.policy import follow_news, rule
from flagtrl.market.synthetic import news_leads_price, random_walk
from flagtrl.play.loop import likeliest, play

SETTINGS = MarketSettings(reward="log_return", lookback=1)
MARKET = random_walk(120, seed=3)
EXECUTIONS = ("same_price", "next_price")


def wanted(policy, market, bar, held=False):
    """What a rule decides on a bar."""
    window = Window(market, bar, len(market))
    seen = Accounts(window, SETTINGS).observe()[0]
    return int(policy([seen]).logprobs[0].argmax())


@pytest.mark.parametrize(
    ("policy", "bars", "signal"),
    [
        (momentum(MARKET, 20), 20, lambda p, t: p[t] - p[t - 20]),
        (mean_reversion(MARKET, 20), 20, lambda p, t: p[t - 20 : t].mean() - p[t]),
        (
            crossover(MARKET, 5, 30),
            30,
            lambda p, t: p[t - 4 : t + 1].mean() - p[t - 29 : t + 1].mean(),
        ),
    ],
    ids=["momentum", "mean_reversion", "crossover"],
)
def test_a_rule_is_its_definition_and_reads_nothing_that_comes_later(policy, bars, signal):
    for bar in (0, bars - 1, bars, 60, 100):
        found = wanted(policy, MARKET, bar)
        if bar < bars:
            assert found == Action.HOLD
        else:
            up = signal(MARKET.prices, bar) > 0
            assert found == (Action.BUY if up else Action.HOLD), "flat, so Sell can do nothing"
    later = MARKET.prices.copy()
    later[61:] *= 3
    other = MarketData("SYNTH", MARKET.dates, later, MARKET.news, 252)
    for make in (momentum, mean_reversion, crossover):
        assert wanted(make(other), other, 60) == wanted(make(MARKET), MARKET, 60)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(("fee", "slip"), [(0, 0), (30, 0), (10, 40)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_way_to_trade_earns_more_than_the_oracle(execution, fee, slip, seed):
    window = random_walk(6, seed=seed, volatility_per_bar=0.03).window()
    settings = MarketSettings(
        reward="log_return", execution=execution, cost_bps=fee, slippage_bps=slip
    )
    best = 0.0
    for orders in itertools.product(range(3), repeat=len(window) - 1):
        world = Accounts(window, settings)
        play(rule(lambda seen, orders=orders: orders[seen.bar]), world, likeliest)
        best = max(best, float(world.values[-1][0]))
    found = backtest(oracle(window, settings), window, settings).values[-1]
    assert found == pytest.approx(best, rel=1e-12)


def test_where_nothing_can_be_earned_the_oracle_stays_out():
    falling = MarketData("X", MARKET.dates, np.linspace(100, 50, 120), ((),) * 120, 252).window()
    run = backtest(oracle(falling, SETTINGS), falling, SETTINGS)
    assert not np.diff(run.shares).any()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_matched_luck_has_the_agents_exposure_trades_and_costs(execution):
    window = news_leads_price(150, seed=5).window()
    settings = MarketSettings(reward="log_return", execution=execution, cost_bps=20)
    agent = backtest(rule(follow_news), window, settings)
    paths = matched_paths(agent, settings, draws=300, seed=1)
    assert paths.shape == (300, 150) and len(np.unique(paths[:, -1])) > 250
    assert np.array_equal(paths, matched_paths(agent, settings, draws=300, seed=1))
    assert np.array_equal(paths[:100], matched_paths(agent, settings, draws=100, seed=1))
    free = MarketSettings(reward="log_return", execution=execution)
    without = matched_paths(agent, free, draws=300, seed=1)
    trades = np.count_nonzero(np.diff(agent.shares))
    lost = np.log(without[:, -1] / paths[:, -1])
    np.testing.assert_allclose(lost, trades * 0.002, rtol=0.02)
    # it knows nothing: its mean gain is what its exposure earns on average
    held = agent.shares[1:] > 0
    market = np.log(window.prices[-1] / window.prices[0])
    expected = held.mean() * market
    spread = np.log(without[:, -1] / without[:, 0])
    assert abs(spread.mean() - expected) < 3 * spread.std() / np.sqrt(10)


def test_spells_in_and_out_keep_their_lengths():
    window = random_walk(60, seed=2).window()
    plan = [1] * 3 + [0] * 5 + [1] * 10 + [0] * 2 + [1] * 1 + [0] * 38

    def follow(seen):
        return Action.BUY if plan[seen.bar] else Action.SELL

    agent = backtest(rule(follow), window, SETTINGS)
    lengths = set()
    for seed in range(20):
        paths = matched_paths(agent, SETTINGS, draws=1, seed=seed)[0]
        moved = np.abs(np.diff(paths)) > 0
        assert moved.sum() == pytest.approx(np.abs(np.diff(agent.values) > 0).sum(), abs=20)
        lengths.add(tuple(np.flatnonzero(~moved)[:3]))
    assert len(lengths) > 3
    assert list(spells(np.array(plan[:59]))) == [(0, 3), (8, 18), (20, 21)]
    never = backtest(rule(lambda seen: Action.HOLD), window, SETTINGS)
    assert (matched_paths(never, SETTINGS, draws=3) == never.values).all()


def test_the_usual_rules_are_rows_of_a_table_and_news_is_followed_where_there_is_any():
    quiet, loud = MARKET.window(), news_leads_price(120, seed=5).window()
    assert "follow_news" not in usual_rules(quiet, SETTINGS)
    rules = usual_rules(loud, SETTINGS)
    assert set(rules) == {
        *("momentum", "mean_reversion", "sma_crossover", "follow_news", "oracle_hindsight"),
    }
    report = evaluate(rule(follow_news), loud, SETTINGS, rules=rules, modes=["greedy"])
    cr = {row: by["standard"].CR for row, by in report.rows.items()}
    assert cr["oracle_hindsight"] == max(cr.values())
    assert cr["follow_news"] == cr["agent_greedy"]

"""Rewards add up: what an episode pays in all is a property of its account values alone."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import EXECUTIONS
from flagtrl.market.rewards import EpisodeHistory, differential_sharpe, sharpe_difference_prior

# Prices on a grid: two returns are either equal or at least 1e-6 apart, so that no deviation lies
# near the threshold of 1e-8.
STEPS = st.lists(st.tuples(st.integers(10, 999), st.integers(0, 2)), min_size=3, max_size=30)
RATES = st.sampled_from([0.0, 1e-4, -2e-3])
RETURNS = st.lists(st.integers(-500, 500).map(lambda i: i / 1000), min_size=1, max_size=40)
quick = settings(max_examples=80, deadline=None)


def episode(
    steps, reward: str, execution: str, rate: float = 0.0, cost_bps: float = 10.0
) -> tuple[list[float], list[float]]:
    """Rewards, and account values with the first one in front."""
    prices = np.array([price for price, _ in steps], dtype=np.float64)
    market = MarketData(
        "ABC", np.datetime64("2020-01-01") + np.arange(len(prices)), prices, ((),) * len(prices)
    )
    chosen = MarketSettings(
        reward, execution, cost_bps=cost_bps, ruin_fraction=0.0, risk_free_rate=rate
    )
    env = TradingEnv(Window(market, 0, len(prices)), chosen)
    _, info = env.reset(seed=0)
    rewards, values = [], [info["value"]]
    for _, action in steps[:-1]:
        _, reward_now, _, _, info = env.step(action)
        rewards.append(reward_now)
        values.append(info["value"])
    return rewards, values


def fractional_pnls(values: list[float]) -> list[float]:
    return [(after - before) / before for before, after in pairwise(values)]


@quick
@given(STEPS, st.sampled_from(EXECUTIONS), RATES)
def test_sharpe_differences_add_up_to_the_final_sharpe_ratio(steps, execution, rate):
    rewards, values = episode(steps, "sharpe_difference", execution, rate)
    pnl = fractional_pnls(values)
    std = statistics.stdev(pnl) if len(pnl) > 1 else 0.0
    final = (statistics.fmean(pnl) - rate) / std if std > 1e-8 else 0.0
    scale = max(1.0, max(abs(r) for r in rewards))  # early ratios can be huge, and cancel
    assert math.fsum(rewards) == pytest.approx(final, rel=1e-7, abs=1e-7 * scale)


@quick
@given(STEPS, st.sampled_from(EXECUTIONS), RATES)
def test_every_prefix_of_sharpe_differences_adds_up_as_well(steps, execution, rate):
    rewards, values = episode(steps, "sharpe_difference", execution, rate)
    for t in range(2, len(values)):
        pnl = fractional_pnls(values[: t + 1])
        std = statistics.stdev(pnl)
        ratio = (statistics.fmean(pnl) - rate) / std if std > 1e-8 else 0.0
        scale = max(1.0, max(abs(r) for r in rewards[:t]))
        assert math.fsum(rewards[:t]) == pytest.approx(ratio, rel=1e-7, abs=1e-7 * scale)


@quick
@given(STEPS, st.sampled_from(EXECUTIONS), st.floats(0, 100))
def test_log_returns_add_up_to_the_log_of_the_growth(steps, execution, cost_bps):
    rewards, values = episode(steps, "log_return", execution, cost_bps=cost_bps)
    assert math.fsum(rewards) == pytest.approx(
        math.log(values[-1] / values[0]), rel=1e-10, abs=1e-12
    )


def naive_prior_sharpe(returns: list[float], rate: float) -> float:
    total = squares = 0.0
    for x in returns:
        total += x
        squares += x * x
    k, s0 = 10, 0.01
    m = total / (len(returns) + k)
    return (m - rate) / math.sqrt((squares + k * s0**2) / (len(returns) + k) - m**2)


@quick
@given(STEPS, st.sampled_from(EXECUTIONS), RATES)
def test_sharpe_differences_with_a_prior_add_up_to_the_final_ratio(steps, execution, rate):
    rewards, values = episode(steps, "sharpe_difference_prior", execution, rate)
    start = -rate / 0.01  # the ratio of the imagined bars alone
    assert math.fsum(rewards) == pytest.approx(
        naive_prior_sharpe(fractional_pnls(values), rate) - start, rel=1e-9, abs=1e-9
    )


def history(returns: list[float], rate: float = 0.0) -> EpisodeHistory:
    x = np.array(returns)
    return EpisodeHistory(
        x, np.cumprod([1, *(1 + x)]), np.ones(len(x) + 1), np.ones(len(x), dtype=np.int64), rate
    )


@quick
@given(RETURNS, RATES)
def test_each_sharpe_difference_with_a_prior_is_its_formula(returns, rate):
    expected = naive_prior_sharpe(returns, rate) - naive_prior_sharpe(returns[:-1], rate)
    assert sharpe_difference_prior(history(returns, rate)) == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )


@quick
@given(RETURNS, RATES)
def test_the_differential_sharpe_ratio_is_moody_and_saffells_recursion(returns, rate):
    a = b = expected = 0.0
    for x in (r - rate for r in returns):
        da, db = x - a, x * x - b
        variance = b - a * a
        expected = (b * da - 0.5 * a * db) / variance**1.5 if variance > 1e-16 else 0.0
        a, b = a + 0.04 * da, b + 0.04 * db
    assert differential_sharpe(history(returns, rate)) == pytest.approx(
        expected, rel=1e-7, abs=1e-9
    )

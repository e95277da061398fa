"""Sortino, Calmar, alpha and beta against empyrical; holdings and costs against a hand loop."""

import math
from dataclasses import replace

import empyrical
import numpy as np
import pandas as pd
import pytest

from flagtrl.evidence.backtest import backtest
from flagtrl.evidence.costs import cost_sweep
from flagtrl.evidence.judgement import judgement
from flagtrl.evidence.measures import break_even, measures
from flagtrl.evidence.report import evaluate
from flagtrl.market.data import MarketData
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Action
from flagtrl.market.metrics import standard
from flagtrl.market.policy import always, follow_news, rule
from flagtrl.market.synthetic import news_leads_price

WINDOW = news_leads_price(150, seed=5).window()


@pytest.mark.parametrize("execution", ["same_price", "next_price"])
@pytest.mark.parametrize("rate", [0.0, 0.0001])
def test_ratios_are_empyricals(execution, rate):
    settings = MarketSettings(
        reward="log_return", execution=execution, cost_bps=5, risk_free_rate=rate
    )
    run = backtest(rule(follow_news), WINDOW, settings)
    found = measures(run, settings)
    returns = run.values[1:] / run.values[:-1] - 1
    asset = WINDOW.prices[1:] / WINDOW.prices[:-1] - 1
    assert found.sortino == pytest.approx(empyrical.sortino_ratio(returns, required_return=rate))
    assert found.calmar == pytest.approx(empyrical.calmar_ratio(returns))
    alpha, beta = empyrical.alpha_beta(returns, asset, risk_free=rate)
    assert found.beta == pytest.approx(beta)
    assert (1 + found.alpha / 100 / 252) ** 252 - 1 == pytest.approx(alpha)


@pytest.mark.parametrize("execution", ["same_price", "next_price"])
def test_holdings_are_what_a_hand_loop_counts(execution):
    prices = np.array([100.0, 110, 121, 121, 100, 90, 99, 99, 120, 100])
    dates = np.busday_offset("2020-01-01", np.arange(10), roll="forward")
    window = MarketData("X", dates, prices, ((),) * 10, 252).window()
    plan = [1, 1, 0, 1, 1, 0, 0, 1, 1]
    settings = MarketSettings(reward="log_return", execution=execution)
    run = backtest(
        rule(lambda seen: Action.BUY if plan[seen.bar] else Action.SELL), window, settings
    )
    found = measures(run, settings)
    entries, exits = [0, 3, 7], [2, 5, None]
    shift = execution == "next_price"
    won, values = [], []
    for begin, end in zip(entries, exits, strict=True):
        sold = prices[-1] if end is None else prices[end + shift]
        won.append(sold > prices[begin + shift])
        values += [begin + shift, *([] if end is None else [end + shift])]
    assert found.hit_rate == pytest.approx(np.mean(won)) and 0 < found.hit_rate < 1
    assert found.trades == 5 and found.average_holding == pytest.approx((2 + 2 + 2) / 3)
    assert found.exposure == pytest.approx(np.mean(run.shares > 0))
    traded = sum(abs(np.diff(run.shares))[at - shift] * prices[at] for at in values)
    assert found.turnover == pytest.approx(traded / run.values.mean() * 252 / 9)


def test_at_its_break_even_cost_a_pass_earns_nothing():
    settings = MarketSettings(reward="log_return", cost_bps=3)
    run = backtest(rule(follow_news), WINDOW, settings)
    bps = break_even(run, settings)
    assert bps > 3
    costly = MarketSettings(reward="log_return", cost_bps=bps)
    again = backtest(rule(follow_news), WINDOW, costly)
    assert again.values[-1] / again.values[0] == pytest.approx(1, abs=1e-4)


def test_one_order_that_doubles_the_account_breaks_even_at_a_fee_above_its_value():
    """Of each unit of cash a fee of 200% leaves a third in shares, which here triple."""
    settings = MarketSettings(reward="log_return")
    dates = WINDOW.dates
    prices = np.linspace(10, 10, len(dates))
    prices[-1] = 30
    tripled = MarketData("X", dates, prices, ((),) * len(dates), 252).window()
    run = backtest(always(Action.BUY), tripled, settings)
    assert break_even(run, settings) == pytest.approx(20_000)
    assert measures(run, settings).break_even_bps == pytest.approx(20_000)


def test_a_fall_that_is_rounding_makes_no_ratio():
    settings = MarketSettings(reward="log_return")
    run = backtest(always(Action.BUY), WINDOW, settings)
    values = 100 * 1.01 ** np.arange(len(run.values))
    values[7] = values[6] * (1 - 1e-15)
    found = measures(replace(run, values=values), settings)
    assert math.isnan(found.sortino) and math.isnan(found.calmar)
    values[7] = values[6] * 0.99
    found = measures(replace(run, values=values), settings)
    assert found.sortino > 0 and found.calmar > 0


def test_what_is_undefined_is_said_to_be():
    settings = MarketSettings(reward="log_return")
    found = measures(backtest(always(Action.HOLD), WINDOW, settings), settings)
    assert (
        found.trades == found.exposure == found.turnover == 0 and found.break_even_bps == math.inf
    )
    undefined = ("sortino", "calmar", "hit_rate", "average_holding")
    assert all(math.isnan(getattr(found, name)) for name in undefined)
    assert found.as_dict()["break_even_bps"] is None and found.as_dict()["sortino"] is None
    dates = WINDOW.dates
    flat = MarketData("X", dates, np.full(len(dates), 10.0), ((),) * len(dates), 252).window()
    held = measures(backtest(always(Action.BUY), flat, settings), settings)
    assert math.isnan(held.beta) and held.break_even_bps == 0


def test_the_risk_free_rate_lowers_the_standard_sharpe_ratio_as_empyrical_has_it():
    rate = 0.0004
    settings = MarketSettings(reward="log_return", risk_free_rate=rate, cash_rate=rate)
    run = backtest(rule(follow_news), WINDOW, settings)
    returns = run.values[1:] / run.values[:-1] - 1
    found = evaluate(rule(follow_news), WINDOW, settings).rows["agent_greedy"]
    expected = empyrical.sharpe_ratio(returns, risk_free=rate)
    assert pytest.approx(expected) == found["standard"].SR
    assert found["paper"].SR > found["standard"].SR  # whose risk-free rate is 0
    judged = judgement(run, backtest(always(Action.BUY), WINDOW, settings), settings)
    assert judged is not None and judged.sharpe.value == pytest.approx(expected)


@pytest.mark.parametrize("execution", ["same_price", "next_price"])
def test_cash_earns_its_interest_in_every_row(execution):
    rate = 0.001
    settings = MarketSettings(reward="log_return", execution=execution, cash_rate=rate)
    flat = evaluate(always(Action.HOLD), WINDOW, settings)
    whole = 100 * ((1 + rate) ** (len(WINDOW) - 1) - 1)
    assert pytest.approx(whole) == flat.rows["agent_greedy"]["standard"].CR
    assert pytest.approx(whole) == flat.rows["flat"]["standard"].CR
    # at the cost that eats all, the same decisions leave what was there, interest counted in
    run = backtest(rule(follow_news), WINDOW, settings)
    dearer = replace(settings, cost_bps=break_even(run, settings))
    assert backtest(rule(follow_news), WINDOW, dearer).values[-1] == pytest.approx(100_000)
    idle = backtest(rule(follow_news), WINDOW, replace(settings, cash_rate=0.0))
    assert run.values[-1] > idle.values[-1]


def test_metrics_are_quantstats():
    """The standard convention, beside a package that quants use."""
    quantstats = pytest.importorskip("quantstats.stats", reason="no quantstats")
    run = backtest(rule(follow_news), WINDOW, MarketSettings(reward="log_return", cost_bps=5))
    returns = pd.Series(run.values[1:] / run.values[:-1] - 1, index=WINDOW.dates[1:])
    found = standard(run.values, 252)
    assert pytest.approx(quantstats.sharpe(returns, periods=252)) == found.SR
    assert 100 * quantstats.volatility(returns, periods=252) == pytest.approx(found.AV)
    assert -100 * quantstats.max_drawdown(returns) == pytest.approx(found.MDD)
    assert 100 * quantstats.comp(returns) == pytest.approx(found.CR)
    ours = measures(run, MarketSettings(reward="log_return", cost_bps=5))
    assert quantstats.sortino(returns, periods=252) == pytest.approx(ours.sortino)


@pytest.mark.parametrize("execution", ["same_price", "next_price"])
def test_a_sweep_of_costs_is_the_same_decisions_at_those_costs(execution):
    settings = MarketSettings(reward="log_return", execution=execution, cost_bps=3, slippage_bps=2)
    run = backtest(rule(follow_news), WINDOW, settings)
    found = cost_sweep(run, settings)
    assert [each["bps"] for each in found] == [0, 5, 10, 25]
    for each in found:
        dearer = replace(settings, cost_bps=each["bps"], slippage_bps=0.0)
        metrics = standard(backtest(rule(follow_news), WINDOW, dearer).values, 252)
        assert (each["CR"], each["SR"]) == pytest.approx((metrics.CR, metrics.SR))
    returns = [each["CR"] for each in found]
    assert returns == sorted(returns, reverse=True) and returns[0] > returns[-1]
    flat = backtest(always(Action.HOLD), WINDOW, settings)
    assert all(each == {"bps": each["bps"], "CR": 0.0, "SR": None} for each in
               cost_sweep(flat, settings))  # fmt: skip

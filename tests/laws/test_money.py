"""Conservation of money, over arbitrary price paths and arbitrary (also illegal) orders."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagtrl.market.data import MarketData, Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import (
    EXECUTIONS,
    Account,
    Action,
    Costs,
    legal_actions,
    step_account,
    transition,
)

PRICES = st.floats(0.01, 1e5)
ACTIONS = st.sampled_from([int(a) for a in Action])
RATES = st.floats(0, 5_000)
STEPS = st.lists(st.tuples(PRICES, ACTIONS), min_size=2, max_size=25)
quick = settings(max_examples=60, deadline=None)


def market(prices) -> MarketData:
    dates = np.datetime64("2020-01-01") + np.arange(len(prices))
    return MarketData("ABC", dates, np.array(prices), ((),) * len(prices))


@quick
@given(STEPS, st.floats(1, 1e7))
def test_without_costs_no_fill_changes_the_value_at_its_own_price(steps, cash):
    account = Account.of(cash, 0)
    for price, action in steps:
        before = float(account.value(price))
        account, fill = transition(account, action, price, Costs())
        assert float(account.value(price)) == pytest.approx(before, rel=1e-12)
        assert fill.fee == fill.slippage == 0.0


@quick
@given(STEPS, st.floats(1, 1e7), RATES, RATES)
def test_with_costs_the_value_drops_by_exactly_fee_and_slippage(steps, cash, fee_bps, slippage_bps):
    account = Account.of(cash, 0)
    for price, action in steps:
        before = float(account.value(price))
        traded = bool(legal_actions(account)[action]) and action != Action.HOLD
        account, fill = transition(account, action, price, Costs(fee_bps, slippage_bps))
        paid = float(fill.fee + fill.slippage)
        assert float(account.value(price)) == pytest.approx(
            before - paid, rel=1e-11, abs=1e-11 * before
        )
        # What was paid is not only consistent but right: the stated shares of the notional.
        notional = abs(float(fill.shares * fill.price))
        at_price = abs(float(fill.shares)) * price
        assert float(fill.fee) == pytest.approx(
            notional * fee_bps / 1e4, rel=1e-9, abs=1e-11 * before
        )
        assert float(fill.slippage) == pytest.approx(
            at_price * slippage_bps / 1e4, rel=1e-9, abs=1e-11 * before
        )
        assert traded or (fill.shares == fill.fee == fill.slippage == 0)


@quick
@given(STEPS, st.floats(1, 1e7), st.sampled_from(EXECUTIONS), st.floats(-0.01, 0.01))
def test_interest_is_what_cash_earns_while_it_is_cash_and_nothing_else(steps, cash, execution, i):
    prices, account = [price for price, _ in steps], Account.of(cash, 0)
    for bar, (now, action) in enumerate(steps[:-1]):
        then = prices[bar + 1]
        plain, _ = step_account(account, action, now, then, execution, Costs())
        idle = account.cash if execution == "next_price" else plain.cash  # during the bar
        after, _ = step_account(account, action, now, then, execution, Costs(), i)
        expected = float(plain.value(then) + i * idle)
        assert float(after.value(then)) == pytest.approx(expected, rel=1e-12)
        account = after


@quick
@given(STEPS, RATES, RATES)
def test_an_account_is_long_or_flat_after_every_order(steps, fee_bps, slippage_bps):
    account = Account.of(1000, 0)
    for price, action in steps:
        account, _ = transition(account, action, price, Costs(fee_bps, slippage_bps))
        assert account.cash >= 0
        assert account.shares >= 0
        assert (account.cash == 0) != (account.shares == 0)
        if action == Action.BUY:
            assert account.cash == 0
        if action == Action.SELL:
            assert account.shares == 0


@quick
@given(STEPS, RATES, RATES, st.sampled_from(EXECUTIONS))
def test_costs_never_help(steps, fee_bps, slippage_bps, execution):
    prices = [price for price, _ in steps]
    free = dear = Account.of(1000, 0)
    for i, (_, action) in enumerate(steps[:-1]):
        free, _ = step_account(free, action, prices[i], prices[i + 1], execution, Costs())
        dear, _ = step_account(
            dear, action, prices[i], prices[i + 1], execution, Costs(fee_bps, slippage_bps)
        )
        assert float(dear.value(prices[i + 1])) <= float(free.value(prices[i + 1])) * (1 + 1e-12)


@quick
@given(STEPS, RATES, RATES)
def test_a_round_trip_at_one_price_loses_money_whenever_it_costs_any(steps, fee_bps, slippage_bps):
    price = steps[0][0]
    costs = Costs(fee_bps, slippage_bps)
    account, _ = transition(Account.of(1000, 0), Action.BUY, price, costs)
    account, _ = transition(account, Action.SELL, price, costs)
    f, s = fee_bps / 1e4, slippage_bps / 1e4
    assert float(account.cash) == pytest.approx(
        1000 * (1 - s) * (1 - f) / ((1 + f) * (1 + s)), rel=1e-12
    )


@quick
@given(STEPS, RATES, RATES, st.sampled_from(EXECUTIONS))
def test_in_the_environment_value_is_cash_plus_shares_at_the_price_of_the_bar(
    steps, fee_bps, slippage_bps, execution
):
    prices = [price for price, _ in steps]
    chosen = MarketSettings(
        reward="log_return",
        execution=execution,
        cost_bps=fee_bps,
        slippage_bps=slippage_bps,
        ruin_fraction=0.0,
    )
    env = TradingEnv(Window(market(prices), 0, len(prices)), chosen)
    env.reset(seed=0)
    for bar, (_, action) in enumerate(steps[:-1], start=1):
        _, _, terminated, truncated, info = env.step(action)
        seen = env.observe()
        assert seen.bar == info["bar"] == bar
        assert (
            seen.value
            == info["value"]
            == pytest.approx(seen.cash + seen.shares * prices[bar], rel=1e-14)
        )
        assert not terminated
        assert truncated == (bar == len(prices) - 1)


@quick
@given(STEPS, st.sampled_from(EXECUTIONS))
def test_in_the_environment_profit_comes_from_shares_held_while_the_price_moved(steps, execution):
    """V_T = V_0 + sum of H_i (P_{i+1} - P_i) over the stretches between fills: no money from
    anywhere else.
    """
    prices = [price for price, _ in steps]
    env = TradingEnv(
        Window(market(prices), 0, len(prices)),
        MarketSettings("log_return", execution, ruin_fraction=0.0),
    )
    env.reset(seed=0)
    value = scale = 100_000.0  # rounding is relative to the largest value that the account ever had
    held = 0.0
    for i, (_, action) in enumerate(steps[:-1]):
        _, _, _, _, info = env.step(action)
        after = env.observe().shares
        value += (held if execution == "next_price" else after) * (prices[i + 1] - prices[i])
        held = after
        scale = max(scale, info["value"])
        assert info["value"] == pytest.approx(value, rel=1e-9, abs=1e-10 * scale)

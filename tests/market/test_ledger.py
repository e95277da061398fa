import numpy as np
import pytest

from flagtrl.errors import ConfigError
from flagtrl.market.ledger import (
    ACTION_WORDS,
    NUM_ACTIONS,
    Account,
    Action,
    Costs,
    legal_actions,
    step_account,
    transition,
)

FREE = Costs()
DEAR = Costs(cost_bps=100, slippage_bps=200)  # 1% fee, 2% slippage

# action, price, costs, (cash, shares) before -> (cash, shares) after, (traded, fill price, fee,
# slippage); by hand.
CASES = {
    "buy, free": (Action.BUY, 50, FREE, (1000, 0), (0, 20), (20, 50, 0, 0)),
    # 1030.20 / 1.01 = 1020 is traded for a fee of 10.20, at an ask of 51: 20 shares, each 1 above
    # the price.
    "buy, dear": (Action.BUY, 50, DEAR, (1030.2, 0), (0, 20), (20, 51, 10.2, 20)),
    "buy on top of shares": (Action.BUY, 50, FREE, (100, 3), (0, 5), (2, 50, 0, 0)),
    "sell, free": (Action.SELL, 50, FREE, (0, 20), (1000, 0), (-20, 50, 0, 0)),
    # 20 shares at a bid of 49 bring 980, less a fee of 9.80.
    "sell, dear": (Action.SELL, 50, DEAR, (0, 20), (970.2, 0), (-20, 49, 9.8, 20)),
    "sell beside cash": (Action.SELL, 50, DEAR, (29.8, 20), (1000, 0), (-20, 49, 9.8, 20)),
    "hold with cash": (Action.HOLD, 50, DEAR, (1000, 0), (1000, 0), (0, None, 0, 0)),
    "hold with shares": (Action.HOLD, 50, DEAR, (0, 20), (0, 20), (0, None, 0, 0)),
    "buy without cash": (Action.BUY, 50, DEAR, (0, 20), (0, 20), (0, None, 0, 0)),
    "sell without shares": (Action.SELL, 50, DEAR, (1000, 0), (1000, 0), (0, None, 0, 0)),
}


@pytest.mark.parametrize(
    ("action", "price", "costs", "before", "after", "fill"), CASES.values(), ids=CASES
)
def test_a_transition_is_what_a_hand_calculation_gives(action, price, costs, before, after, fill):
    account, made = transition(Account.of(*before), action, price, costs)
    assert (float(account.cash), float(account.shares)) == pytest.approx(
        after, rel=1e-13, abs=1e-12
    )
    assert (float(made.shares), float(made.fee), float(made.slippage)) == pytest.approx(
        (fill[0], fill[2], fill[3]), rel=1e-12
    )
    if fill[1] is not None:
        assert float(made.price) == pytest.approx(fill[1], rel=1e-14)


@pytest.mark.parametrize("costs", [FREE, DEAR])
def test_buying_leaves_no_cash_and_selling_no_shares_to_the_last_bit(costs):
    account, _ = transition(Account.of(1000 / 3, 0), Action.BUY, 7 / 11, costs)
    assert account.cash == 0.0
    account, _ = transition(account, Action.SELL, 13 / 17, costs)
    assert account.shares == 0.0


def test_the_value_is_cash_plus_shares_at_the_price():
    assert Account.of(10, 3).value(7) == 31
    np.testing.assert_array_equal(Account.of([10, 0], [3, 2]).value([7, 5]), [31, 10])
    np.testing.assert_array_equal(Account.of(10, 3).value([1, 2, 3]), [13, 16, 19])


@pytest.mark.parametrize(
    ("cash", "shares", "legal"),
    [
        (100, 0, [False, True, True]),
        (0, 5, [True, True, False]),
        (100, 5, [True, True, True]),
        (0, 0, [False, True, False]),
    ],
)
def test_selling_needs_shares_buying_needs_cash_holding_is_always_legal(cash, shares, legal):
    assert legal_actions(Account.of(cash, shares)).tolist() == legal


def test_actions_index_arrays_in_the_order_sell_hold_buy():
    assert [int(a) for a in (Action.SELL, Action.HOLD, Action.BUY)] == [0, 1, 2]
    assert ACTION_WORDS == ("Sell", "Hold", "Buy")
    assert NUM_ACTIONS == 3


@pytest.mark.parametrize("action", [3, -1, 99])
def test_an_unknown_action_is_refused_by_its_number(action):
    with pytest.raises(
        ConfigError, match=rf"action {action} is unknown.*0 \(Sell\), 1 \(Hold\), 2 \(Buy\)"
    ):
        transition(Account.of(1, 0), action, 1.0, FREE)


def test_one_unknown_action_among_many_is_refused():
    with pytest.raises(ConfigError, match=r"\[0 7 2\] is unknown"):
        transition(Account.of(np.ones(3), np.ones(3)), np.array([0, 7, 2]), 1.0, FREE)


@pytest.mark.parametrize("costs", [FREE, DEAR])
def test_arrays_and_scalars_agree_to_the_last_bit(costs):
    rng = np.random.default_rng(0)
    cash, shares, price = rng.uniform(0, 1e5, (3, 4, 5))
    cash[0], shares[1] = 0.0, 0.0
    action = rng.integers(0, 3, (4, 5))
    many, fills = transition(Account.of(cash, shares), action, price, costs)
    legal = legal_actions(Account.of(cash, shares))
    assert many.cash.shape == fills.fee.shape == (4, 5)
    assert legal.shape == (4, 5, 3)
    for i in np.ndindex(4, 5):
        one, fill = transition(
            Account.of(cash[i], shares[i]), int(action[i]), float(price[i]), costs
        )
        assert (one.cash, one.shares) == (many.cash[i], many.shares[i])
        got = (fill.shares, fill.price, fill.fee, fill.slippage)
        assert got == (fills.shares[i], fills.price[i], fills.fee[i], fills.slippage[i])
        assert legal_actions(Account.of(cash[i], shares[i])).tolist() == legal[i].tolist()


def test_a_transition_leaves_its_input_as_it_was():
    account = Account.of(np.array([100.0, 0.0]), np.array([0.0, 2.0]))
    transition(account, np.array([2, 0]), 5.0, DEAR)
    assert account.cash.tolist() == [100, 0]
    assert account.shares.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("execution", "shares"), [("next_price", 1000 / 40), ("same_price", 1000 / 50)]
)
def test_an_order_fills_at_the_price_that_the_execution_names(execution, shares):
    account, fill = step_account(Account.of(1000, 0), Action.BUY, 50, 40, execution, FREE)
    assert float(account.shares) == pytest.approx(shares, rel=1e-14)
    assert float(fill.price) == {"next_price": 40, "same_price": 50}[execution]


def test_an_unknown_execution_is_refused():
    with pytest.raises(ConfigError, match=r"execution is 'yesterday'.*next_price, same_price"):
        step_account(Account.of(1, 0), Action.BUY, 1, 1, "yesterday", FREE)


@pytest.mark.parametrize("name", ["cost_bps", "slippage_bps"])
@pytest.mark.parametrize("value", [-0.01, 10_000, 1e9, float("nan"), float("inf")])
def test_costs_outside_their_bounds_are_refused_with_name_and_value(name, value):
    with pytest.raises(
        ConfigError, match=rf"{name} is {value}.*at least 0 and below 10000 basis points"
    ):
        Costs(**{name: value})


@pytest.mark.parametrize("name", ["cost_bps", "slippage_bps"])
def test_costs_at_their_bounds_are_accepted(name):
    assert getattr(Costs(**{name: 0}), name) == 0
    assert getattr(Costs(**{name: 9_999.9}), name) == 9_999.9

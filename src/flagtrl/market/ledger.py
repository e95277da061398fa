"""The ledger: accounts and the pure transition between them, in float64.

Long or flat, all in or all out (FLAG-Trader, section 3): Buy spends all cash, Sell liquidates
everything, Hold changes nothing. Every function takes floats or arrays of one shape, so that one
path and a thousand are the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

from flagtrl.errors import ConfigError, one_of

EXECUTIONS = ("next_price", "same_price")


class Action(IntEnum):
    """The action set; the value is the index into every (..., A) array."""

    SELL = 0
    HOLD = 1
    BUY = 2

    @property
    def word(self) -> str:
        """The action as the prompt and the answer spell it."""
        return self.name.capitalize()


ACTION_WORDS = tuple(action.word for action in Action)
NUM_ACTIONS = len(Action)


@dataclass(frozen=True)
class Account:
    """Cash (currency) and shares (fractional), float64 arrays of one shape; a single account has
    the shape ().
    """

    cash: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, cash: ArrayLike, shares: ArrayLike) -> Account:
        """An account from numbers or arrays."""
        return cls(np.asarray(cash, dtype=np.float64), np.asarray(shares, dtype=np.float64))

    def value(self, price: ArrayLike) -> np.ndarray:
        """V = C + H P."""
        return self.cash + self.shares * price


@dataclass(frozen=True)
class Costs:
    """Costs of a trade: `cost_bps` of its notional, and a fill `slippage_bps` worse than the price
    (never better).
    """

    cost_bps: float = 0.0
    slippage_bps: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cost_bps", "slippage_bps"):
            value = getattr(self, name)
            if not 0 <= value < 10_000:
                raise ConfigError(
                    f"{name} is {value}; it must be at least 0 and below 10000 basis points"
                )


@dataclass(frozen=True)
class Fill:
    """What a transition traded.

    `shares` is signed (bought > 0), `price` what a share was traded at (the market's where nothing
    was), `fee` and `slippage` are what it cost, currency.
    """

    shares: np.ndarray
    price: np.ndarray
    fee: np.ndarray
    slippage: np.ndarray


def legal_actions(account: Account) -> np.ndarray:
    """(..., A) bool: Sell needs shares, Buy needs cash, Hold is always legal."""
    return np.stack(
        [account.shares > 0, np.ones_like(account.cash, dtype=bool), account.cash > 0], axis=-1
    )


def transition(
    account: Account, action: ArrayLike, price: ArrayLike, costs: Costs
) -> tuple[Account, Fill]:
    """Fill `action` at `price`.

    With fee rate f and slippage rate s: Buy turns C into C / ((1 + f) P (1 + s)) shares, Sell turns
    H into H P (1 - s)(1 - f) cash. Hence V' = V - fee - slippage exactly, both valued at `price`.
    An illegal action moves nothing, by the same formulas.

    Raises:
        ConfigError: an action outside the action set.
    """
    action, price = np.asarray(action), np.asarray(price, dtype=np.float64)
    if not np.isin(action, [int(a) for a in Action]).all():
        raise ConfigError(
            f"action {action} is unknown; use {', '.join(f'{int(a)} ({a.word})' for a in Action)}"
        )
    fee_rate, slip_rate = costs.cost_bps / 10_000, costs.slippage_bps / 10_000
    buying, selling = action == Action.BUY, action == Action.SELL
    ask, bid = price * (1 + slip_rate), price * (1 - slip_rate)
    spent = np.where(buying, account.cash, 0.0)
    notional_bought = spent / (1 + fee_rate)
    bought = notional_bought / ask
    sold = np.where(selling, account.shares, 0.0)
    proceeds = sold * bid
    fee = (spent - notional_bought) + proceeds * fee_rate
    after = Account(
        account.cash - spent + proceeds * (1 - fee_rate), account.shares - sold + bought
    )
    traded_at = np.where(buying, ask, np.where(selling, bid, price))
    fill = Fill(bought - sold, traded_at, fee, bought * (ask - price) + sold * (price - bid))
    return after, fill


def with_interest(account: Account, rate: float) -> Account:
    """A bar later: cash has grown by `rate`, a fraction."""
    return Account(account.cash * (1 + rate), account.shares)


def step_account(
    account: Account,
    action: ArrayLike,
    price_now: ArrayLike,
    price_next: ArrayLike,
    execution: str,
    costs: Costs,
    cash_rate: float = 0.0,
) -> tuple[Account, Fill]:
    """One bar: the order decided at `price_now` fills at the next bar's price (the paper's) or at
    the same one. What is cash during the bar earns `cash_rate`, a fraction.

    Raises:
        ConfigError: an execution other than EXECUTIONS.
    """
    one_of("execution", execution, EXECUTIONS)
    if execution == "next_price":
        return transition(with_interest(account, cash_rate), action, price_next, costs)
    traded, fill = transition(account, action, price_now, costs)
    return with_interest(traded, cash_rate), fill

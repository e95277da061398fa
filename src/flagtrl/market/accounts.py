"""Accounts that trade one window in step: a world for `play`, as quick for a thousand as for one.

What an account does moves no price, so that accounts do not meet. Rewards are paid by no one here;
where a policy looks at an observation, which shows the last of them, they are computed then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from flagtrl.errors import ConfigError
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import Account, Action, legal_actions, step_account
from flagtrl.market.observation import EpisodeSoFar, Observation, observation
from flagtrl.market.rewards import EpisodeHistory, checked_reward, load_reward
from flagtrl.play.loop import Step


class Accounts:
    """B accounts from the first bar of a window to its last, or to their ruin.

    A ruined account trades no more, and keeps the value that it had.

    Args:
        window: the bars.
        settings: execution, costs, reward and look-back; `episode_start` is not used.
        count: B.

    Raises:
        ConfigError: no account.
    """

    def __init__(self, window: Window, settings: MarketSettings, count: int = 1):
        if count < 1:
            raise ConfigError(f"there are {count} accounts; trade with at least 1")
        self.window, self.settings, self.count = window, settings, count
        self.account = Account.of(np.full(count, settings.initial_cash), np.zeros(count))
        self.ruined = np.zeros(count, dtype=bool)
        self.values = [self.account.value(window.prices[0])]  # (B,) a bar
        self.shares = [self.account.shares]
        self.actions: list[np.ndarray] = []
        self._reward = load_reward(settings.reward)
        self._rewards: list[list[float]] = [[] for _ in range(count)]

    @property
    def over(self) -> bool:
        """Whether no bar is left to decide at, or no account that could."""
        return len(self.values) >= len(self.window) or bool(self.ruined.all())

    def observe(self) -> Observations:
        """What each account may know now."""
        return Observations(self, len(self.actions), self.account)

    def advance(self, actions: np.ndarray) -> Step:
        """Fill (B,) actions, and move one bar on."""
        now, prices = self.window.start + len(self.actions), self.window.market.prices
        actions = np.where(self.ruined, Action.HOLD, actions)
        traded, fill = step_account(
            self.account,
            actions,
            prices[now],
            prices[now + 1],
            self.settings.execution,
            self.settings.costs,
            self.settings.cash_rate,
        )
        self.account = traded
        values = np.where(self.ruined, self.values[-1], traded.value(prices[now + 1]))
        before = self.ruined
        self.ruined = before | (values <= self.settings.ruin_fraction * self.settings.initial_cash)
        self.actions.append(actions)
        self.values.append(values)
        self.shares.append(traded.shares)
        last = np.full(self.count, len(self.values) == len(self.window))
        return Step(
            rewards=np.full(self.count, np.nan),
            terminated=self.ruined & ~before,
            truncated=last & ~self.ruined,
            told={
                "values": values,
                "shares": traded.shares,
                "fees": np.broadcast_to(fill.fee, values.shape),
            },
        )

    def begin_again(self, ended: np.ndarray) -> None:
        """There is one episode alone."""

    def seen_by(self, number: int, steps: int, account: Account) -> Observation:
        """What account `number` could know after `steps` steps, when it was `account`."""
        values = [float(value[number]) for value in self.values[: steps + 1]]
        actions = [int(action[number]) for action in self.actions[:steps]]
        so_far = EpisodeSoFar(values, self._paid(number, steps, values, actions), actions)
        single = Account.of(account.cash[number], account.shares[number])
        market, bar = self.window.market, self.window.start + steps
        return observation(market, self.settings, bar, single, so_far)

    def _paid(
        self, number: int, steps: int, values: Sequence[float], actions: Sequence[int]
    ) -> list[float]:
        """The rewards of an account's first `steps` steps; each is computed once."""
        paid = self._rewards[number]
        if len(paid) < steps:
            value = np.array(values)
            shares = np.array([float(each[number]) for each in self.shares[: steps + 1]])
            action = np.array(actions)
            for done in range(len(paid) + 1, steps + 1):
                history = EpisodeHistory(
                    value[1 : done + 1] / value[:done] - 1,
                    value[: done + 1],
                    shares[: done + 1],
                    action[:done],
                    self.settings.risk_free_rate,
                )
                paid.append(checked_reward(self._reward(history), f"reward {self.settings.reward}"))
        return paid[:steps]


class Observations(Sequence[Observation]):
    """What B accounts may know at one bar; the record of each is made when it is looked at.

    Attributes:
        legal: (B, A) bool.
    """

    def __init__(self, world: Accounts, steps: int, account: Account):
        self._world, self._steps, self._account = world, steps, account
        self.legal = legal_actions(account)
        self._made: dict[int, Observation] = {}

    def __len__(self) -> int:
        return self._world.count

    @overload
    def __getitem__(self, number: int) -> Observation: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Observation]: ...

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number = int(number) % len(self)
        if number not in self._made:
            self._made[number] = self._world.seen_by(number, self._steps, self._account)
        return self._made[number]

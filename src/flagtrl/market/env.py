"""TradingEnv: one asset, one decision a bar, as a gymnasium environment.

Reinforcement-learning libraries see a dictionary of numbers; the language side reads `observe()`, a
frozen record that holds nothing later than the current bar.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from flagtrl.errors import ConfigError, one_of
from flagtrl.market.data import Window
from flagtrl.market.ledger import (
    EXECUTIONS,
    NUM_ACTIONS,
    Account,
    Action,
    Costs,
    legal_actions,
    step_account,
)
from flagtrl.market.observation import RECENT, EpisodeSoFar, Observation, numbers, observation
from flagtrl.market.rewards import EpisodeHistory, checked_reward, load_reward

STARTS = ("fixed", "random")
HIGHEST_RATE = 0.1  # a bar: a rate above it is one of a year, or in percent


@dataclass(frozen=True)
class MarketSettings:
    """How the market is traded and rewarded.

    Raises:
        ConfigError: a value outside its bounds, with the bound and the remedy.
    """

    reward: str = field(
        default="sharpe_difference",
        metadata={"help": "name of a reward, or a user's own as path/to/file.py:function"},
    )
    execution: str = field(
        default="next_price",
        metadata={
            "help": "next_price: orders fill at the next bar's price; same_price: at this bar's"
        },
    )
    cost_bps: float = field(
        default=0.0, metadata={"help": "cost of a trade, basis points of its notional"}
    )
    slippage_bps: float = field(
        default=0.0, metadata={"help": "fills are this much worse than the price, basis points"}
    )
    lookback: int = field(
        default=10, metadata={"help": "bars of prices and news that an observation holds"}
    )
    episode_start: str = field(
        default="fixed",
        metadata={
            "help": "fixed: at the window's start; random: anywhere that leaves max_episode_steps"
        },
    )
    initial_cash: float = field(
        default=100_000.0, metadata={"help": "cash at the start of an episode, currency"}
    )
    ruin_fraction: float = field(
        default=0.05,
        metadata={"help": "an account at or below this share of its start is ruined"},
    )
    risk_free_rate: float = field(
        default=0.0,
        metadata={
            "help": "risk-free rate, a fraction per bar: of the Sharpe rewards, and of the Sharpe "
            "ratios of the standard convention"
        },
    )
    cash_rate: float = field(default=0.0, metadata={"help": "interest on cash, a fraction per bar"})

    def __post_init__(self) -> None:
        one_of("execution", self.execution, EXECUTIONS)
        one_of("episode_start", self.episode_start, STARTS)
        Costs(self.cost_bps, self.slippage_bps)
        if not (isinstance(self.lookback, int) and self.lookback >= 1):
            raise ConfigError(
                f"lookback is {self.lookback!r}; it must be a whole number of at least 1 bar"
            )
        if not (np.isfinite(self.initial_cash) and self.initial_cash > 0):
            raise ConfigError(f"initial_cash is {self.initial_cash}; it must be finite and above 0")
        if not 0 <= self.ruin_fraction < 1:
            raise ConfigError(
                f"ruin_fraction is {self.ruin_fraction}; it must be at least 0 and below 1"
            )
        for name in ("risk_free_rate", "cash_rate"):
            rate = getattr(self, name)
            if not abs(rate) <= HIGHEST_RATE:
                raise ConfigError(
                    f"{name} is {rate}; it must lie within -{HIGHEST_RATE} and {HIGHEST_RATE}, a "
                    "fraction per bar: 5% a year is about 0.0002 a trading day"
                )

    @property
    def costs(self) -> Costs:
        """Costs of a trade."""
        return Costs(self.cost_bps, self.slippage_bps)


class TradingEnv(gymnasium.Env):
    """Trade one window of a market, long or flat.

    `step` fills the action, moves to the next bar and pays the reward. An episode is `terminated`
    by ruin and `truncated` at the window's last bar or after `max_episode_steps`. `info` carries
    `action_mask` (A,) int8, `value` and, after a step, `illegal_action`: an action that cannot do
    anything leaves the account as it is.

    Args:
        window: the bars to trade; look-backs may reach before it.
        settings: execution, costs, reward, look-back, episode start.
        max_episode_steps: at most this many steps; None for as many as the window has.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    _masking = False

    def __init__(
        self,
        window: Window,
        settings: MarketSettings | None = None,
        max_episode_steps: int | None = None,
    ):
        self.window, self.settings = window, settings or MarketSettings()
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ConfigError(f"max_episode_steps is {max_episode_steps}; it must be at least 1")
        self.max_steps = min(max_episode_steps or len(window) - 1, len(window) - 1)
        self._reward = load_reward(self.settings.reward)
        inf, back = np.inf, self.settings.lookback
        self.action_space = spaces.Discrete(NUM_ACTIONS)
        self.observation_space = spaces.Dict(
            {
                "prices": spaces.Box(0, inf, (back,), np.float64),
                "sentiment": spaces.Box(0, inf, (3,), np.float64),
                "account": spaces.Box(0, inf, (3,), np.float64),
                "recent_rewards": spaces.Box(-inf, inf, (RECENT,), np.float64),
                "recent_net_values": spaces.Box(0, inf, (RECENT,), np.float64),
                "recent_actions": spaces.Box(-1, NUM_ACTIONS - 1, (RECENT,), np.float64),
            }
        )
        self._bar, self._done = window.start, False
        self.account: Account
        self._values: list[float]
        self._shares: list[float]
        self._rewards: list[float]
        self._actions: list[int]
        self._begin(window.start)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Start an episode; `options={"start": i}` starts at the window's i-th bar instead of where
        the settings say.
        """
        super().reset(seed=seed, options=options)
        latest = self.window.stop - 1 - self.max_steps
        start = self.window.start
        if options and "start" in options:
            start = self._checked_start(int(options["start"]))
        elif self.settings.episode_start == "random":
            start = int(self.np_random.integers(self.window.start, latest + 1))
        self._begin(start)
        return self.numbers(), self._info()

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        """Fill `action`, move one bar on; returns observation, reward, terminated, truncated,
        info.
        """
        if self._done:
            raise ConfigError("the episode is over; call reset() before the next step()")
        if not self.action_space.contains(action):
            raise ConfigError(
                f"action {action!r} is unknown; use "
                f"{', '.join(f'{int(a)} ({a.word})' for a in Action)}"
            )
        prices, now = self.window.market.prices, self._bar
        illegal = not self.legal[int(action)]
        self.account, fill = step_account(
            self.account,
            int(action),
            prices[now],
            prices[now + 1],
            self.settings.execution,
            self.settings.costs,
            self.settings.cash_rate,
        )
        self._bar += 1
        self._actions.append(int(action))
        self._values.append(float(self.account.value(prices[self._bar])))
        self._shares.append(float(self.account.shares))
        self._rewards.append(
            checked_reward(self._reward(self._history()), f"reward {self.settings.reward}")
        )
        terminated = self._values[-1] <= self.settings.ruin_fraction * self.settings.initial_cash
        truncated = not terminated and (
            self._bar == self.window.stop - 1 or len(self._actions) >= self.max_steps
        )
        self._done = terminated or truncated
        info = self._info() | {
            "illegal_action": illegal,
            "traded_shares": float(fill.shares),
            "fee": float(fill.fee),
        }
        return self.numbers(), self._rewards[-1], terminated, truncated, info

    @property
    def legal(self) -> np.ndarray:
        """(A,) bool: which actions can do something now."""
        return legal_actions(self.account)

    @property
    def ended(self) -> bool:
        """Whether the episode is over and waits for a reset."""
        return self._done

    def observe(self) -> Observation:
        """The current bar as the record that prompts are made of."""
        seen = observation(
            self.window.market,
            self.settings,
            self._bar,
            self.account,
            EpisodeSoFar(self._values, self._rewards, self._actions),
        )
        if self._masking or type(self).legal is TradingEnv.legal:
            return seen
        self._masking = True  # what a subclass allows may depend on what is seen
        try:
            return replace(seen, legal=self.legal)
        finally:
            self._masking = False

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if never interrupted, generator included;
        JSON-serialisable.
        """
        return {
            "bar": self._bar,
            "cash": float(self.account.cash),
            "shares_held": float(self.account.shares),
            "values": list(self._values),
            "shares": list(self._shares),
            "rewards": list(self._rewards),
            "actions": list(self._actions),
            "done": self._done,
            "generator": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> tuple[dict, dict]:
        """Continue from `state_dict()`; observation and info, as `reset` returns them. ConfigError
        where it was saved on other bars than this window's.
        """
        if not self.window.start <= state["bar"] < self.window.stop:
            raise ConfigError(
                f"the saved episode stands at bar {state['bar']} of {self.window.market.symbol}, "
                f"this window has the bars {self.window.start} to {self.window.stop - 1}; resume "
                "with the window it was saved with"
            )
        self._bar, self._done = state["bar"], state["done"]
        self.account = Account.of(state["cash"], state["shares_held"])
        self._values, self._shares = list(state["values"]), list(state["shares"])
        self._rewards, self._actions = list(state["rewards"]), list(state["actions"])
        self.np_random.bit_generator.state = copy.deepcopy(state["generator"])
        return self.numbers(), self._info()

    def _begin(self, bar: int) -> None:
        self._bar, self._done = bar, False
        self.account = Account.of(self.settings.initial_cash, 0.0)
        self._values, self._shares = [self.settings.initial_cash], [0.0]
        self._rewards, self._actions = [], []

    def _checked_start(self, offset: int) -> int:
        if not 0 <= offset <= len(self.window) - 2:
            raise ConfigError(
                f"an episode cannot start at bar {offset}; the window has the bars 0 to "
                f"{len(self.window) - 2}"
            )
        return self.window.start + offset

    def _history(self) -> EpisodeHistory:
        values = np.array(self._values)
        return EpisodeHistory(
            values[1:] / values[:-1] - 1,
            values,
            np.array(self._shares),
            np.array(self._actions),
            self.settings.risk_free_rate,
        )

    def _info(self) -> dict[str, Any]:
        return {
            "action_mask": self.legal.astype(np.int8),
            "value": self._values[-1],
            "bar": self._bar,
        }

    def numbers(self) -> dict[str, np.ndarray]:
        """The current bar as gymnasium's observation."""
        return numbers(self.observe(), self.settings.lookback)


assert [a.value for a in Action] == list(range(NUM_ACTIONS))

"""TradingEnv for TRL's `environment_factory`: GRPOTrainer's model trades by calling tools.

    factory = trading_environments(make_env, tokenizer)
    GRPOTrainer(model, args=GRPOConfig(max_steps=100), environment_factory=factory)

GRPO gives one reward to a whole completion, and has no critic: here that is the episode's return,
where `PPOTrainer` pays every bar by itself. Nothing of trl is imported: it looks for `reset`,
`get_reward` and public methods, which are the tools.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from flagtrl.errors import ConfigError
from flagtrl.language.prompts import asking_for_a_tool
from flagtrl.language.settings import PromptSettings
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.env import TradingEnv
from flagtrl.market.ledger import Action

_OVER = "The episode is over: call no more tools."
_NOTHING_TO = {
    Action.BUY: "There is no cash to buy with.",
    Action.SELL: "There are no shares to sell.",
}


class TradingEnvironment:
    """One rollout's market: a bar in words at `reset`, and the next one after each call of a tool.

    Args:
        make_env: makes the TradingEnv that is traded in.
        encoder: puts bars into words.

    Attributes:
        env: the TradingEnv.
        rewards: of the episode's steps so far.
        refused: calls that could do nothing, and made no step.
    """

    def __init__(self, make_env: Callable[[], TradingEnv], encoder: PromptEncoder):
        self.env, self._encoder = make_env(), encoder
        self.rewards: list[float] = []
        self.refused = 0

    def reset(self, *, seed: int | None = None, start: int | None = None, **row: Any) -> str:
        """Begin an episode; its first bar in words.

        Args:
            seed: of a random start.
            start: the window's bar to start at.
            row: the other columns of a row of the training data, of which nothing is needed.

        Raises:
            ConfigError: starts are random and the row names neither a seed nor a start: GRPO
                compares completions of one row with each other, and they would trade other bars.
        """
        if self.env.settings.episode_start == "random" and seed is None and start is None:
            raise ConfigError(
                "episode_start is 'random', so each row of the training data must have a column "
                "seed or start, that its completions trade the same bars; or use 'fixed'"
            )
        self.env.reset(seed=seed, options=None if start is None else {"start": start})
        self.rewards, self.refused = [], 0
        return self._bar()

    def buy(self) -> str:
        """Spend all cash on the asset, for when its price is expected to rise; then a bar passes.

        Returns:
            The next bar.
        """
        return self._step(Action.BUY)

    def sell(self) -> str:
        """Sell every share, for when the price is expected to fall; then a bar passes.

        Returns:
            The next bar.
        """
        return self._step(Action.SELL)

    def hold(self) -> str:
        """Trade nothing; then a bar passes.

        Returns:
            The next bar.
        """
        return self._step(Action.HOLD)

    def get_reward(self) -> float:
        """The return of the episode so far.

        Returns:
            The sum of its rewards.
        """
        return float(sum(self.rewards))

    def _step(self, action: Action) -> str:
        if self.env.ended or not self.env.legal[action]:
            self.refused += 1
            return _OVER if self.env.ended else f"{_NOTHING_TO[action]} Call another tool."
        _, reward, *_, info = self.env.step(action)
        self.rewards.append(float(reward))
        if not self.env.ended:
            return self._bar()
        change = info["value"] / self.env.settings.initial_cash - 1
        return f"The account is worth {info['value']:.2f}, {change:+.2%}. {_OVER}"

    def _bar(self) -> str:
        return asking_for_a_tool(self._encoder.prompt(self.env.observe()))


def trading_environments(
    make_env: Callable[[], TradingEnv],
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptSettings | None = None,
) -> Callable[[], TradingEnvironment]:
    """What GRPOTrainer takes as `environment_factory`.

    Args:
        make_env: makes the TradingEnv of one rollout; all make the same.
        tokenizer: the model's; special tokens in news are made harmless with it.
        settings: how a bar is put into words; the style `compact` unless told.

    Raises:
        PromptError: a tokenizer that no prompts can be made with.
    """
    settings = settings or PromptSettings(prompt_style="compact")
    # trl bounds what a completion may hold
    encoder = PromptEncoder(tokenizer, settings, max_length=sys.maxsize)
    return partial(TradingEnvironment, make_env, encoder)


def episode_return(environments: Sequence[TradingEnvironment], **columns: Any) -> list[float]:
    """Each rollout's return, as one of `reward_funcs`: for trl before 1.8, which asks no
    environment for its reward. Later ones would count it twice.
    """
    return [environment.get_reward() for environment in environments]

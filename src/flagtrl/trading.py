"""A market as a task for the trainer: what it can know of its environments beyond other tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from flagtrl.errors import ConfigError
from flagtrl.exact.estimator import Exact
from flagtrl.exact.windows import Windows
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.config import PPOConfig
from flagtrl.market.env import TradingEnv
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.market.summary import data_facts
from flagtrl.market.transitions import shows_its_own
from flagtrl.market.vector import VectorTradingEnv
from flagtrl.play.policy import legal_of
from flagtrl.policy.trading import prompts_known_ahead
from flagtrl.policy.visits import position_of, visits
from flagtrl.record import RunRecord


class Trading:
    """Trading environments, read by a PromptEncoder.

    Args:
        make_env: makes a training environment, as often as it is called.
        encoder: observation to prompt.
    """

    words: tuple[str, ...] | None = ACTION_WORDS

    def __init__(self, make_env: Callable[[], TradingEnv], encoder: PromptEncoder):
        self.make_env, self.encoder = make_env, encoder

    def environments(self, count: int) -> VectorTradingEnv:
        """`count` new environments."""
        return VectorTradingEnv([self.make_env() for _ in range(count)])

    def survey(self) -> tuple[list[EncodedPrompt], np.ndarray]:
        """Bars spread over the training window, flat and long."""
        seen = visits(self.make_env())
        return list(map(self.encoder.encode, seen)), legal_of(seen)

    def state_of(self, legal: np.ndarray) -> str:
        """The position that has these legal actions."""
        return position_of(legal)

    def ahead(self) -> Sequence[EncodedPrompt]:
        """Both prompts of every bar, where the account shows in no more than its position."""
        env = self.make_env()
        if shows_its_own(env):
            return ()
        return prompts_known_ahead(self.encoder, env.window, env.settings)

    def check(self, args: PPOConfig, known: bool) -> None:
        """Refuse an estimator for which the position is not all of the state; ConfigError."""
        if args.advantage != "gae" and shows_its_own(env := self.make_env()):
            raise ConfigError(
                f"advantage is {args.advantage}, whose prompts are made of the window alone, but "
                f"{type(env).__name__} changes what is seen or legal; set advantage to gae"
            )
        if args.advantage != "gae" and not known:
            style = self.encoder.settings.prompt_style
            raise ConfigError(
                f"advantage is {args.advantage}, but prompts of the style {style!r} tell more of "
                "the account than its position, so that the position is not all of the state; use "
                "prompt_style markov, or advantage gae"
            )

    def exact(self, args: PPOConfig, own: range) -> Exact | None:
        """Exact advantages on windows of the training window, where the settings say so."""
        if args.advantage != "exact":
            return None
        return Exact(Windows(self.make_env(), self.encoder, args, own), args)

    def recorded(self, record: RunRecord) -> RunRecord:
        """`record` with market, data and training window."""
        env = self.make_env()
        return replace(
            record,
            market=asdict(env.settings),
            data=record.data or data_facts(env.window.market, "in memory"),
            windows=record.windows or {"train": env.window.span},
        )

"""A market's prompts to token ids, split at the part that a bar's visits share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from flagtrl.errors import ConfigError, PromptError
from flagtrl.language.encoding import Encoder
from flagtrl.language.prompt import EncodedPrompt, Prompt
from flagtrl.language.prompts import ANSWER_PREFIX, prompt_style
from flagtrl.language.settings import PromptSettings
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.market.observation import Observation
from flagtrl.market.policy import always
from flagtrl.own_code import code_digest
from flagtrl.play.loop import Uniformly, likeliest, play
from flagtrl.play.policy import PolicyOutput, uniform


class PromptEncoder(Encoder):
    """Observation -> EncodedPrompt, with the chat template where the tokenizer has one.

    Args:
        tokenizer: a Hugging Face tokenizer.
        settings: prompt style and news budget.
        max_length: the model's context, in tokens; a prompt and its longest answer must fit.

    Attributes:
        action_paths: the token ids of each action after ANSWER_PREFIX, indexed by Action.

    Raises:
        PromptError: a tokenizer that merges across the boundaries that scoring relies on, or that
            spells two actions alike.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings, max_length: int
    ):
        super().__init__(tokenizer, max_length, ANSWER_PREFIX)
        self.settings = settings
        self._style = prompt_style(settings.prompt_style)
        self._headlines = lru_cache(maxsize=4096)(self._fit_headlines)
        self.action_paths = self.paths_of(ACTION_WORDS)

    def __reduce__(self) -> tuple[Any, ...]:
        """What makes it again, in another process: its caches stay behind."""
        return type(self), (self.tokenizer, self.settings, self.max_length)

    def prompt(self, observation: Observation) -> Prompt:
        """The words of one prompt, special tokens in news and symbol made harmless."""
        safe = replace(observation, symbol=self.neutralise(observation.symbol))
        prompt = self._style(safe, self._headlines(observation.news))
        if self.settings.own_style:  # it may have read what is not safe
            prompt = Prompt(self.neutralise(prompt.shared), self.neutralise(prompt.own))
        return prompt

    def encode(self, observation: Observation) -> EncodedPrompt:
        """Token ids of the prompt, up to and including ANSWER_PREFIX.

        Raises:
            PromptError: a prompt longer than the context, or a shared part that is empty or
                tokenises differently with the rest.
        """
        prompt = self.prompt(observation)
        shared = self._shared_ids(prompt.shared)
        if not shared:
            raise PromptError(
                f"{observation.symbol} {observation.date}: the prompt's shared part has 0 tokens, "
                f"and needs at least 1; let prompt style {self.settings.prompt_style!r} put the "
                "task there"
            )
        ids = self.ids_of(prompt)
        if tuple(ids[: len(shared)]) != shared:
            raise PromptError(
                f"{observation.symbol} {observation.date}: the prompt's shared part of "
                f"{len(shared)} tokens tokenises differently when the account part follows; prompt "
                f"style {self.settings.prompt_style!r} needs a boundary that this tokenizer keeps "
                "(end `shared` with a line break, and no white space before that; start `own` with "
                "a letter)"
            )
        self._check_length(len(ids), observation)
        return EncodedPrompt(np.array(ids, dtype=np.int64), len(shared))

    def question(self, observation: Observation) -> list[int]:
        """Token ids of the prompt with no answer begun, for a model that answers in its own words.

        Raises:
            PromptError: a prompt longer than the context.
        """
        prompt = self.prompt(observation)
        tail = self._tail.removesuffix(ANSWER_PREFIX)
        ids = self.tokenize(self._head + prompt.shared + prompt.own + tail)
        self._check_length(len(ids), observation)
        return ids

    def check(self, window: Window, settings: MarketSettings, seed: int = 0) -> int:
        """Encode what one random trader sees on `window`, so that a prompt that cannot be used is
        found before training; in a style of the user's own, without the news too, and each twice.

        Returns:
            The longest prompt's length in tokens.

        Raises:
            ConfigError: a style of the user's own that raises, or gives two prompts for one bar.
            PromptError: as of `encode`.
        """
        lengths: list[int] = []

        def policy(seen: Sequence[Observation]) -> PolicyOutput:
            lengths.append(len(self.encode(seen[0]).ids))
            if self.settings.own_style:
                blind = replace(seen[0], news=((),) * len(seen[0].news))
                lengths.append(len(self.encode(blind).ids))
                if self.prompt(seen[0]) != self.prompt(seen[0]):
                    raise ConfigError(
                        f"prompt_style {self.settings.prompt_style!r} gave two prompts for "
                        f"{seen[0].date}; it must be a pure function"
                    )
            return uniform(seen)

        world = Accounts(window, settings)
        play(policy, world, Uniformly(seed))
        policy(world.observe())  # the last bar's, which nothing is decided at
        return max(lengths)

    def described(self) -> dict[str, Any]:
        """Its settings, as a run's record has them."""
        return asdict(self.settings)

    def fingerprint(self) -> str:
        """SHA-256 over the token ids of one made-up bar's prompt: equal where prompts read the
        same, chat template included. Of a style of the user's own, over its code and the frame.
        """
        if self.settings.own_style:
            frame = np.array(self.ids_of(Prompt("Shared.\n", "Own.")), dtype="<i8").tobytes()
            code = code_digest(self.settings.prompt_style).encode()
            return hashlib.sha256(code + frame).hexdigest()
        news = [
            NewsItem("Profits rise again.", "positive"),
            NewsItem("A rival cuts its prices.", "negative"),
        ]
        days = np.datetime64("2020-01-02") + np.arange(4)
        market = MarketData(
            "PROBE", days, np.array([100.0, 101.5, 99.25, 102.0]), ((), (news[0],), tuple(news), ())
        )
        world = Accounts(market.window(), MarketSettings(reward="log_return", lookback=3))
        play(always(Action.BUY), world, likeliest, steps=2)
        prompt = self.prompt(world.observe()[0])
        ids = self.ids_of(prompt)
        return hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest()

    def _fit_headlines(self, news: tuple[tuple[NewsItem, ...], ...]) -> tuple[str, ...]:
        """Newest bar first, source order within a bar, until the budget is spent; the last one is
        cut to fit.
        """
        left, lines = self.settings.news_token_budget, []
        for item in (item for items in reversed(news) for item in items):
            if left <= 0:
                break
            # Quotes and backslashes would be escaped in the prompt's JSON, and cost more tokens
            # than were counted. What replaces them may spell a special token.
            text = " ".join(item.text.replace('"', "'").replace("\\", "/").split())
            text = self.neutralise(text)
            ids = self._ids(text)
            if len(ids) > left:
                text = self._cut(ids, left)
            lines.append(text)
            left -= len(ids)
        return tuple(line for line in lines if line)

    def _cut(self, ids: list[int], left: int) -> str:
        """The longest beginning that costs at most `left` tokens.

        A cut may split a character in two; the replacement mark of its half is dropped, and white
        space at the end, which would merge with the line break. What is left may merge otherwise,
        into more tokens than before.
        """
        for kept in range(left, 0, -1):
            text = str(self.tokenizer.decode(ids[:kept], clean_up_tokenization_spaces=False))
            text = self.neutralise(text.rstrip("\ufffd").strip())
            if len(self._ids(text)) <= left:
                return text
        return ""

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _check_length(self, length: int, observation: Observation) -> None:
        needed = length + max(len(path) for path in self.action_paths)
        if needed > self.max_length:
            raise PromptError(
                f"{observation.symbol} {observation.date}: prompt and answer have {needed} tokens, "
                f"the model's context is {self.max_length}; lower --news_token_budget (now "
                f"{self.settings.news_token_budget}) or --lookback, use --prompt_style compact, or "
                "a model with a longer context"
            )

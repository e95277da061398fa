"""Prompts to token ids, split at the part that a bar's visits share; and each action's token
path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from flagtrl.errors import PromptError, kind_and_words
from flagtrl.language.prompts import ANSWER_PREFIX, Prompt, prompt_style
from flagtrl.language.settings import PromptSettings
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import MarketData, NewsItem, Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.ledger import ACTION_WORDS, Action
from flagtrl.market.observation import Observation
from flagtrl.market.play import Uniformly, likeliest, play
from flagtrl.market.policy import PolicyOutput, always, uniform
from flagtrl.signals import limited

# stands for the prompt while the chat template is rendered around it
TEMPLATE_S = 10.0  # that a chat template may take
_CONTENT = "<<<flagtrl-content>>>"


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """Token ids of one prompt: (L,) int64, of which the first `shared_length` are the same for
    every visit to its bar.

    paths: each action's token ids after it, where its actions are its own; None: the policy's.
    """

    ids: np.ndarray
    shared_length: int
    paths: tuple[tuple[int, ...], ...] | None = None

    @property
    def own_length(self) -> int:
        """Tokens after the shared part."""
        return len(self.ids) - self.shared_length

    @cached_property
    def key(self) -> bytes:
        """Equal where prompts are: their tokens, and the actions of their own."""
        if self.paths is None:
            return self.ids.tobytes()
        paths = repr([[int(token) for token in path] for path in self.paths])
        return self.ids.tobytes() + hashlib.sha256(paths.encode()).digest()


class PromptEncoder:
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
        self.tokenizer, self.settings, self.max_length = tokenizer, settings, max_length
        self._style = prompt_style(settings.prompt_style)
        self._special = _special_tokens(tokenizer)
        self._head, self._tail = _frame(tokenizer)
        self._bos = [] if tokenizer.chat_template else _leading_specials(tokenizer)
        self._shared_ids = lru_cache(maxsize=4096)(
            lambda text: tuple(self._tokenize(self._head + text))
        )
        self._headlines = lru_cache(maxsize=4096)(self._fit_headlines)
        self.action_paths = self._action_paths()

    def __reduce__(self) -> tuple[Any, ...]:
        """What makes it again, in another process: its caches stay behind."""
        return type(self), (self.tokenizer, self.settings, self.max_length)

    def prompt(self, observation: Observation) -> Prompt:
        """The words of one prompt, special tokens in news and symbol made harmless."""
        safe = replace(observation, symbol=self.neutralise(observation.symbol))
        return self._style(safe, self._headlines(observation.news))

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
        ids = self._tokenize(self._head + prompt.shared + prompt.own + self._tail)
        if tuple(ids[: len(shared)]) != shared:
            raise PromptError(
                f"{observation.symbol} {observation.date}: the prompt's shared part of "
                f"{len(shared)} tokens tokenises differently when the account part follows; prompt "
                f"style {self.settings.prompt_style!r} needs a boundary that this tokenizer keeps "
                "(end `shared` with a line break and start `own` with a letter)"
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
        ids = self._tokenize(self._head + prompt.shared + prompt.own + tail)
        self._check_length(len(ids), observation)
        return ids

    def check(self, window: Window, settings: MarketSettings, seed: int = 0) -> int:
        """Encode what one random trader sees on `window`, so that a prompt that cannot be used is
        found before training.

        Returns:
            The longest prompt's length in tokens.
        """
        world, lengths = Accounts(window, settings), []

        def policy(seen: Sequence[Observation]) -> PolicyOutput:
            lengths.append(len(self.encode(seen[0]).ids))
            return uniform(seen)

        play(policy, world, Uniformly(seed))
        policy(world.observe())  # the last bar's, which nothing is decided at
        return max(lengths)

    def fingerprint(self) -> str:
        """SHA-256 over the token ids of one made-up bar's prompt: equal where prompts read the
        same, chat template included.
        """
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
        ids = self._tokenize(self._head + prompt.shared + prompt.own + self._tail)
        return hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest()

    def neutralise(self, text: str) -> str:
        """`text` with every special token of the tokenizer broken by a space, so that it is read as
        plain text.
        """
        for _ in range(8):
            found = [token for token in self._special if token in text]
            if not found:
                return text
            for token in found:
                text = text.replace(
                    token, " ".join(token) if len(token) == 1 else f"{token[0]} {token[1:]}"
                )
        raise PromptError(
            f"the special tokens {found} cannot be removed from the text {text[:80]!r}; clean the "
            "news source"
        )

    def _tokenize(self, text: str) -> list[int]:
        return (
            self._bos + self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        )

    def _fit_headlines(self, news: tuple[tuple[NewsItem, ...], ...]) -> tuple[str, ...]:
        """Newest bar first, source order within a bar, until the budget is spent; the last one is
        cut to fit.
        """
        left, lines = self.settings.news_token_budget, []
        for item in (item for items in reversed(news) for item in items):
            if left <= 0:
                break
            # Quotes and backslashes would be escaped in the prompt's JSON, and cost more tokens
            # than were counted.
            text = " ".join(self.neutralise(item.text).replace('"', "'").replace("\\", "/").split())
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) > left:
                # Cutting may split a character in two; the replacement mark of its half is dropped.
                # No white space may stay at the end: before a line break it would merge with what
                # follows.
                text = (
                    str(self.tokenizer.decode(ids[:left], clean_up_tokenization_spaces=False))
                    .rstrip("\ufffd")
                    .strip()
                )
            lines.append(self.neutralise(text))
            left -= len(ids)
        return tuple(line for line in lines if line)

    def _action_paths(self) -> tuple[tuple[int, ...], ...]:
        context = self._head + self._tail
        prefix = self._tokenize(context)
        paths = []
        for word in ACTION_WORDS:
            ids = self._tokenize(context + word)
            if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
                raise PromptError(
                    f"the tokenizer merges the action {word!r} with {ANSWER_PREFIX!r} before it, "
                    "so its likelihood cannot be read off; use a tokenizer that splits at the "
                    "quote"
                )
            paths.append(tuple(ids[len(prefix) :]))
        if len(set(paths)) < len(paths) or any(
            self.tokenizer.unk_token_id in path for path in paths
        ):
            raise PromptError(
                f"the tokenizer spells {ACTION_WORDS} as {paths}; the paths must differ and be "
                "known to it"
            )
        return tuple(paths)

    def _check_length(self, length: int, observation: Observation) -> None:
        needed = length + max(len(path) for path in self.action_paths)
        if needed > self.max_length:
            raise PromptError(
                f"{observation.symbol} {observation.date}: prompt and answer have {needed} tokens, "
                f"the model's context is {self.max_length}; lower --news_token_budget (now "
                f"{self.settings.news_token_budget}) or --lookback, use --prompt_style compact, or "
                "a model with a longer context"
            )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    # Control tokens are not always flagged as special (Qwen's <think> is not); runs of blanks are
    # no control tokens.
    added = {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()
    }
    return tuple(sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True))


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What stands before and after the prompt's words: the chat template's turn, if any, and the
    answer prefix.
    """
    if not tokenizer.chat_template:
        return "", "\n" + ANSWER_PREFIX
    try:
        with limited(TEMPLATE_S):
            rendered = str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": _CONTENT}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
    # a template is a program of whoever made the tokenizer: it raises what it likes, or never ends
    except Exception as error:
        raise PromptError(
            f"the tokenizer's chat template fails on a user's message ({kind_and_words(error)}); "
            "pass a tokenizer with a usable template"
        ) from error
    head, found, tail = rendered.partition(_CONTENT)
    if not found:
        raise PromptError(
            "the tokenizer's chat template drops the user's message; pass a tokenizer with a "
            "usable template"
        )
    return head, tail + ANSWER_PREFIX


def _leading_specials(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before every text, such as a beginning-of-sequence token."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for i in range(len(full) - len(plain) + 1):
        if full[i : i + len(plain)] == plain:
            return list(full[:i])
    raise PromptError(
        "the tokenizer changes a text when it adds special tokens; no stable prompt can be made "
        "with it"
    )

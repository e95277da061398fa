"""PromptSettings: how a bar is put into words; needs no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.language.prompts import style_names
from flagtrl.own_code import named_own, saved_own


@dataclass(frozen=True)
class PromptSettings:
    """How a bar is put into words.

    Raises:
        ConfigError: a style that is none of ours and no `path/to/file.py:function`, or a negative
            budget.
    """

    prompt_style: str = field(
        default="paper",
        metadata={
            "help": (
                "paper: all its fields; compact: the same in few tokens; markov: the position is "
                "all of the account; or one of your own, path/to/file.py:function"
            )
        },
    )
    news_token_budget: int = field(
        default=64,
        metadata={
            "help": "tokens of news text in a prompt, newest first; 0: sentiment counts only"
        },
    )

    def __post_init__(self) -> None:
        named_own("prompt_style", self.prompt_style, style_names())
        if self.news_token_budget < 0:
            raise ConfigError(
                f"news_token_budget is {self.news_token_budget}; it must be at least 0 tokens"
            )

    @property
    def own_style(self) -> bool:
        """Whether the style is code of the user's own."""
        return self.prompt_style not in style_names()


def saved_prompts(saved: Mapping[str, Any], named: str | None = None) -> PromptSettings:
    """The prompts of a saved run, as its record has them, with the user's `named` style where one
    is named.

    Raises:
        AdapterError: settings that are none of ours.
        ConfigError: a saved style that is code, and is not named.
    """
    if "prompt_style" not in saved:
        raise AdapterError("the run is of another task: its record names no prompt_style")
    try:
        settings = PromptSettings(**saved)
    except TypeError as error:
        raise AdapterError(f"the run's record is damaged (its prompt: {error})") from error
    style = saved_own("prompt_style", settings.prompt_style, named, style_names())
    return replace(settings, prompt_style=style)

"""PromptSettings: how a bar is put into words; needs no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from flagtrl.errors import ConfigError
from flagtrl.language.prompts import prompt_style


@dataclass(frozen=True)
class PromptSettings:
    """How a bar is put into words.

    Raises:
        ConfigError: an unknown style or a negative budget.
    """

    prompt_style: str = field(
        default="paper",
        metadata={
            "help": (
                "paper: all its fields; compact: the same in few tokens; markov: the position is "
                "all of the account"
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
        prompt_style(self.prompt_style)
        if self.news_token_budget < 0:
            raise ConfigError(
                f"news_token_budget is {self.news_token_budget}; it must be at least 0 tokens"
            )

"""What a trainer is given to learn: environments, and how what they show is read.

`learning/texts.py` makes a task of any gymnasium environment; `trading.py` is a market's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.losses import Targets
from flagtrl.learning.meters import Meters
from flagtrl.learning.samples import SampleRows
from flagtrl.play.loop import Environments
from flagtrl.policy.acting import Ask
from flagtrl.record import RunRecord


class Reader(Protocol):
    """What makes a prompt of what an agent may know."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Is saved with the policy."""

    @property
    def action_paths(self) -> tuple[tuple[int, ...], ...] | None:
        """The actions' token ids; None where every prompt brings its own."""

    def encode(self, seen: Any, /) -> EncodedPrompt:
        """Token ids of the prompt."""

    def described(self) -> dict[str, Any]:
        """Its settings, as a run's record has them."""

    def fingerprint(self) -> str:
        """Equal where prompts read the same."""


class Estimator(Protocol):
    """Advantages that need no sampled action."""

    def gather(
        self, number: int, ask: Ask, everyones: Callable[[Tensor], Tensor], meters: Meters
    ) -> tuple[SampleRows, Targets]:
        """What rollout `number` teaches the policy behind `ask`.

        Args:
            number: from 0.
            ask: the policy.
            everyones: (n,) of this process -> those of all processes.
            meters: are told.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""

    def load(self, state: Mapping[str, Any], /) -> None:
        """Go on from `state()`."""


class Task(Protocol):
    """Environments, and how they are read.

    Attributes:
        encoder: what is seen, to a prompt.
        words: the actions, in their order; None where they are not the same in every state.
    """

    encoder: Any  # a Reader
    words: tuple[str, ...] | None

    def environments(self, count: int) -> Environments:
        """`count` new environments."""

    def survey(self) -> tuple[list[EncodedPrompt], np.ndarray]:
        """Prompts and legal (N, A) on which the untrained policy is asked: the label prior and the
        heads' standardisation are measured on them.
        """

    def state_of(self, legal: np.ndarray) -> str:
        """What states with these legal actions (A,) are called."""

    def ahead(self) -> Sequence[EncodedPrompt]:
        """Every prompt that there can be, where that is known; else none."""

    def check(self, args: PPOConfig, known: bool) -> None:
        """Refuse what cannot be done in this task; ConfigError.

        Args:
            args: settings.
            known: whether every prompt is known ahead.
        """

    def exact(self, args: PPOConfig, own: range) -> Estimator | None:
        """What `advantage` asks for in place of sampled actions; None for those.

        Args:
            args: settings.
            own: which of a rollout's windows are this process's.
        """

    def recorded(self, record: RunRecord) -> RunRecord:
        """`record` with what is known of the task."""

"""What goes into a policy, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flagtrl.errors import ConfigError
from flagtrl.language.prompt import EncodedPrompt

Paths = tuple[tuple[int, ...], ...]  # each action's token ids


class ActorCriticOutput(NamedTuple):
    """Policy and value of B prompts.

    logprobs: (B, A) float32, log pi(a | s); -inf for illegal actions, the legal ones' exponentials
    sum to 1. values: (B,) float32, V(s). language_kl: (B,) float32, how far the language model is
    from its base (`scoring.vocabulary_kl`); None where it was not asked for.
    """

    logprobs: Tensor
    values: Tensor
    language_kl: Tensor | None = None


@dataclass(frozen=True)
class PromptBatch:
    """B left-padded prompts: input_ids (B, L) int64, attention_mask (B, L) int64, legal (B, A)
    bool.

    paths: of each prompt its own actions' token ids, or None; None where no prompt has any.
    """

    input_ids: Tensor
    attention_mask: Tensor
    legal: Tensor
    paths: tuple[Paths | None, ...] | None = None

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of ActorCritic.forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "legal": self.legal,
            **({} if self.paths is None else {"paths": self.paths}),
        }

    @classmethod
    def of(
        cls, prompts: Sequence[EncodedPrompt], legal: np.ndarray, device: torch.device | str = "cpu"
    ) -> PromptBatch:
        """Pad prompts on the left with id 0, which the mask hides."""
        check_actions(prompts, legal)
        length = max(len(p.ids) for p in prompts)
        ids = np.zeros((len(prompts), length), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt.ids) :] = prompt.ids
            mask[row, length - len(prompt.ids) :] = 1
        paths = tuple(prompt.paths for prompt in prompts)
        arrays = (ids, mask, np.ascontiguousarray(legal))
        ids_on, mask_on, legal_on = (torch.from_numpy(array).to(device) for array in arrays)
        own = paths if any(each is not None for each in paths) else None
        return cls(ids_on, mask_on, legal_on, own)


def check_actions(prompts: Sequence[EncodedPrompt], legal: np.ndarray) -> None:
    """Refuse prompts with more actions of their own than legal (B, A) has columns, and legal
    actions that they have not.
    """
    width = legal.shape[1]
    for row, prompt in enumerate(prompts):
        own = width if prompt.paths is None else len(prompt.paths)
        if own > width:
            raise ConfigError(
                f"prompt {row} has {own} actions of its own, legal has {width} columns; give legal "
                "a column for every action"
            )
        if legal[row, own:].any():
            raise ConfigError(
                f"prompt {row} has {own} actions of its own, and legal allows it another; let "
                "legal be False in the columns that it has no action for"
            )

"""What goes into a policy, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flagtrl.language.prompt import EncodedPrompt


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
    """

    input_ids: Tensor
    attention_mask: Tensor
    legal: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of ActorCritic.forward."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "legal": self.legal,
        }

    @classmethod
    def of(
        cls, prompts: Sequence[EncodedPrompt], legal: np.ndarray, device: torch.device | str = "cpu"
    ) -> PromptBatch:
        """Pad prompts on the left with id 0, which the mask hides."""
        length = max(len(p.ids) for p in prompts)
        ids = np.zeros((len(prompts), length), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt.ids) :] = prompt.ids
            mask[row, length - len(prompt.ids) :] = 1
        return cls(
            *(torch.from_numpy(x).to(device) for x in (ids, mask, np.ascontiguousarray(legal)))
        )

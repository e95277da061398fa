"""From a rollout to what is learnt from: its samples, with the advantages that the settings name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flagtrl.language.tokens import EncodedPrompt
from flagtrl.learning.advantages import generalised_advantages, leave_one_out, whiten
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.rollout import Rollout


@dataclass(frozen=True, eq=False)
class Samples:
    """A rollout as N = T * B samples, ready for updates; all tensors are indexed by sample, float32, on the CPU."""

    prompts: Sequence[EncodedPrompt]
    legal: Tensor  # (N, A) bool
    actions: Tensor  # (N,) int64
    old_logprobs: Tensor  # (N, A)
    reference: Tensor  # (N, A)
    old_values: Tensor  # (N,)
    advantages: Tensor  # (N,)
    returns: Tensor  # (N,)

    @classmethod
    def of(cls, rollout: Rollout, reference: Tensor, advantages: Tensor, returns: Tensor) -> Samples:
        """A rollout's steps and environments as one axis."""
        return cls(
            prompts=rollout.prompts,
            legal=rollout.legal.flatten(0, 1),
            actions=rollout.actions.flatten(),
            old_logprobs=rollout.logprobs.flatten(0, 1),
            reference=reference,
            old_values=rollout.values.flatten(),
            advantages=advantages,
            returns=returns,
        )


def estimate(rollout: Rollout, config: PPOConfig, everyones: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Advantages (N,) and returns (N,) of a rollout's samples.

    Args:
        rollout: of this process.
        config: discount, estimator, and whether advantages are whitened.
        everyones: (N,) of this process -> those of all processes, in the order of their ranks.
    """
    by_critic = generalised_advantages(
        rollout.rewards,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.ended,
        config.gamma,
        config.gae_lambda,
    )
    advantages, returns = by_critic.flatten(), (by_critic + rollout.values).flatten()
    if config.advantage == "leave_one_out":
        first = config.process_index * len(returns)
        among = leave_one_out(everyones(returns), everyones(_states(rollout.prompts)), slice(first, first + len(returns)))
        advantages = torch.where(among.isnan(), advantages, among)  # alone in its state: the critic is the baseline
    return (whiten(advantages, everyones(advantages)) if config.norm_adv else advantages), returns


def _states(prompts: Sequence[EncodedPrompt]) -> Tensor:
    """(N,) int64, equal where prompts are, in every process alike."""
    digests = (hashlib.sha256(prompt.ids.tobytes()).digest()[:8] for prompt in prompts)
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])

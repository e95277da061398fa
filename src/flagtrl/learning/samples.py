"""From a rollout to what is learnt from: its samples, with the advantages that the settings
name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.learning.advantages import generalised_advantages, leave_one_out, whiten
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.losses import Targets
from flagtrl.learning.rollout import Rollout
from flagtrl.policy.batch import ActorCriticOutput


class SampleRows(Protocol):
    """Prompts of a rollout, with what the policy that acted made of them: (..., A) and (...)."""

    @property
    def prompts(self) -> tuple[EncodedPrompt, ...]:
        """In the order of the others' flattened axes."""

    @property
    def legal(self) -> Tensor:
        """(..., A) bool."""

    @property
    def logprobs(self) -> Tensor:
        """(..., A) float32, log pi_old."""

    @property
    def values(self) -> Tensor:
        """(...) float32, V."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A rollout as N samples, ready for updates; all tensors are indexed by sample, float32, on the
    CPU.
    """

    prompts: Sequence[EncodedPrompt]
    legal: Tensor  # (N, A) bool
    old: ActorCriticOutput  # of the policy that acted
    reference: Tensor | None  # (N, A) log pi_ref, where it was asked
    targets: Targets

    @classmethod
    def of(cls, rollout: SampleRows, reference: Tensor | None, targets: Targets) -> Samples:
        """A rollout's steps, environments and positions as one axis."""
        old = ActorCriticOutput(rollout.logprobs.flatten(0, -2), rollout.values.flatten())
        return cls(rollout.prompts, rollout.legal.flatten(0, -2), old, reference, targets)

    def weighted(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of (N,) values, the sum over how often the policy is in each sample, and of that."""
        return (values * self.targets.visits).sum(), self.targets.visits.sum()

    def chosen(self, rows: Tensor, device: torch.device) -> Samples:
        """Those of `rows` (n,), what a loss needs of them on a device."""
        old, targets = (
            [part[rows].to(device) for part in parts if part is not None]
            for parts in (self.old, self.targets)
        )
        prompts = [self.prompts[row] for row in rows.tolist()]
        reference = None if self.reference is None else self.reference[rows].to(device)
        return Samples(
            prompts, self.legal[rows], ActorCriticOutput(*old), reference, Targets(*targets)
        )


def sampled_targets(
    rollout: Rollout, config: PPOConfig, everyones: Callable[[Tensor], Tensor]
) -> Targets:
    """Of actions that were sampled: N is steps x environments.

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
        among = leave_one_out(
            everyones(returns),
            everyones(_states(rollout.prompts)),
            slice(first, first + len(returns)),
        )
        # alone in its state: the critic is the baseline
        advantages = torch.where(among.isnan(), advantages, among)
    advantages = whiten(advantages, everyones(advantages)) if config.norm_adv else advantages
    taken = functional.one_hot(rollout.actions.flatten(), rollout.legal.shape[-1]).to(
        advantages.dtype
    )
    return Targets(taken * advantages[:, None], taken, returns, torch.ones_like(returns))


def _states(prompts: Sequence[EncodedPrompt]) -> Tensor:
    """(N,) int64, equal where prompts are, in every process alike."""
    digests = (hashlib.sha256(prompt.key).digest()[:8] for prompt in prompts)
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])

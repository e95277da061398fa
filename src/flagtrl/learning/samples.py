"""From a rollout to what is learnt from: its samples, with the advantages that the settings
name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flagtrl.language.tokens import EncodedPrompt
from flagtrl.learning.advantages import action_values, generalised_advantages, leave_one_out, whiten
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.losses import Targets
from flagtrl.learning.rollout import Rollout
from flagtrl.learning.windows import WindowRollout
from flagtrl.policy.batch import ActorCriticOutput


@dataclass(frozen=True, eq=False)
class Samples:
    """A rollout as N samples, ready for updates; all tensors are indexed by sample, float32, on the
    CPU.
    """

    prompts: Sequence[EncodedPrompt]
    legal: Tensor  # (N, A) bool
    old: ActorCriticOutput  # of the policy that acted
    reference: Tensor  # (N, A) log pi_ref
    targets: Targets

    @classmethod
    def of(cls, rollout: Rollout | WindowRollout, reference: Tensor, targets: Targets) -> Samples:
        """A rollout's steps, environments and positions as one axis."""
        old = ActorCriticOutput(rollout.logprobs.flatten(0, -2), rollout.values.flatten())
        return cls(rollout.prompts, rollout.legal.flatten(0, -2), old, reference, targets)

    def weighted(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of (N,) values, the sum over how often the policy is in each sample, and of that."""
        return (values * self.targets.visits).sum(), self.targets.visits.sum()

    def chosen(self, rows: Tensor, device: torch.device) -> Samples:
        """Those of `rows` (n,), what a loss needs of them on a device."""
        old, targets = (
            [part[rows].to(device) for part in parts] for parts in (self.old, self.targets)
        )
        prompts = [self.prompts[row] for row in rows.tolist()]
        reference = self.reference[rows].to(device)
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


def exact_targets(rollout: WindowRollout, config: PPOConfig, unit: float) -> Targets:
    """Of every action in every position: the policy gradient of the expected return, without
    sampling.

    grad J = sum_t gamma^t sum_h d_t(h) sum_a grad pi(a | t, h) A_t(h, a), A = Q - V (Sutton et al.
    2000, theorem 1). The weights gamma^t d_t(h) pi_old(a | t, h) turn the ratio's gradient into
    that of pi; the number of positions multiplies them, since a loss is a mean over samples, and a
    last decision that earns nothing has none.

    Args:
        rollout: of this process.
        config: discount, and whether advantages are in units of `unit`.
        unit: the deviation of what a bar pays.
    """
    q, v = action_values(rollout.logprobs.double(), rollout.rewards, rollout.after, config.gamma)
    discounts = config.gamma ** torch.arange(len(q), dtype=q.dtype) * rollout.counts
    weights = discounts[:, None, None, None] * rollout.joint * q.shape[2]
    visits = rollout.counts[:, None, None] * rollout.occupancy * q.shape[2]
    advantages = (q - v[..., None]) / (unit if config.norm_adv else 1.0)
    rows = (advantages.flatten(0, -2), weights.flatten(0, -2), v.flatten(), visits.flatten())
    return Targets(*(each.float() for each in rows))


def _states(prompts: Sequence[EncodedPrompt]) -> Tensor:
    """(N,) int64, equal where prompts are, in every process alike."""
    digests = (hashlib.sha256(prompt.ids.tobytes()).digest()[:8] for prompt in prompts)
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])

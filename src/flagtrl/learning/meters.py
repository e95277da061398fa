"""What is logged: sums and counts per name, as means over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from flagtrl.learning.losses import explained_variance
from flagtrl.learning.rollout import Rollout
from flagtrl.policy.backbone import MEASURES

OF_ROLLOUTS = (
    "reward",
    "episode_return",
    "episode_length",
    "explained_variance",
    "env_steps_per_second",
)
OF_UPDATES = (
    "policy_loss",
    "value_loss",
    "entropy",
    "kl",
    "language_kl",
    "kl_old",
    "kl_first_update",
    "ratio",
    "clip_fraction",
    "risk",
    "risk_multiplier",
)


class Meters:
    """Sums since the last look.

    Args:
        accelerator: the processes that share them.
        words: the actions, where they are the same in every state; how often each is taken is told.
    """

    def __init__(self, accelerator: Accelerator, words: Sequence[str] = ()):
        self.accelerator, self.words = accelerator, tuple(words)
        self._sums: dict[str, Tensor] = {}
        self._minibatch: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Values that sum to `total`, `count` of them (or their weights' sum)."""
        entry = torch.zeros(2, dtype=torch.float32, device=self.accelerator.device)
        entry[0], entry[1] = total, count
        self._sums[name] = self._sums[name] + entry if name in self._sums else entry
        self._minibatch[name] = self._minibatch[name] + entry if name in self._minibatch else entry

    def begin_minibatch(self) -> None:
        """From here `of_minibatch` counts."""
        self._minibatch.clear()

    def of_minibatch(self, name: str) -> float:
        """The mean of a name's entries since `begin_minibatch`, over all processes."""
        total, count = self.accelerator.reduce(self._minibatch[name], reduction="sum").tolist()
        return total / count if count else 0.0  # none: nothing that can be learnt from

    def means(self) -> dict[str, float]:
        """Every name's mean, of those that have a value in any process; begins anew."""
        shares = (f"action_share/{word}" for word in self.words)
        names = (*OF_ROLLOUTS, *shares, *OF_UPDATES, *MEASURES)
        nothing = torch.zeros(2, device=self.accelerator.device)
        sums = torch.stack([self._sums.get(name, nothing) for name in names])
        self._sums.clear()
        reduced = self.accelerator.reduce(sums, reduction="sum").tolist()
        return {
            name: total / count
            for name, (total, count) in zip(names, reduced, strict=True)
            if count
        }

    def add_rollout(self, rollout: Rollout, returns: Tensor) -> None:
        """What happened in the environments."""
        self.add("reward", rollout.rewards.sum(), len(rollout))
        if rollout.episode_returns:
            self.add("episode_return", sum(rollout.episode_returns), len(rollout.episode_returns))
            self.add("episode_length", sum(rollout.episode_lengths), len(rollout.episode_lengths))
        variance = explained_variance(rollout.values.flatten(), returns)
        if variance.isfinite():
            self.add("explained_variance", variance, 1)
        taken = rollout.actions.flatten()
        self.add_actions(torch.bincount(taken, minlength=rollout.legal.shape[-1]), len(rollout))

    def add_actions(self, counts: Iterable[Tensor], decisions: Tensor | float) -> None:
        """How often each of the A actions was taken, in so many decisions."""
        for word, count in zip(self.words, counts, strict=bool(self.words)):
            self.add(f"action_share/{word}", count, decisions)

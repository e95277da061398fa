"""Exact advantages: of every action in both positions of windows that have happened, at what the
policy's own frequencies say; no action is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flagtrl.exact.objectives import (
    Functional,
    Multiplier,
    drawdown,
    marginal,
    shortfall,
    turnover,
)
from flagtrl.exact.windows import WindowRollout, Windows
from flagtrl.learning.advantages import action_values
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.losses import Targets, explained_variance
from flagtrl.learning.meters import Meters
from flagtrl.policy.acting import Ask


def exact_targets(
    rollout: WindowRollout, config: PPOConfig, unit: float, penalty: Functional | None = None
) -> Targets:
    """Of every action in every position: the policy gradient of the expected return, without
    sampling.

    grad J = sum_t gamma^t sum_h d_t(h) sum_a grad pi(a | t, h) A_t(h, a), A = Q - V (Sutton et al.
    2000, theorem 1). The weights gamma^t d_t(h) pi_old(a | t, h) turn the ratio's gradient into
    that of pi; the number of positions multiplies them, since a loss is a mean over samples, and a
    last decision that earns nothing has none. A reward of moments, or a penalty, makes J another
    functional of the joint d_t(h) pi(a | t, h): then rewards are its slopes, which have the
    discount in them, as has what the critic learns.

    Args:
        rollout: of this process.
        config: discount, and whether advantages are in units of `unit`.
        unit: what an advantage of 1 is, as in `Windows`.
        penalty: is taken off what is expected.
    """
    rewards, gamma = rollout.rewards, config.gamma
    if rewards is None or penalty is not None:
        rewards, gamma = (
            marginal(lambda joint: _worth(rollout, config, penalty, joint), rollout.joint),
            1.0,
        )
    q, v = action_values(rollout.logprobs.double(), rewards, rollout.after, gamma)
    discounts = gamma ** torch.arange(len(q), dtype=q.dtype) * rollout.counts
    weights = discounts[:, None, None, None] * rollout.joint * q.shape[2]
    visits = rollout.counts[:, None, None] * rollout.occupancy * q.shape[2]
    advantages = (q - v[..., None]) / (unit if config.norm_adv else 1.0)
    rows = (advantages.flatten(0, -2), weights.flatten(0, -2), v.flatten(), visits.flatten())
    return Targets(*(each.float() for each in rows))


def _worth(
    rollout: WindowRollout, config: PPOConfig, penalty: Functional | None, joint: Tensor
) -> Tensor:
    value = rollout.value(joint, config.gamma)
    return value if penalty is None else value - penalty(joint)


def risk_of(name: str, rollout: WindowRollout, level: float) -> Functional:
    """A risk of the settings, as a functional of a rollout's windows."""
    return {
        "turnover": lambda joint: turnover(joint, rollout.after),
        "drawdown": lambda joint: drawdown(joint, rollout.returns),
        "cvar": lambda joint: shortfall(joint, rollout.returns, level),
    }[name]


class Exact:
    """A run's windows, and what its risk costs at the moment.

    Args:
        windows: of this process.
        config: the settings.
    """

    def __init__(self, windows: Windows, config: PPOConfig):
        self.windows, self.config = windows, config
        self.multiplier = Multiplier(config.risk_coef, config.risk_limit, config.risk_rate)

    def gather(
        self, number: int, ask: Ask, everyones: Callable[[Tensor], Tensor], meters: Meters
    ) -> tuple[WindowRollout, Targets]:
        """The windows of rollout `number`, and what is learnt from them.

        Args:
            number: from 0.
            ask: the policy.
            everyones: (n,) of this process -> those of all processes.
            meters: are told.
        """
        rollout, config = self.windows.collect(number, ask), self.config
        if config.risk == "none":
            targets = exact_targets(rollout, config, self.windows.unit)
        else:
            risk = risk_of(config.risk, rollout, config.risk_level)
            price = self.multiplier.value * self._unit_of_risk()
            targets = exact_targets(
                rollout, config, self.windows.unit, lambda joint: price * risk(joint)
            )
            found = float(everyones(risk(rollout.joint).float()).mean())
            meters.add("risk", found, 1)
            meters.add("risk_multiplier", self.multiplier.value, 1)
            self.multiplier.update(found)
        _tell(meters, rollout, targets)
        return rollout, targets

    def _unit_of_risk(self) -> float:
        """What a multiplier of 1 costs: a trade, or as much as a fall of one, costs one daily
        volatility; of a bar's shortfall every bar of the window does.
        """
        bars = 1 if self.config.risk == "drawdown" else self.windows.steps
        if not self.config.norm_adv:
            return bars
        money = 1.0 if self.config.risk == "turnover" else 1 / self.windows.volatility
        return bars * money * self.windows.unit

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {} if self.config.risk == "none" else {"risk_multiplier": self.multiplier.value}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.multiplier.value = state.get("risk_multiplier", self.multiplier.value)


def _tell(meters: Meters, rollout: WindowRollout, targets: Targets) -> None:
    """What the policy expects on its windows; no action was sampled."""
    joint, decisions = rollout.joint, rollout.occupancy.sum()
    meters.add("reward", rollout.value(joint, 1.0).sum(), decisions)
    meters.add_actions([joint[..., a].sum() for a in range(joint.shape[-1])], decisions)
    variance = explained_variance(rollout.values.flatten(), targets.returns, targets.visits)
    if variance.isfinite():
        meters.add("explained_variance", variance, 1)

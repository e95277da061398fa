"""A Stable-Baselines3 policy that reads a bar as numbers, as the same kind of Policy as all others.

Such a model is trained on `TradingEnv` itself, without language. Beside a language model it shows
what words add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation, numbers
from flagtrl.market.policy import Policy, PolicyOutput, legal_of

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


def numeric_policy(model: OnPolicyAlgorithm, lookback: int) -> Policy:
    """The policy of an actor-critic of Stable-Baselines3 (PPO, A2C) that was trained on TradingEnv.

    It may choose what can do nothing, which is to hold: so the chance of an illegal action counts
    as Hold's, and what happens is as likely as in the environment.

    Args:
        model: with the observation and action space of TradingEnv.
        lookback: of the market settings that it was trained with, bars.
    """

    @torch.no_grad()
    def policy(seen: Sequence[Observation]) -> PolicyOutput:
        rows = [numbers(each, lookback) for each in seen]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        observed, _ = model.policy.obs_to_tensor(batch)
        chosen: Any = model.policy.get_distribution(observed)
        chances = chosen.distribution.probs.cpu().numpy()
        values = model.policy.predict_values(observed).flatten().cpu().numpy()
        legal = legal_of(seen)
        chances = chances.astype(np.float64)
        chances[:, Action.HOLD] += np.where(legal, 0.0, chances).sum(-1)
        with np.errstate(divide="ignore"):
            return PolicyOutput(np.log(np.where(legal, chances, 0.0)), values)

    return policy

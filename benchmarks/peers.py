"""The peer that reads numbers: Stable-Baselines3's PPO, with its own defaults, on the facts that a
`markov` prompt shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.policy.numeric import ROLLOUT, features, headlines, held_where_illegal, learner, padded

if TYPE_CHECKING:
    from learning import Curve


class _Looking(BaseCallback):
    def __init__(self, curve: Curve, due: list[float], texts: Sequence[str]):
        super().__init__()
        self.curve, self.due = curve, due
        rows = [features(seen, texts) for seen in curve.seen]
        width = max(map(len, rows))
        self.rows = torch.from_numpy(np.stack([padded(row, width) for row in rows]))

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.due[0]:
            self.look()

    def look(self) -> None:
        self.due = [steps for steps in self.due if steps > self.num_timesteps] or [math.inf]
        self.curve.look(self.num_timesteps, self._ask)

    @torch.no_grad()
    def _ask(self) -> np.ndarray:
        return held_where_illegal(self.model, self.rows, self.curve.legal).logprobs  # type: ignore[arg-type]


def learn(
    train: Window,
    settings: MarketSettings,
    seed: int,
    steps: int,
    looks: Sequence[float],
    curve: Curve,
) -> None:
    """Train for `steps` environment steps, in whole rollouts; `looks` are shares of them."""
    texts = headlines(train)
    model = learner("mlp", train, settings, seed, texts)
    looking = _Looking(curve, [share * steps for share in looks], texts)
    model.learn(steps - steps % ROLLOUT, callback=looking)
    looking.look()

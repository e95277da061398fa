"""The peer that reads numbers: Stable-Baselines3's PPO, with its own defaults, on the facts that a
`markov` prompt shows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation, count_sentiments

if TYPE_CHECKING:
    from learning import Curve

EPISODE, ROLLOUT = 40, 512  # decisions; n_steps of 2,048 would leave six updates to the budget
MOVE = 0.01  # a move of 1%, as the suite's markets have


def features(seen: Observation, texts: Sequence[str] = ()) -> np.ndarray:
    """The last moves in percent, the day's news by its sentiment, which of `texts` it is, and the
    position.
    """
    moves = np.diff(np.log(seen.prices)) / MOVE
    said = [item.text for item in seen.news[-1]]
    which = [float(text in said) for text in texts]
    position = float(seen.shares > 0)
    row = [*moves, *count_sentiments(seen.news[-1]), *which, position]
    return np.array(row, dtype=np.float32)


def headlines(window: Window) -> list[str]:
    """The different texts of a window's news."""
    news = window.market.news[window.start : window.stop]
    return sorted({item.text for day in news for item in day})


class Numbers(gymnasium.ObservationWrapper):
    """TradingEnv with `features` in place of its observation; moves before the first price are
    0.
    """

    def __init__(self, env: TradingEnv, texts: Sequence[str]):
        super().__init__(env)
        self.texts, self.width = texts, env.settings.lookback - 1 + 4 + len(texts)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.width,))

    def observation(self, observation: dict) -> np.ndarray:
        """What gymnasium's wrapper asks for."""
        seen = self.env.unwrapped.observe()  # type: ignore[attr-defined]
        return padded(features(seen, self.texts), self.width)


def padded(row: np.ndarray, width: int) -> np.ndarray:
    """Zeros for the moves that a window's first bars do not have."""
    return np.concatenate([np.zeros(width - len(row), dtype=np.float32), row])


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
        chances = self.model.policy.get_distribution(self.rows).distribution.probs.double().numpy()
        legal = self.curve.legal
        # an order that can do nothing is to hold
        chances[:, Action.HOLD] += np.where(legal, 0.0, chances).sum(-1)
        with np.errstate(divide="ignore"):
            return np.log(np.where(legal, chances, 0.0))


def learn(
    train: Window,
    settings: MarketSettings,
    seed: int,
    steps: int,
    looks: Sequence[float],
    curve: Curve,
) -> None:
    """Train for `steps` environment steps, in whole rollouts; `looks` are shares of them."""
    logging.getLogger("stable_baselines3").setLevel(logging.WARNING)
    trading = MarketSettings(**{**vars(settings), "episode_start": "random"})
    texts = headlines(train)
    env = Numbers(TradingEnv(train, trading, EPISODE), texts)
    model = PPO("MlpPolicy", env, n_steps=ROLLOUT, gamma=1.0, seed=seed, device="cpu")
    looking = _Looking(curve, [share * steps for share in looks], texts)
    model.learn(steps - steps % ROLLOUT, callback=looking)
    looking.look()

"""Policies that read a bar as numbers, as the same kind of Policy as all others: a model of
Stable-Baselines3 on TradingEnv's own observation, or on a few features of no unit.

Beside a language model they show what words add.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from flagtrl.market.data import Window, count_sentiments
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.observation import Observation, numbers
from flagtrl.play.policy import Policy, PolicyOutput, legal_of

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


MOVE = 0.01  # the unit of price moves
EPISODE = 40  # decisions of a training episode, which begins on a random day
ROLLOUT = 512  # decisions between two updates; SB3's 2,048 would leave six to the paper's budget
HIDDEN = {"linear": [], "mlp": [64, 64]}  # widths of the layers of policy and critic


def features(seen: Observation, texts: Sequence[str] = ()) -> np.ndarray:
    """The last moves in percent, the shares of the day's news by sentiment, which of `texts` it
    is, and whether shares are held: what a `markov` prompt tells.
    """
    moves = np.diff(np.log(seen.prices)) / MOVE
    counts = np.array(count_sentiments(seen.news[-1]), dtype=np.float64)
    said = [item.text for item in seen.news[-1]]
    which = [float(text in said) for text in texts]
    row = [*moves, *(counts / max(counts.sum(), 1.0)), *which, float(seen.shares > 0)]
    return np.array(row, dtype=np.float32)


def headlines(window: Window) -> list[str]:
    """The different texts of a window's news."""
    news = window.market.news[window.start : window.stop]
    return sorted({item.text for day in news for item in day})


class Numbers(gymnasium.ObservationWrapper):
    """TradingEnv with `features` in place of its observation; moves before the first price are
    0.

    Args:
        env: trades.
        texts: see `features`.
    """

    def __init__(self, env: TradingEnv, texts: Sequence[str] = ()):
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


def learner(
    kind: str, train: Window, settings: MarketSettings, seed: int, texts: Sequence[str] = ()
) -> OnPolicyAlgorithm:
    """Stable-Baselines3's PPO with its own defaults, on `features` of a training window.

    Args:
        kind: of HIDDEN.
        train: the window.
        settings: execution, costs, look-back and reward.
        seed: of its weights and episodes.
        texts: see `features`.
    """
    from stable_baselines3 import PPO  # an extra

    logging.getLogger("stable_baselines3").setLevel(logging.WARNING)
    trading = replace(settings, episode_start="random")
    env = Numbers(TradingEnv(train, trading, EPISODE), texts)
    how: Any = {"policy_kwargs": {"net_arch": HIDDEN[kind]}, "seed": seed, "device": "cpu"}
    return PPO("MlpPolicy", env, n_steps=ROLLOUT, gamma=1.0, **how)


def of_features(model: OnPolicyAlgorithm, lookback: int, texts: Sequence[str] = ()) -> Policy:
    """The policy of what `learner` gives; an order that can do nothing is to hold."""
    width = lookback - 1 + 4 + len(texts)

    @torch.no_grad()
    def policy(seen: Sequence[Observation]) -> PolicyOutput:
        rows = torch.from_numpy(np.stack([padded(features(each, texts), width) for each in seen]))
        return held_where_illegal(model, rows, legal_of(seen))

    return policy


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
        return held_where_illegal(model, observed, legal_of(seen))

    return policy


def held_where_illegal(model: OnPolicyAlgorithm, observed: Any, legal: np.ndarray) -> PolicyOutput:
    """What a model says of B observations, as its policy takes them; the chance of an order that
    can do nothing counts as Hold's, which it is.
    """
    chosen: Any = model.policy.get_distribution(observed)
    chances = chosen.distribution.probs.cpu().numpy().astype(np.float64)
    values = model.policy.predict_values(observed).flatten().cpu().numpy()
    chances[:, Action.HOLD] += np.where(legal, 0.0, chances).sum(-1)
    with np.errstate(divide="ignore"):
        return PolicyOutput(np.log(np.where(legal, chances, 0.0)), values)

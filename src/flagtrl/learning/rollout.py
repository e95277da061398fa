"""collect(): the policy acts in its environments; what happened comes back as one frozen record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.play.loop import Environments, Played, play
from flagtrl.play.policy import Policy


@dataclass(frozen=True, eq=False)
class Rollout:
    """T steps of B environments, time first.

    Attributes:
        prompts: T * B prompts; step t of environment b is at t * B + b.
        legal: (T, B, A) bool.
        actions: (T, B) int64.
        logprobs: (T, B, A) float32, log pi_old.
        values: (T, B) float32, V(s_t).
        next_values: (T, B) float32, V of the state a step led to, before any reset; 0 where that
            was terminal.
        rewards: (T, B) float32.
        terminated, ended: (T, B) bool.
        episode_returns, episode_lengths: of the episodes that ended in it.
    """

    prompts: tuple[EncodedPrompt, ...]
    legal: Tensor
    actions: Tensor
    logprobs: Tensor
    values: Tensor
    next_values: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    episode_returns: tuple[float, ...]
    episode_lengths: tuple[int, ...]

    @classmethod
    def of(
        cls,
        played: Played,
        episode_returns: tuple[float, ...] = (),
        episode_lengths: tuple[int, ...] = (),
    ) -> Rollout:
        """What was played, as tensors in the types that are learnt from."""
        return cls(
            prompts=played.read,
            legal=torch.from_numpy(played.legal),
            actions=torch.from_numpy(played.actions),
            logprobs=torch.from_numpy(played.logprobs).float(),
            values=torch.from_numpy(played.predictions).float(),
            next_values=torch.from_numpy(played.next_predictions).float(),
            rewards=torch.from_numpy(played.rewards).float(),
            terminated=torch.from_numpy(played.terminated),
            ended=torch.from_numpy(played.ended),
            episode_returns=episode_returns,
            episode_lengths=episode_lengths,
        )

    def __len__(self) -> int:
        return self.actions.numel()


class Collector:
    """Environments that live across rollouts, with the generator that samples their actions.

    Args:
        envs: B environments; an episode that ends is reset at once.
        seed: of the environments (seed + first + b) and of the sampling.
        first: these environments are number first ... first + B - 1 of `total`.
        total: environments of all processes; None: these are all.
        anywhere: whether something that is so here, or not, is so in any process that must run the
            same forwards.
    """

    def __init__(
        self,
        envs: Environments,
        seed: int,
        first: int = 0,
        total: int | None = None,
        anywhere: Callable[[bool], bool] = bool,
    ):
        self.envs, self.anywhere = envs, anywhere
        self.first, self.total = first, total or envs.num_envs
        self.generator = torch.Generator().manual_seed(seed)
        self.envs.reset(seed=seed + first)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, dtype=np.int64)

    def collect(self, policy: Policy, steps: int) -> Rollout:
        """`steps` steps of every environment under `policy`, which reads prompts."""
        played = play(
            policy, self.envs, self._choose, steps, predict_ends=True, anywhere=self.anywhere
        )
        returns: list[float] = []
        lengths: list[int] = []
        for paid, ended in zip(played.rewards, played.ended, strict=True):
            self._returns += paid
            self._lengths += 1
            returns += self._returns[ended].tolist()
            lengths += self._lengths[ended].tolist()
            self._returns[ended], self._lengths[ended] = 0.0, 0
        return Rollout.of(played, tuple(returns), tuple(lengths))

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs to go on as if never interrupted; JSON-serialisable."""
        return {
            "environments": self.envs.state_dict(),
            "generator": self.generator.get_state().tolist(),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""
        self.envs.load_state_dict(state["environments"])
        self.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
        self._returns = np.array(state["returns"])
        self._lengths = np.array(state["lengths"], dtype=np.int64)

    def _choose(self, logprobs: np.ndarray) -> np.ndarray:
        """(B, A) -> one action per environment (B,).

        Each process draws for the environments of all, and uses its own: so their actions do not
        depend on how the environments are shared out, where all states have as many actions.
        """
        probabilities = torch.from_numpy(logprobs).float().exp()
        everyone = probabilities.new_ones(self.total, probabilities.shape[1])
        own = slice(self.first, self.first + len(probabilities))
        everyone[own] = probabilities
        return torch.multinomial(everyone, 1, generator=self.generator).squeeze(-1)[own].numpy()

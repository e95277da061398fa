"""collect(): the policy acts in its environments; what happened comes back as one frozen record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flagtrl.language.tokens import EncodedPrompt, PromptEncoder
from flagtrl.market.env import VectorTradingEnv
from flagtrl.policy.batch import PolicyOutput

# prompts and legal (B, A) -> the policy's output, on the CPU
Act = Callable[[Sequence[EncodedPrompt], np.ndarray], PolicyOutput]


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
            was ruin.
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

    def __len__(self) -> int:
        return self.actions.numel()


class Collector:
    """Environments that live across rollouts, with the generator that samples their actions.

    Args:
        envs: B environments; an episode that ends is reset at once.
        encoder: observation to prompt.
        seed: of the environments (seed + first + b) and of the sampling.
        first: these environments are number first ... first + B - 1 of `total`.
        total: environments of all processes; None: these are all.
        anywhere: whether something that is so here, or not, is so in any process that must run the
            same forwards.
    """

    def __init__(
        self,
        envs: VectorTradingEnv,
        encoder: PromptEncoder,
        seed: int,
        first: int = 0,
        total: int | None = None,
        anywhere: Callable[[bool], bool] = bool,
    ):
        self.envs, self.encoder, self.anywhere = envs, encoder, anywhere
        self.first, self.total = first, total or envs.num_envs
        self.generator = torch.Generator().manual_seed(seed)
        self.envs.reset(seed=seed + first)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, dtype=np.int64)

    def collect(self, act: Act, steps: int) -> Rollout:
        """`steps` steps of every environment under the policy behind `act`."""
        rows: list[tuple] = []
        prompts: list[EncodedPrompt] = []
        returns: list[float] = []
        lengths: list[int] = []
        bootstrap = torch.zeros(steps, self.envs.num_envs)
        for t in range(steps):
            now, legal = self._encode(), self.envs.legal()
            output = act(now, legal)
            action = self._sample(output.logprobs.exp())
            _, reward, terminated, truncated, _ = self.envs.step(action.numpy())
            ended = terminated | truncated
            self._returns += reward
            self._lengths += 1
            prompts += now
            rows.append((legal, action, *output, reward, terminated, ended))
            if self.anywhere(bool((truncated & ~terminated).any())):
                bootstrap[t] = self._last_values(act, truncated & ~terminated)
            if ended.any():
                returns += self._returns[ended].tolist()
                lengths += self._lengths[ended].tolist()
                self._returns[ended], self._lengths[ended] = 0.0, 0
                self.envs.reset(options={"reset_mask": ended})
        legals, actions, logprobs, values, rewards, terminations, endings = (
            torch.stack([torch.as_tensor(row[i]) for row in rows]) for i in range(7)
        )
        after = self._last_values(act, np.ones(self.envs.num_envs, dtype=bool))
        following = torch.cat([values[1:], after[None]])
        return Rollout(
            prompts=tuple(prompts),
            legal=legals,
            actions=actions,
            logprobs=logprobs,
            values=values,
            next_values=torch.where(endings, bootstrap, following),
            rewards=rewards.float(),
            terminated=terminations,
            ended=endings,
            episode_returns=tuple(returns),
            episode_lengths=tuple(lengths),
        )

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

    def _sample(self, probabilities: Tensor) -> Tensor:
        """(B, A) -> one action per environment (B,).

        Each process draws for the environments of all, and uses its own: so their actions do not
        depend on how the environments are shared out.
        """
        everyone = probabilities.new_ones(self.total, probabilities.shape[1])
        own = slice(self.first, self.first + len(probabilities))
        everyone[own] = probabilities
        return torch.multinomial(everyone, 1, generator=self.generator).squeeze(-1)[own]

    def _encode(self) -> list[EncodedPrompt]:
        return [self.encoder.encode(seen) for seen in self.envs.observe()]

    def _last_values(self, act: Act, chosen: np.ndarray) -> Tensor:
        """(B,) V of the current observations of the chosen environments, 0 elsewhere."""
        rows = np.flatnonzero(chosen)
        # none here, but some in another process
        asked = rows if len(rows) else np.zeros(1, dtype=int)
        prompts, legal = self._encode(), self.envs.legal()
        output = act([prompts[i] for i in asked], legal[asked])
        values = torch.zeros(len(chosen))
        values[torch.from_numpy(rows)] = output.values[: len(rows)]
        return values

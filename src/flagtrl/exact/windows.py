"""Windows of the market in place of episodes: both positions of every bar of a window, each as
often as the policy is there.

No action moves a price. So on a window that has happened, all that a policy can expect is computed,
not sampled, with the window's own transitions (`market/transitions.py`). The future enters the
advantages only, never a prompt, as the rewards of an episode do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flagtrl.errors import ConfigError
from flagtrl.exact.objectives import sharpe
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.advantages import occupancies
from flagtrl.learning.config import PPOConfig
from flagtrl.market.env import TradingEnv
from flagtrl.market.ledger import Action
from flagtrl.market.rewards import MIN_STD
from flagtrl.market.transitions import LONG, POSITIONS, seen_at, transitions_of
from flagtrl.policy.batch import ActorCriticOutput


@dataclass(frozen=True, eq=False)
class WindowRollout:
    """T decisions of B windows in H positions, by A actions.

    Attributes:
        prompts: T * B * H prompts; position h of step t of window b is at (t * B + b) * H + h.
        legal: (T, B, H, A) bool.
        logprobs: (T, B, H, A) float32, log pi_old.
        values: (T, B, H) float32, V.
        occupancy: (T, B, H) float64, how likely the policy is in that position then; over H it adds
            up to 1.
        returns: (T, B, H, A) float64, what the account gains in the step, a fraction.
        rewards: (T, B, H, A) float64; None where the reward is of the moments of returns.
        after: (T, B, H, A) int64, the next position.
        counts: (T,) float64, 0 for a last decision that can earn nothing, else 1.
        risk_free_rate: per bar, a fraction.
    """

    prompts: tuple[EncodedPrompt, ...]
    legal: Tensor
    logprobs: Tensor
    values: Tensor
    occupancy: Tensor
    returns: Tensor
    rewards: Tensor | None
    after: Tensor
    counts: Tensor
    risk_free_rate: float = 0.0

    @property
    def joint(self) -> Tensor:
        """(T, B, H, A) float64, how likely the policy is in that position then, and takes that
        action.
        """
        return self.occupancy[..., None] * self.logprobs.double().exp()

    def value(self, joint: Tensor, gamma: float) -> Tensor:
        """(B,) what is expected of a policy that is there and acts so as often as `joint` says."""
        if self.rewards is None:
            return sharpe(joint, self.returns, gamma, self.risk_free_rate)
        discounts = gamma ** torch.arange(len(joint), dtype=joint.dtype)
        return (discounts[:, None] * (joint * self.rewards).sum((-1, -2))).sum(0)


class Windows:
    """Windows of `num_steps` decisions, drawn from (seed, rollout): the same whatever was drawn
    before.

    A window is entered flat or long with equal chances, as if joined in mid-run. Ruin, which would
    end an episode, is left out.

    Args:
        env: an environment of the training window.
        encoder: seen_at to prompt; prompts must tell of the account no more than its position.
        config: seed, `num_steps` of a window, and `num_envs` windows of a rollout over all
            processes.
        own: which of a rollout's windows are this process's.

    Attributes:
        volatility: the deviation of the log returns of holding, per bar; 1 where nothing moves.
        unit: of advantages: the deviation of what holding pays, per bar; of a reward of moments,
            which is one number for a window, a bar's share of it.

    Raises:
        ConfigError: a reward whose expectation is not known, an environment with a `step` of its
            own but no `transitions`, windows longer than the training window, or of one decision
            that can earn nothing.
    """

    def __init__(self, env: TradingEnv, encoder: PromptEncoder, config: PPOConfig, own: range):
        self.encoder, self.window, self.settings, self.own = encoder, env.window, env.settings, own
        self.steps, self.windows, self.seed = config.num_steps, config.num_envs, config.seed
        self.table = transitions_of(env)
        if self.steps > len(self.table.returns):
            raise ConfigError(
                f"num_steps is {self.steps}, the training window of {len(self.window)} bars has "
                f"{len(self.table.returns)} decisions; lower num_steps"
            )
        if self.steps == 1 and not self.table.last_counts:
            raise ConfigError(
                "num_steps is 1, but an order that fills at the next price earns a bar later: a "
                "window of one decision teaches nothing; set num_steps to 40"
            )
        paid = self.table.rewards
        self.volatility = _deviation(np.log1p(self.table.returns))
        self.unit = 1 / self.steps if paid is None else _deviation(paid)
        self._prompts: dict[tuple[int, int], EncodedPrompt] = {}

    def collect(
        self, number: int, ask: Callable[[Sequence[EncodedPrompt], np.ndarray], ActorCriticOutput]
    ) -> WindowRollout:
        """The windows of rollout `number`, under the policy behind `ask`."""
        last = len(self.table.returns) - self.steps
        everyones = np.random.default_rng([self.seed, number, 1]).integers(
            0, last + 1, self.windows
        )
        starts = everyones[self.own.start : self.own.stop]
        bars = np.arange(self.steps)[:, None] + starts  # (T, B)
        prompts = [self._prompt(int(bar), position) for bar in bars.flat for position in POSITIONS]
        legal = np.broadcast_to(self.table.legal, (*bars.shape, *self.table.legal.shape))
        output = ask(prompts, legal.reshape(len(prompts), -1))
        logprobs, paid = output.logprobs.view(legal.shape), self.table.rewards
        after, counts = (
            torch.from_numpy(self.table.after[bars]),
            torch.ones(self.steps, dtype=torch.float64),
        )
        counts[-1] = float(self.table.last_counts)
        return WindowRollout(
            prompts=tuple(prompts),
            legal=torch.from_numpy(legal.copy()),
            logprobs=logprobs,
            values=output.values.view(legal.shape[:-1]),
            occupancy=occupancies(
                logprobs.double(), after, torch.full((len(POSITIONS),), 1 / len(POSITIONS)).double()
            ),
            returns=torch.from_numpy(self.table.returns[bars]),
            rewards=None if paid is None else torch.from_numpy(paid[bars]),
            after=after,
            counts=counts,
            risk_free_rate=self.settings.risk_free_rate,
        )

    def _prompt(self, bar: int, position: int) -> EncodedPrompt:
        if (bar, position) not in self._prompts:
            seen = seen_at(self.window, self.settings, bar, position)
            self._prompts[bar, position] = self.encoder.encode(seen)
        return self._prompts[bar, position]


def _deviation(table: np.ndarray) -> float:
    """Of a (T, H, A) table's entries for holding the asset; 1 where nothing moves."""
    deviation = float(table[:, LONG, Action.HOLD].std())
    return deviation if deviation > MIN_STD else 1.0

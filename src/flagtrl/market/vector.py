"""Several trading environments in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from flagtrl.errors import ConfigError
from flagtrl.market.env import TradingEnv
from flagtrl.market.observation import Observation
from flagtrl.play.loop import Step


class VectorTradingEnv(SyncVectorEnv):
    """B trading environments in one; a finished one waits to be reset, so that its last observation
    can be valued.

    gymnasium's SyncVectorEnv with autoreset disabled: after a step, `reset(options={"reset_mask":
    done})`.
    """

    def __init__(self, envs: Sequence[TradingEnv]):
        self.trading_envs = tuple(envs)
        makers: list[Callable[[], gymnasium.Env]] = [partial(_itself, env) for env in envs]
        super().__init__(makers, autoreset_mode=AutoresetMode.DISABLED)

    def observe(self) -> list[Observation]:
        """The B current observations."""
        return [env.observe() for env in self.trading_envs]

    def legal(self) -> np.ndarray:
        """(B, A) bool action masks."""
        return np.stack([env.legal for env in self.trading_envs])

    @property
    def over(self) -> bool:
        """Never: an episode that ends is followed by the next."""
        return False

    def advance(self, actions: np.ndarray) -> Step:
        """Fill (B,) actions, and move every environment one bar on."""
        _, rewards, terminated, truncated, info = self.step(actions)
        shares = np.array([float(env.account.shares) for env in self.trading_envs])
        told = {"values": info["value"], "shares": shares, "fees": info["fee"]}
        return Step(rewards, terminated, truncated, told)

    def begin_again(self, ended: np.ndarray) -> None:
        """Start new episodes where `ended` (B,) says so."""
        self.reset(options={"reset_mask": ended})

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of the B environments."""
        return [env.state_dict() for env in self.trading_envs]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from `state_dict()`; the number of environments must be equal."""
        if len(states) != len(self.trading_envs):
            raise ConfigError(
                f"the saved run has {len(states)} environments, this one {len(self.trading_envs)}; "
                "set num_envs to match"
            )
        for env, state in zip(self.trading_envs, states, strict=True):
            env.load_state_dict(state)
        # gymnasium's own record of the same: whether an episode waits for its reset, and what was
        # last observed.
        self._autoreset_envs = np.array([env.ended for env in self.trading_envs], dtype=np.bool_)
        self._env_obs[:] = [env.numbers() for env in self.trading_envs]  # type: ignore[misc]


def _itself(env: TradingEnv) -> TradingEnv:
    return env

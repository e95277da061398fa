"""Control for `flagtrl qa`: train as train_msft.py does, but with rewards that say nothing about
the action.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml
    recipes/train_shuffled_rewards.py

The same rewards are paid, at random times: with exact advantages each day's are another day's; a
step of a rollout puts its own into a pool and pays one of the pool's. What such an adapter changes
in financial QA, trading did not.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from flagtrl.market.env import TradingEnv
from flagtrl.market.transitions import Transitions, transitions
from flagtrl.program import one_line_errors
from flagtrl.train import run_recipe


class ShuffledRewards(TradingEnv):
    """A TradingEnv whose rewards are paid at random times; the pool begins with those of one random
    episode.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._draw = np.random.default_rng(0)
        self._pool: list[float] = []
        self.reset(seed=0)
        while not self.ended:
            action = int(self._draw.choice(np.flatnonzero(self.legal)))
            self._pool.append(super().step(action)[1])
        self.reset()

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        """As TradingEnv's, with another reward; the prompt shows the one that was paid."""
        _, earned, terminated, truncated, info = super().step(action)
        place = int(self._draw.integers(len(self._pool)))
        paid, self._pool[place] = self._pool[place], earned
        self._rewards[-1] = paid
        return self.numbers(), paid, terminated, truncated, info

    def transitions(self) -> Transitions:
        """The window's tables, the days' rewards in another order, the same one for all seeds."""
        table = transitions(self.window, self.settings)
        order = np.random.default_rng(0).permutation(len(table.returns))
        rewards = None if table.rewards is None else table.rewards[order]
        return replace(table, returns=table.returns[order], rewards=rewards)

    def state_dict(self) -> dict[str, Any]:
        """The pool and its generator too, so that a resumed run is the same."""
        return super().state_dict() | {
            "pool": list(self._pool),
            "draw": self._draw.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        super().load_state_dict(state)
        self._pool, self._draw.bit_generator.state = list(state["pool"]), state["draw"]


if __name__ == "__main__":
    with one_line_errors():
        run_recipe("msft", environment=ShuffledRewards)

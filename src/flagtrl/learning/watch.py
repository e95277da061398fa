"""What is said while a policy dies: a first update that leaps, an entropy that is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flagtrl.countdown import WARNING

logger = logging.getLogger(__name__)

# nats of KL(old || new): half of what the clip at 0.2 is meant to allow, in one rollout
LARGE_UPDATE = 0.1
DEAD_ENTROPY, DEAD_ROLLOUTS = 0.01, 3


def warnings_alone(line: str) -> None:
    """Log a line that warns, and drop any other; `show_progress_lines` prints them all."""
    if line.startswith(WARNING):
        logger.warning(line.removeprefix(WARNING))


class Watch:
    """Counts rollouts in which the policy hardly varies.

    Attributes:
        collapsed_at: environment steps after which the policy was first found collapsed; None while
            it never was.
        kl_first_update: KL(old || new) of the first rollout's update, nats; None before it.
    """

    def __init__(self) -> None:
        self.collapsed_at: int | None = None
        self.kl_first_update: float | None = None
        self._low = 0

    def state(self) -> dict[str, int | float | None]:
        """What a checkpoint keeps, and a run's record says; JSON-serialisable."""
        return {
            "collapsed_at": self.collapsed_at,
            "kl_first_update": self.kl_first_update,
            "low_rollouts": self._low,
        }

    def told(self) -> dict[str, int | float | None]:
        """What results.json says of it."""
        return {"collapsed_at": self.collapsed_at, "kl_first_update": self.kl_first_update}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.collapsed_at, self.kl_first_update = state["collapsed_at"], state["kl_first_update"]
        self._low = state["low_rollouts"]

    def rollout(self, entropy: float, steps: int, say: Callable[[str], None]) -> None:
        """`entropy` is a rollout's mean, nats; `steps` were done before it."""
        self._low = self._low + 1 if entropy < DEAD_ENTROPY else 0
        if self._low == DEAD_ROLLOUTS:
            self.collapsed_at = steps if self.collapsed_at is None else self.collapsed_at
            say(
                f"{WARNING}the policy has collapsed: its entropy was below {DEAD_ENTROPY} nats in "
                f"{DEAD_ROLLOUTS} rollouts, at {steps} steps; it takes one action and can learn no "
                "other: take its label prior out (prior=calibrated, as preset flagtrl does), lower "
                "learning_rate, or raise ent_coef"
            )

    def first_update(self, divergence: float, say: Callable[[str], None]) -> None:
        """`divergence` is the mean KL(old || new) over the first rollout's samples, after its
        update.
        """
        self.kl_first_update = divergence
        if divergence > LARGE_UPDATE:
            say(
                f"{WARNING}the first update moved the policy by KL(old || new) = {divergence:.2f} "
                f"nats, above {LARGE_UPDATE}: a leap that clipping does not hold; lower "
                "learning_rate, or set warmup_steps"
            )

"""Policies that `flagtrl trade` trades, by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from flagtrl.errors import ConfigError, one_of
from flagtrl.learning.settings import BOUNDS
from flagtrl.policy.endpoint import Endpoint

KINDS = {
    "zero_shot": (
        "the untrained language model, by the likelihood of its action words, as it is and with "
        "its label prior removed"
    ),
    "text": "the same, as it answers in text",
    "endpoint": "any model behind an OpenAI-compatible endpoint; its answers are kept on disk",
    "decisions": "a CSV file with the columns date and action",
    "linear": "Stable-Baselines3's PPO on numbers, without hidden layers",
    "mlp": "Stable-Baselines3's PPO on numbers, with two hidden layers of 64",
}
ON_NUMBERS = ("linear", "mlp")


@dataclass(frozen=True)
class Other:
    """Which policy, where it is not a trained one.

    Attributes:
        kind: of KINDS.
        endpoint: of the kind of that name.
        decisions: path of the file, of the kind of that name.

    Raises:
        ConfigError: an unknown kind, what it needs is missing, or what another kind needs is given.
    """

    kind: str
    endpoint: Endpoint | None = None
    decisions: str | None = None

    def __post_init__(self) -> None:
        one_of("policy", self.kind, KINDS)
        for name, value in (("endpoint", self.endpoint), ("decisions", self.decisions)):
            if (self.kind == name) != (value is not None):
                how = f"needs --{name}" if self.kind == name else f"takes no --{name}"
                raise ConfigError(f"policy {self.kind!r} {how}")
        if self.kind in ON_NUMBERS and find_spec("stable_baselines3") is None:
            raise ConfigError(
                f"policy {self.kind!r} needs stable_baselines3, which is not installed; pip "
                "install 'flagtrl[sb3]'"
            )

    def check_words(self, words: Sequence[str]) -> None:
        """Refuse options that a policy on numbers would not heed; ConfigError."""
        given = {word.partition("=")[0].removeprefix("--") for word in words}
        unheeded = sorted(given & BOUNDS.keys() - {"seed", "total_timesteps"})
        if self.kind in ON_NUMBERS and unheeded:
            raise ConfigError(
                f"policy {self.kind!r} has Stable-Baselines3's own settings, and no "
                f"--{unheeded[0]}; leave it out"
            )

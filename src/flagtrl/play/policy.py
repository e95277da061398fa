"""A policy: what observes and decides. A language model, a rule and a file of decisions are one
kind of thing to everything that acts with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from flagtrl.errors import PolicyError

NORMALISED = 1e-4  # by which a policy's probabilities may miss 1, in whatever precision


class Seen(Protocol):
    """What an agent may know now; of a market it is an Observation."""

    @property
    def legal(self) -> np.ndarray:
        """(A,) bool: which actions can do something."""


class PolicyOutput(NamedTuple):
    """Policy and value of B observations.

    logprobs: (B, A) log pi(a | s); -inf for illegal actions, the legal ones' exponentials sum to 1.
    values: (B,) V(s), in units of the reward; NaN where a policy has no critic.
    read: what the policy read of each observation, as encoded prompts: who learns needs them again.
    """

    logprobs: np.ndarray
    values: np.ndarray
    read: tuple[Any, ...] = ()

    @classmethod
    def of(cls, logprobs: np.ndarray) -> PolicyOutput:
        """Of a policy without a critic."""
        return cls(logprobs, np.full(len(logprobs), np.nan))


class Policy(Protocol):
    """B observations that have nothing to do with one another -> B decisions."""

    def __call__(self, seen: Sequence[Any], /) -> PolicyOutput:
        """Log-probabilities and values; called with B >= 1."""


def legal_of(seen: Sequence[Seen]) -> np.ndarray:
    """(B, A) bool: which actions can do something, in each observation; of one that has fewer
    actions than another, none beyond its own.
    """
    many = getattr(seen, "legal", None)  # of accounts that trade in step: no record need be made
    if many is not None:
        return many
    each = [one.legal for one in seen]
    widest = max(map(len, each))
    return np.stack([np.pad(legal, (0, widest - len(legal))) for legal in each])


def uniform(seen: Sequence[Seen]) -> PolicyOutput:
    """The policy that draws every legal action with equal chances."""
    legal = legal_of(seen)
    with np.errstate(divide="ignore"):
        return PolicyOutput.of(np.log(legal / legal.sum(-1, keepdims=True)))


def check_policy(policy: Policy, seen: Sequence[Seen]) -> None:
    """Hold a policy to what `PolicyOutput` says, on some observations.

    Raises:
        PolicyError: naming what does not hold.
    """
    checked(policy(seen), legal_of(seen))


def checked(output: PolicyOutput, legal: np.ndarray) -> PolicyOutput:
    """The output itself, where it is what `PolicyOutput` says.

    Args:
        output: of a policy.
        legal: (B, A) bool: which actions were legal.

    Raises:
        PolicyError: naming what does not hold.
    """
    logprobs, values = np.asarray(output.logprobs), np.asarray(output.values)
    if (logprobs.shape, values.shape) != (legal.shape, legal.shape[:1]):
        raise PolicyError(
            f"the policy gave logprobs of shape {logprobs.shape} and values of {values.shape} for "
            f"{len(legal)} observations; they must be {legal.shape} and {legal.shape[:1]}"
        )
    if np.isnan(logprobs).any() or np.isposinf(logprobs).any():
        raise PolicyError("the policy's log-probabilities hold NaN or +inf; check its weights")
    if not np.isneginf(logprobs[~legal]).all():
        raise PolicyError("the policy may take an illegal action; its log-probability must be -inf")
    total = np.exp(logprobs, dtype=np.float64).sum(-1)
    if (wrong := np.flatnonzero(np.abs(total - 1) > NORMALISED)).size:
        raise PolicyError(
            f"the policy's probabilities add up to {total[wrong[0]]:g}, not to 1; normalise them"
        )
    return output

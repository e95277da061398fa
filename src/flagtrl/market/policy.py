"""A policy: what observes and decides. A language model, a rule and a file of decisions are one
kind of thing to everything that trades with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from flagtrl.errors import ConfigError, DataError, PolicyError
from flagtrl.market.data import count_sentiments
from flagtrl.market.ledger import ACTION_WORDS, NUM_ACTIONS, Action
from flagtrl.market.observation import Observation

NORMALISED = 1e-4  # by which a policy's probabilities may miss 1, in whatever precision


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
    """B observations of accounts that have nothing to do with one another -> B decisions."""

    def __call__(self, seen: Sequence[Observation], /) -> PolicyOutput:
        """Log-probabilities and values; called with B >= 1."""


def legal_of(seen: Sequence[Observation]) -> np.ndarray:
    """(B, A) bool: which actions can do something, in each observation."""
    many = getattr(seen, "legal", None)  # of accounts that trade in step: no record need be made
    return np.stack([each.legal for each in seen]) if many is None else many


def uniform(seen: Sequence[Observation]) -> PolicyOutput:
    """The policy that draws every legal action with equal chances."""
    legal = legal_of(seen)
    with np.errstate(divide="ignore"):
        return PolicyOutput.of(np.log(legal / legal.sum(-1, keepdims=True)))


def each(logprobs: Callable[[Observation], np.ndarray]) -> Policy:
    """The policy of a function of one observation: (A,) log-probabilities, -inf where illegal."""
    return lambda seen: PolicyOutput.of(np.stack([logprobs(one) for one in seen]))


def rule(decide: Callable[[Observation], int]) -> Policy:
    """The policy of a rule: it always takes the action that `decide` names; Hold where that can do
    nothing.
    """

    def policy(seen: Sequence[Observation]) -> PolicyOutput:
        chosen = np.array([decide(each) for each in seen])
        if not np.isin(chosen, range(NUM_ACTIONS)).all():
            raise ConfigError(
                f"the rule {getattr(decide, '__name__', decide)!r} decided {chosen.tolist()}; use "
                f"{', '.join(f'{int(a)} ({a.word})' for a in Action)}"
            )
        rows = np.arange(len(seen))
        chosen = np.where(legal_of(seen)[rows, chosen], chosen, Action.HOLD)
        logprobs = np.full((len(seen), NUM_ACTIONS), -np.inf)
        logprobs[rows, chosen] = 0.0
        return PolicyOutput.of(logprobs)

    return policy


def always(action: int) -> Policy:
    """The rule that gives one order at every bar."""
    return rule(lambda seen: action)


def follow_news(seen: Observation) -> int:
    """Buy on more positive than negative news of the bar, Sell on fewer, else Hold."""
    positive, _, negative = count_sentiments(seen.news[-1])
    return int(Action.HOLD + np.sign(positive - negative))


def follow_last_move(seen: Observation) -> int:
    """Buy after a rise, Sell after a fall, else (and at the first bar of all) Hold; reads no news.

    Beside `follow_news` it shows how much of a news market's gain prices alone would earn.

    Raises:
        ConfigError: a look-back of a single bar.
    """
    if seen.bar == 0:
        return int(Action.HOLD)
    if len(seen.prices) < 2:
        raise ConfigError("lookback is 1, but follow_last_move compares 2 bars; use at least 2")
    return int(Action.HOLD + np.sign(seen.prices[-1] - seen.prices[-2]))


def decisions(path: str | Path) -> Policy:
    """The policy that a file says: a CSV with the columns `date` and `action` (Sell, Hold, Buy), as
    trades.csv has them; of several rows of one date the first counts.

    Raises:
        DataError: no such file or columns, an unknown action; or, when asked, a day without a
            decision.
    """
    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: decisions cannot be read ({error}); give a CSV file") from error
    if missing := {"date", "action"} - set(table.columns):
        raise DataError(
            f"{path}: no column {min(missing)!r}; columns found: {', '.join(table.columns)}; a "
            "file of decisions has date and action"
        )
    number = {word: action for action, word in enumerate(ACTION_WORDS)}
    known: dict[str, int] = {}
    for line, (date, action) in enumerate(zip(table.date, table.action, strict=True), start=2):
        if action not in number:
            raise DataError(
                f"{path}:{line}: action is {action!r}; it must be one of {', '.join(ACTION_WORDS)}"
            )
        known.setdefault(str(date)[:10], number[action])

    def decide(seen: Observation) -> int:
        day = str(seen.date)[:10]
        if day not in known:
            raise DataError(f"{path}: no decision for {day}; give one for every day but the last")
        return known[day]

    return rule(decide)


def check_policy(policy: Policy, seen: Sequence[Observation]) -> None:
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

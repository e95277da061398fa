"""Policies that need no model: rules, and files of decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from flagtrl.errors import ConfigError, DataError
from flagtrl.market.data import count_sentiments
from flagtrl.market.ledger import ACTION_WORDS, NUM_ACTIONS, Action
from flagtrl.market.observation import Observation
from flagtrl.play.policy import Policy, PolicyOutput, legal_of


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

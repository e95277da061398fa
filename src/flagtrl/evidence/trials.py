"""How many policies were tried on a window: a file that grows with every evaluation, so that the
best of many can be told from a good one.

A line for each: JSON, appended. What counts are policies that differ, whether they were kept or
not; one that is traded again counts once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flagtrl.evidence.statistics import TrackRecord, best_of_trials, deflated_sharpe
from flagtrl.files import append_json_line, read_json_lines
from flagtrl.made_with import now
from flagtrl.market.data import Window
from flagtrl.record import RunRecord

logger = logging.getLogger(__name__)


def trials_file() -> Path:
    """$FLAGTRL_TRIALS, or else ~/.local/state/flagtrl/trials.jsonl."""
    named = os.environ.get("FLAGTRL_TRIALS")
    return Path(named or Path.home() / ".local" / "state" / "flagtrl" / "trials.jsonl")


class Trials(NamedTuple):
    """Of a window, the one at hand among them.

    Attributes:
        policies: that were tried on it.
        by_luck: the Sharpe ratio a bar that the best of so many is expected to show without skill;
            NaN where fewer than two are defined.
        deflated: how likely this one's true ratio is above that; NaN where it is undefined.
    """

    policies: int
    by_luck: float
    deflated: float

    def as_dict(self) -> dict[str, float | int | None]:
        """JSON-serialisable; None where undefined."""
        return {n: None if math.isnan(v) else v for n, v in self._asdict().items()}


def counted(record: RunRecord, window: Window, returns: np.ndarray) -> Trials | None:
    """Write a policy's evaluation down, and look how many there are on its window.

    Args:
        record: of the policy.
        window: that it traded.
        returns: (n,) simple returns of its greedy pass, above the risk-free rate; at least 20.

    Returns:
        None where the file cannot be written or read, which a warning says.
    """
    path, track = trials_file(), TrackRecord.of(returns)
    ratio, name = None if math.isnan(track.sharpe) else track.sharpe, _window(window)
    line = {
        **{"window": name, "policy": _policy(record, returns), "sharpe": ratio},
        **{"symbol": record.data and record.data.symbol, "seed": record.seed, "at": now()},
        **{"preset": record.preset, "output_dir": record.training.get("output_dir")},
    }
    try:
        append_json_line(path, line)
        known = _tried(path, name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning(
            "%s: the trial could not be counted (%s); name another file in FLAGTRL_TRIALS",
            path,
            error,
        )
        return None
    ratios = [value for value in known.values() if value is not None]
    if len(ratios) < 2:
        return Trials(len(known), math.nan, math.nan)
    variance = float(np.var(ratios, ddof=1))
    luck = best_of_trials(len(known), variance)
    return Trials(len(known), luck, deflated_sharpe(track, len(known), variance))


def _tried(path: Path, window: str) -> dict[str, float | None]:
    """Policy to its Sharpe ratio a bar, of one window."""
    lines = [each for each in read_json_lines(path) if each["window"] == window]
    return {each["policy"]: each["sharpe"] for each in lines}


def _window(window: Window) -> str:
    """Which prices, on which days: the same whatever else the file holds."""
    prices = np.asarray(window.prices, dtype="<f8").tobytes()
    return _digest({"days": [str(day) for day in window.dates], "prices": prices.hex()})


def _policy(record: RunRecord, returns: np.ndarray) -> str:
    """What made it, and what it did: a checkpoint is another than what its run ended with."""
    told = {name: record.facts()[name] for name in ("seed", "model", "settings")}
    train = list(record.windows.get("train", ()))
    return _digest({**told, "train": train, "returns": returns.tolist()})


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def in_words(trials: Trials, root_of_a_year: float, sharpe: float) -> str:
    """What the count says, in words; ratios a year."""
    if trials.policies == 1:
        return "It is the first policy that this machine's list of trials has on this window."
    said = f"It is one of {trials.policies} policies that were tried on this window on this machine"
    if math.isnan(trials.deflated):
        return f"{said}."
    return (
        f"{said}: the best of so many is expected to show a Sharpe ratio of "
        f"{root_of_a_year * trials.by_luck:.2f} without skill, and its {sharpe:.2f} has a deflated "
        f"Sharpe ratio of {trials.deflated:.2f} (significant, two-sided, from 0.975 on)."
    )
